"""Batches and losses that the architectures share; every number is fixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUTS, CLASSES, VOCABULARY = 16, 10, 32


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int, of: int = CLASSES, seed: int = 1) -> Tensor:
    return torch.randint(of, shape, generator=torch.Generator().manual_seed(seed))


VECTORS = normal(8, INPUTS), labels(8)
"""8 examples of `INPUTS` numbers, with their classes."""
IMAGES = normal(4, 3, 8, 8), labels(4)
"""4 images of 3 x 8 x 8, with their classes."""
TOKENS = labels(2, 8, of=VOCABULARY), labels(2, 8, of=VOCABULARY, seed=2)
"""2 texts of 8 tokens, with the tokens that follow."""
SETS = normal(4, 6, INPUTS), labels(4)
"""4 sets of 6 elements, with their classes."""


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of logits (..., classes)."""
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def regress(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of the output."""
    return F.mse_loss(model(batch[0]), batch[1])


def own(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The loss that the model itself computes of the whole batch."""
    return model(*batch)
