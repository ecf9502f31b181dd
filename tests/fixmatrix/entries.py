"""Models and the optimizers that train them: library initialisation, and one learning rate for every parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

WIDTHS = (64, 128, 256)
RATES = {"adam": 1e-3, "momentum": 0.05, "muon": 0.02}
Optimizers = Optimizer | Sequence[Optimizer]


class Model(NamedTuple):
    """A model at every width, as its library makes it, and what it is trained on."""

    make: Callable[[int], nn.Module]
    batch: Callable[[int], Any]
    """Of a seed."""
    loss: Callable[..., Tensor] | None = None
    optimizers: tuple[str, ...] = ("adam",)
    slower: float = 1.0
    """Times the usual rates: a router's choice jumps, and a step that changes it tells little else."""


class Entry(NamedTuple):
    """One line of the matrix."""

    name: str
    model: Model
    kind: str

    def build(self, width: int) -> tuple[nn.Module, Any]:
        """The model in SP, and its optimizer."""
        made = self.model.make(width)
        found = optimizers(self.kind, made, partial(self.model.make, 2 * width))
        for optimizer in found if isinstance(found, list) else [found]:
            for group in optimizer.param_groups:
                group["lr"] *= self.model.slower
        return made, found


def optimizers(kind: str, model: nn.Module, wider: Callable[[], nn.Module]) -> Any:
    """Adam, SGD with momentum, or Muon for matrices of which both sides grow, and AdamW for the others."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if kind == "adam":
        return Adam(trained.values(), lr=RATES["adam"])
    if kind == "momentum":
        return SGD(trained.values(), lr=RATES["momentum"], momentum=0.9)
    with torch.device("meta"):
        grown = dict(wider().named_parameters())
    hidden = [
        p
        for name, p in trained.items()
        if p.ndim == 2 and all(a > b for a, b in zip(grown[name].shape, p.shape, strict=True))
    ]
    others = [p for p in trained.values() if all(p is not q for q in hidden)]
    return [
        torch.optim.Muon(hidden, lr=RATES["muon"], weight_decay=0.0),
        AdamW(others, lr=RATES["adam"], weight_decay=0.0),
    ]
