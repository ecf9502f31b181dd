"""The model families that users bring, from their libraries: in SP as they come, and in µP by hand.

Every library is imported when a family of it is built, so that this module needs none of them.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128)
BASE = 32
VOCABULARY = 48
CLASSES = 10
LR = 1e-3
STACKED = ("gate_up_proj", "down_proj")  # of experts: (expert, out, in)

Model = Callable[[int], nn.Module]


class Family(NamedTuple):
    """One family: how its model is made at a width, and what is special about it."""

    package: str
    model: Model
    batch: Callable[[], Any]
    loss: Any = None
    scaled_by: str = ""
    """The attribute of its attention modules that multiplies the logits, where the head size grows."""
    readout: str = ""
    """The module whose tied matrix reads out."""
    divided: float = 1.0
    """The power of m that its input is divided by in µP: less where the library divides already."""
    fused: bool = False
    """Whether its attention comes fused, too: then `model` takes `attention="sdpa"`."""
    mup: Callable[[int], Any] | None = None
    """Its own build in µP, where the library has one."""
    not_visible: Mapping[str, str] = {}
    """Glob of parameters that are not followed -> a part of the reason."""


def tokens(examples: int = 4, length: int = 12) -> dict[str, Tensor]:
    """A batch of random tokens with labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (examples, length), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(3, VOCABULARY, (examples, length), generator=generator)}


def pixels(size: int = 16) -> tuple[Tensor, Tensor]:
    """(8, 3, size, size) images with labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, size, size, generator=generator), torch.randint(CLASSES, (8,), generator=generator)


def images(size: int = 16) -> dict[str, Tensor]:
    """Images as transformers takes them."""
    values, labels = pixels(size)
    return {"pixel_values": values, "labels": labels}


def sequences() -> tuple[Tensor, Tensor]:
    """(4, 10, 16) sequences with a label each."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 10, 16, generator=generator), torch.randint(CLASSES, (4,), generator=generator)


def transformers_model(
    kind: str, head: str, fields: Callable[[int], Mapping[str, Any]], width: int, attention: str = "eager"
) -> Any:
    """A model of transformers from a config of small sizes."""
    transformers = library("transformers")
    config = getattr(transformers, f"{kind}Config")(**fields(width))
    config._attn_implementation = attention
    return getattr(transformers, f"{kind}{head}")(config)


_LM = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
_DECODER = {**_LM, "max_position_embeddings": 32}


