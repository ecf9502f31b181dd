"""Scales that may still lie on a device, by the site, step and quantity that they are of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.runs.records import BEGINS
from coordcheck.runs.words import Quantity


class ScaleTable:
    """Scales by (site, step, quantity). Those of tensors on a device stay there until one is asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, Quantity], float] = {}
        self._waiting: dict[tuple[str, int, Quantity], Tensor] = {}

    def put(self, name: str, step: int, quantity: Quantity, scale: float | Tensor) -> None:
        key = name, step, quantity
        self._waiting.pop(key, None)
        if isinstance(scale, Tensor) and scale.device.type not in scales.IN_MEMORY:
            self._known[key] = math.nan  # keeps its place
            self._waiting[key] = scale
        else:
            self._known[key] = float(scale)

    def drop(self, name: str, step: int, quantity: Quantity) -> None:
        """Know it no longer."""
        self._waiting.pop((name, step, quantity), None)
        self._known.pop((name, step, quantity), None)

    def get(self, name: str, step: int, quantity: Quantity, default: float = 0.0) -> float:
        return self.all().get((name, step, quantity), default)

    def moved(self, name: str, steps: int) -> bool:
        """Whether one of the first updates moved a use by its gradient, and by more than what is none yet."""
        moves = [self.get(name, step, Quantity.WEIGHT_UPDATE) for step in range(1, steps + 2)]
        return any(
            move > 0 and self.get(name, step, Quantity.WEIGHT_GRADIENT) > 0 and not move < BEGINS * later
            for step, (move, later) in enumerate(pairwise(moves))
        )

    def all(self) -> Mapping[tuple[str, int, Quantity], float]:
        """Every scale, in the order of `put`; waits for the device, once."""
        waiting, self._waiting = self._waiting, {}
        by_device: dict[torch.device, list[tuple[tuple[str, int, Quantity], Tensor]]] = {}
        for key, scale in waiting.items():
            by_device.setdefault(scale.device, []).append((key, scale))
        for found in by_device.values():
            values = torch.stack([scale.detach().double() for _, scale in found]).tolist()
            self._known.update(zip((key for key, _ in found), values, strict=True))
        return self._known
