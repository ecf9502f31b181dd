"""Models of transformers and timm, in two layers of small sizes; their weights are drawn as the library draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from zoo import CLASSES, VOCABULARY, library

from fixmatrix.entries import Model

HEAD = 16
"""The size of a head, where the number of heads grows; it is 4 where the size grows."""


def tokens(seed: int) -> dict[str, Tensor]:
    """(4, 12) tokens, and those to predict."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(3, VOCABULARY, (2, 4, 12), generator=generator)
    return {"input_ids": ids, "labels": labels}


def pairs(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """(8, 3, size, size) images, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, size, size, generator=generator), torch.randint(CLASSES, (8,), generator=generator)


def images(seed: int) -> dict[str, Tensor]:
    """Images as transformers takes them."""
    values, labels = pairs(16, seed)
    return {"pixel_values": values, "labels": labels}


def sizes(width: int, heads: int | None = None, **more: Any) -> dict[str, Any]:
    """The fields that most configs of decoders share."""
    return zoo._llama(width, heads or width // HEAD) | {"num_key_value_heads": heads or width // HEAD} | more


def opt(width: int) -> dict[str, Any]:
    fields = sizes(width, 4, ffn_dim=4 * width, word_embed_proj_dim=width, dropout=0.0, pad_token_id=1)
    return {name: value for name, value in fields.items() if name not in ("intermediate_size", "num_key_value_heads")}


def neox(width: int) -> dict[str, Any]:
    return {name: value for name, value in sizes(width, 4).items() if name != "num_key_value_heads"}


def gemma2(width: int) -> dict[str, Any]:
    return sizes(width, head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=8, pad_token_id=0)


def qwen3(width: int, heads: int | None = None) -> dict[str, Any]:
    return sizes(width, heads, head_dim=width // heads if heads else HEAD, tie_word_embeddings=False)


def transformer(
    kind: str, head: str, fields: Callable[[int], Mapping[str, Any]], *optimizers: str, batch: Any = tokens
) -> Model:
    """A model of transformers, which computes its loss."""
    return Model(partial(zoo.transformers_model, kind, head, fields), batch, None, ("adam", *optimizers))


def convnext(width: int) -> nn.Module:
    dims = (width // 2, width // 2, width, width)
    return library("timm").create_model("convnext_atto", depths=(1, 1, 1, 1), dims=dims, num_classes=CLASSES)


def mixer(width: int) -> nn.Module:
    return library("timm").models.MlpMixer(CLASSES, img_size=16, patch_size=8, num_blocks=2, embed_dim=width)


def seeing(make: Callable[[int], nn.Module], size: int, *optimizers: str) -> Model:
    """A model of timm."""
    return Model(make, partial(pairs, size), F.cross_entropy, ("adam", *optimizers))


LM = "ForCausalLM"
MODELS: dict[str, Model] = {
    "gpt2": transformer("GPT2", "LMHeadModel", zoo._gpt2, "momentum"),
    "gpt2 heads=4": transformer("GPT2", "LMHeadModel", partial(zoo._gpt2, heads=4), "muon"),
    "llama": transformer("Llama", LM, zoo._llama, "momentum"),
    "llama heads=4": transformer("Llama", LM, partial(zoo._llama, heads=4)),
    "opt heads=4": transformer("OPT", LM, opt, "momentum"),
    "gpt-neox heads=4": transformer("GPTNeoX", LM, neox, "momentum"),
    "phi": transformer("Phi", LM, sizes),
    "gemma2": transformer("Gemma2", LM, gemma2),
    "qwen3": transformer("Qwen3", LM, qwen3, "muon"),
    "qwen3 heads=4": transformer("Qwen3", LM, partial(qwen3, heads=4)),
    "mixtral": transformer("Mixtral", LM, zoo._mixtral),
    "bert": transformer("Bert", "ForMaskedLM", zoo._bert),
    "t5": transformer("T5", "ForConditionalGeneration", zoo._t5),
    "vit": transformer("ViT", "ForImageClassification", zoo._vit, "momentum", batch=images),
    "mamba": transformer("Mamba", LM, zoo._mamba),
    "timm resnet": seeing(partial(zoo.timm_model, "resnet18"), 32, "momentum"),
    "timm vit": seeing(partial(zoo.timm_model, "vit_tiny_patch16_224"), 16, "momentum"),
    "timm convnext": seeing(convnext, 32),
    "timm mixer": seeing(mixer, 16, "momentum", "muon"),
}
