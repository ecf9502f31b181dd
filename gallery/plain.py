"""Models as people write them: in PyTorch's or their library's initialisation, with one learning rate."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config

import coordcheck
import lesson
from coordcheck.models import transformer

SIZES: dict[str, Any] = dict.fromkeys(("n_head", "n_layer"), 2) | dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
PLAIN: dict[str, Any] = {"loss_type": "ForCausalLM"} | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0)

decoder = transformer("SP", grows="heads", head_size=16, base_width=32, context=32, depth=2)
# the standard deviation of its matrices, 0.02, is that of its width of 768; its readout is tied
gpt2 = coordcheck.huggingface(GPT2Config(n_embd=32, vocab_size=256, initializer_range=0.1, **SIZES, **PLAIN))


def convolutions(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two convolutions of images of 8 x 8, and a readout of what is left of them."""
    first, second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, stride=2, padding=1)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), first, nn.ReLU(), second, nn.ReLU(), nn.AvgPool2d(2))
    model.extend([nn.Flatten(), nn.Linear(4 * width, 10)])
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def text(seed: int, sequences: int = 16, **where: bool) -> dict[str, Tensor]:
    """Bytes as GPT-2 takes them: (sequences, time)."""
    tokens = lesson.text_batch(sequences, seed=seed, **where)[:, :-1]
    return {"input_ids": tokens, "labels": tokens}


pieces: Any = partial(lesson.text_batch, 16)
images: Any = partial(lesson.taught, examples=64)