def _gpt2(width: int, heads: int | None = None) -> dict[str, Any]:
    sizes = {"n_embd": width, "n_layer": 2, "n_head": heads or width // 8, "n_positions": 32}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, **sizes, **no_dropout}


def _llama(width: int, heads: int | None = None, **more: Any) -> dict[str, Any]:
    heads = heads or width // 8
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": heads}
    return {**_DECODER, **sizes, "num_key_value_heads": max(heads // 2, 1), **more}


def _qwen3(width: int, **more: Any) -> dict[str, Any]:
    return _llama(width, head_dim=8, tie_word_embeddings=False, **more)


def _mixtral(width: int) -> dict[str, Any]:
    return _llama(width, num_local_experts=4, num_experts_per_tok=2)


def _qwen3_moe(width: int) -> dict[str, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": width, "norm_topk_prob": True}
    return _qwen3(width, **experts)


def _deepseek(width: int) -> dict[str, Any]:
    heads = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": width // 8}
    ranks = {"q_lora_rank": width // 2, "kv_lora_rank": width // 4, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    return _llama(width) | heads | ranks | experts | {"moe_intermediate_size": width, "n_shared_experts": 1}


def _convnext(width: int) -> dict[str, Any]:
    sizes = {"hidden_sizes": [width, width, 2 * width, 2 * width], "depths": [1, 1, 1, 1]}
    return {**sizes, "num_labels": CLASSES, "image_size": 32, "drop_path_rate": 0.0}


def _mamba(width: int) -> dict[str, Any]:
    return {**_LM, "hidden_size": width, "state_size": 8, "time_step_rank": width // 8, "pad_token_id": 0}


def _mamba2(width: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "state_size": 8, "head_dim": 8, "num_heads": width // 4, "n_groups": 1}
    return {**_LM, **sizes, "chunk_size": 16, "pad_token_id": 0}


def _bert(width: int) -> dict[str, Any]:
    no_dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 8}
    return {**_DECODER, "pad_token_id": 0, **sizes, **no_dropout}


def _t5(width: int) -> dict[str, Any]:
    sizes = {"d_model": width, "d_ff": 4 * width, "d_kv": 8, "num_heads": width // 8, "num_layers": 2}
    return {"vocab_size": VOCABULARY, "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, **sizes}


def _vit(width: int) -> dict[str, Any]:
    text = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    sizes = {name: value for name, value in _bert(width).items() if name not in text}
    return {**sizes, "image_size": 16, "patch_size": 8, "num_labels": CLASSES}


TORCHVISION = ("", ".datasets", ".models.feature_extraction", ".ops.misc", ".transforms", ".transforms.functional")


class Unused(type):
    """A class in place of whatever timm imports from torchvision; every attribute of it is another one."""

    def __getattr__(cls, name: str) -> Unused:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unused(name, (), {})


def library(name: str) -> Any:
    """A library by its name.

    timm imports torchvision, for its data loaders alone: no model of this zoo uses it. torchvision only works beside
    the very build of torch that it was made for, and takes transformers and lightning down with it beside another, so
    timm is imported without it.

    Raises:
        ImportError: the library is not installed.
    """
    if name != "timm" or name in sys.modules:
        return importlib.import_module(name)
    places = [f"torchvision{part}" for part in TORCHVISION]
    found = {place: sys.modules.get(place) for place in places}
    sys.modules.update({place: Unused("torchvision", (), {}) for place in places})  # type: ignore[misc]
    try:
        return importlib.import_module(name)
    finally:
        for place in places:  # or others would take it for the real one
            del sys.modules[place]
        sys.modules.update({place: module for place, module in found.items() if module is not None})


def timm_model(name: str, width: int, **options: Any) -> Any:
    """A model of timm."""
    make = library("timm").create_model
    if name.startswith("vit"):
        options = {"img_size": 16, "patch_size": 8, "embed_dim": width, "num_heads": width // 8, "depth": 2, **options}
    else:
        options = {
            "channels": (width, width, 2 * width, 2 * width),
            "layers": (1, 1, 1, 1),
            "stem_width": 8,
            "stem_type": "deep",
            **options,
        }
    return make(name, num_classes=CLASSES, **options)


class Reader(nn.Module):
    """A torch.nn layer of sequences between an embedding of the input and a readout."""

    def __init__(self, body: str, width: int, heads: int) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(16, width), nn.Linear(width, CLASSES)
        self.kind = body
        options: dict[str, Any] = {"dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True}
        if body == "encoder":
            layer = nn.TransformerEncoderLayer(width, heads, **options)
            self.body: nn.Module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        elif body == "decoder":
            self.body = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, heads, **options), 2)
        elif body == "attention":
            self.body = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.body = getattr(nn, body)(width, width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.kind == "encoder":
            x = self.body(x)
        elif self.kind == "decoder":
            x = self.body(x, x.flip(1))
        elif self.kind == "attention":
            x = x + self.body(x, x, x, need_weights=False)[0]
        else:
            x = self.body(x)[0]
        return self.readout(x.mean(1))


def reader(body: str, width: int) -> nn.Module:
    """A `Reader` with heads of 8."""
    return Reader(body, width, width // 8)


class Network(nn.Module):
    """An MLP whose readout may be that of mup."""

    def __init__(self, width: int, readout: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.input, self.hidden = nn.Linear(16, width), nn.Linear(width, width)
        self.readout = readout(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, 16) sequences, averaged -> logits."""
        return self.readout(torch.relu(self.hidden(torch.relu(self.input(x.mean(1))))))


def network(width: int) -> nn.Module:
    """An MLP of torch alone."""
    return Network(width, nn.Linear)


def of_mup(body: str, optimizer: str, width: int) -> Any:
    """A model with the readout, the base shapes and the optimizer of mup."""
    mup = library("mup")
    models = []
    for size in (width, BASE, 2 * BASE):
        model = Network(size, mup.MuReadout) if body == "mlp" else reader(body, size)
        if body != "mlp":
            model.readout = mup.MuReadout(size, CLASSES)
        models.append(model)
    mup.set_base_shapes(models[0], models[1], delta=models[2])
    rate = 0.1 if optimizer == "MuSGD" else LR
    return models[0], getattr(mup, optimizer)(models[0].parameters(), lr=rate)


def with_adamw(family: Family, width: int, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model as its library makes it, and AdamW: SP."""
    made = family.model(width, **options)
    return made, torch.optim.AdamW(made.parameters(), lr=LR)


def fans(module: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan-in, fan-out) of a parameter by the kind of its module."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    if isinstance(module, nn.Embedding):
        return 1, shape[1]
    if type(module).__name__ == "Conv1D":  # of transformers: (in, out)
        return shape[0], shape[1]
    if name in STACKED:
        return shape[2], shape[1]
    if name not in ("A_log", "pos_embed", "cls_token", "position_embeddings"):
        return math.prod(shape[1:]), shape[0]
    return 1, math.prod(shape)


def in_mup(family: Family, width: int, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same model in µP by hand, for AdamW (Yang et al. 2022, arXiv:2203.03466, table 8).

    Hidden matrices and readouts are drawn anew and learn at lr / m; what is not a matrix of a growing fan-in stays. An
    eps of 1e-8 would be above the gradients of a ConvNeXt, whose branches start at 1e-6, the more so the wider it is.
    """
    made, m = family.model(width, **options), width / BASE
    with torch.device("meta"):
        wider = family.model(2 * width)
    grown = dict(wider.named_parameters())
    slow, fast = [], []
    for path, module in made.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if any(parameter is p for p in (*slow, *fast)):
                continue
            fan_in, fan_out = fans(module, name, tuple(parameter.shape))
            more_in, more_out = fans(module, name, tuple(grown[full].shape))
            if more_in <= fan_in:
                fast.append(parameter)
                if (fan_in > 1 and more_out > fan_out) or "relative_attention_bias" in full:
                    nn.init.normal_(parameter, std=fan_in**-0.5)
                continue
            slow.append(parameter)
            reads_out = (
                more_out == fan_out in (CLASSES, VOCABULARY)
            )  # and is no router, and no key or value that heads share
            nn.init.normal_(parameter, std=1 / fan_in if reads_out else fan_in**-0.5)
    if family.scaled_by:
        for module in made.modules():
            if hasattr(module, family.scaled_by):
                setattr(module, family.scaled_by, getattr(module, family.scaled_by) * m**-0.5)
    if family.readout:
        made.get_submodule(family.readout).register_forward_pre_hook(partial(_divided, m**family.divided))
    groups = [{"params": fast}, {"params": slow, "lr": LR / m}]
    return made, torch.optim.AdamW(groups, lr=LR, weight_decay=0.0, eps=1e-15)


def _divided(by: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0] / by, *args[1:])


def _hf(kind: str, head: str, fields: Any, batch: Any = tokens, **options: Any) -> Family:
    return Family("transformers", partial(transformers_model, kind, head, fields), batch, **options)


KEY_BIAS = {f"*{key}.bias": "the loss on the probe does not depend on it" for key in ("key", "k_proj")}
_CE = nn.functional.cross_entropy
FAMILIES: dict[str, Family] = {
    "gpt2": _hf("GPT2", "LMHeadModel", _gpt2, readout="lm_head", fused=True),
    "gpt2 heads=4": _hf(
        "GPT2", "LMHeadModel", partial(_gpt2, heads=4), scaled_by="scaling", readout="lm_head", fused=True
    ),
    "llama": _hf("Llama", "ForCausalLM", _llama, fused=True),
    "llama heads=4": _hf("Llama", "ForCausalLM", partial(_llama, heads=4), scaled_by="scaling", fused=True),
    "llama mqa": _hf("Llama", "ForCausalLM", partial(_llama, num_key_value_heads=1), fused=True),
    "qwen3": _hf("Qwen3", "ForCausalLM", _qwen3, fused=True),
    "mixtral": _hf("Mixtral", "ForCausalLM", _mixtral, fused=True),
    "qwen3-moe": _hf("Qwen3Moe", "ForCausalLM", _qwen3_moe, fused=True),
    "mamba": _hf("Mamba", "ForCausalLM", _mamba, readout="lm_head"),
    "mamba2": _hf("Mamba2", "ForCausalLM", _mamba2),
    "deepseek-v3": _hf("DeepseekV3", "ForCausalLM", _deepseek, fused=True),
    "convnext": _hf("ConvNext", "ForImageClassification", _convnext, partial(images, 32)),
    "bert": _hf("Bert", "ForMaskedLM", _bert, readout="cls.predictions.decoder", not_visible=KEY_BIAS, fused=True),
    "t5": _hf("T5", "ForConditionalGeneration", _t5, readout="lm_head", divided=0.5, fused=True),
    "vit": _hf("ViT", "ForImageClassification", _vit, images, not_visible=KEY_BIAS, fused=True),
    "timm resnet": Family("timm", partial(timm_model, "resnet18"), partial(pixels, 32), _CE),
    "timm vit": Family("timm", partial(timm_model, "vit_tiny_patch16_224"), pixels, _CE),
    **{
        f"torch {body}": Family("torch", partial(reader, body), sequences, _CE)
        for body in ("encoder", "decoder", "attention", "LSTM", "GRU")
    },
    **{
        f"mup {body} {optimizer}": Family("mup", model, sequences, _CE, mup=partial(of_mup, body, optimizer))
        for body, model in (("mlp", network), ("encoder", partial(reader, "encoder")))
        for optimizer in ("MuAdam", "MuAdamW", "MuSGD")
    },
}
