"""Masked logits that are returned."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faultbench.families import INPUTS, linear
from faultbench.faults import init, lr
from faultbench.foreign.kit import Kind


class ShowsLogits(nn.Module):
    """Causal attention that returns its masked logits as well."""

    def __init__(self, width: int, fill: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (linear(width, width, "hidden") for _ in range(4))
        self.fill, self.attend = fill, Attend(fill)

    def forward(self, x: Tensor) -> Tensor:
        normal = F.layer_norm(x, x.shape[-1:])
        heads = (p(normal).unflatten(-1, (4, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        mixed, _ = self.attend(*heads)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Attend(nn.Module):
    """Queries, keys and values -> what they mix to, and their masked logits."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        logits = query @ key.transpose(-2, -1) * (4 / query.shape[-1])
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(mask, self.fill)
        return logits.softmax(-1) @ value, logits


class MaskedClasses(nn.Module):
    """A net whose last three classes are not allowed, and whose logits are returned with the mask."""

    def __init__(self, width: int, fill: float) -> None:
        super().__init__()
        self.input, self.hidden = linear(INPUTS, width, "input", bias=True), linear(width, width, "hidden", bias=True)
        self.readout, self.fill = linear(width, 13, "readout"), fill

    def forward(self, x: Tensor) -> Tensor:
        logits = self.readout(F.gelu(self.hidden(F.gelu(self.input(x)))))
        return logits.masked_fill(torch.arange(13, device=x.device) >= 10, self.fill)


class MaskedMoE(nn.Module):
    """A mixture of four experts that returns its router's logits, all but the two largest masked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = linear(width, 4, "narrow")
        self.experts = nn.ModuleList(linear(width, width, "hidden") for _ in range(4))
        self.mask = TopTwo()

    def forward(self, x: Tensor) -> Tensor:
        gates = self.mask(self.router(x)).softmax(-1)
        return sum(gates[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class TopTwo(nn.Module):
    """Logits with all but the two largest masked."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits < logits.topk(2).values[..., -1:], float("-inf"))


def _masked() -> None:
    kind = Kind("o", "masked logits that are returned")
    lowest = torch.finfo(torch.float32).min
    shown = kind.net("shown logits, finfo.min", lambda n: ShowsLogits(n, lowest), times=6, residual=True)
    infinite = kind.net("shown logits, -inf", lambda n: ShowsLogits(n, -math.inf), "sign", times=6, residual=True)
    classes = kind.family("masked classes, -inf", lambda n: MaskedClasses(n, -math.inf))
    classes_sgd = kind.family("masked classes, finfo.min", lambda n: MaskedClasses(n, lowest), "sgd")
    experts = kind.net("masked router", MaskedMoE, "adamw")
    for family in (shown, infinite, classes, classes_sgd, experts):
        kind.healthy(family)
    kind.planted(shown, "query lr", "base rate of the queries", lr(1, "middle.query.weight"))
    kind.planted(infinite, "output init", "constant size behind masked logits", init(0.5, "middle.output.weight"))
    kind.planted(classes, "hidden lr", "base rate in front of masked logits", lr(1, "hidden.weight"))
    kind.planted(classes, "readout init", "the readout as a hidden layer", init(0.5, "readout.weight"))
    kind.planted(classes_sgd, "readout lr", "the readout keeps its rate", lr(1, "readout.weight"))
    kind.planted(classes_sgd, "bias lr const", "a bias without SGD's factor n", lr(-1, "hidden.bias"))
    kind.planted(experts, "input lr 1/n", "in front of a masked router", lr(-1, "input.weight"))
    kind.planted(experts, "readout init", "behind a masked router", init(0.5, "readout.weight"))


_masked()
