"""One fault in a healthy model, drawn by the name of the architecture."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

import torch

from sweep.mup import ARCHITECTURES, BASE, Setup


class Planted(NamedTuple):
    """m ** power too much in one matrix: in its initial values, its learning rate, or the multiplier of its output."""

    parameter: str
    cause: str
    power: float
    degree: int
    """Of the optimizer: 1 for SGD."""

    def __str__(self) -> str:
        return f"{self.parameter}: {self.cause} × m^{self.power:+g}"

    def __call__(self, setup: Setup) -> None:
        """Break a model; a multiplier that was forgotten is one that the weights and their rates were set for."""
        init, lr = self.exponents
        with torch.no_grad():
            setup.parameters[self.parameter].mul_(setup.growth**init)
        setup.rates[self.parameter] *= setup.growth**lr

    @property
    def exponents(self) -> tuple[float, float]:
        """The powers of m in the initial values and in the learning rate."""
        shifted = self.power, (1 + self.degree) * self.power
        return {"init": (self.power, 0.0), "lr": (0.0, self.power), "multiplier": shifted}[self.cause]


FAULTS = {
    "input": (("init", 0.5), ("init", -0.5), ("lr", 0.5), ("lr", -0.5), ("lr", -1), ("multiplier", 0.5)),
    "hidden": (("init", 0.5), ("init", -0.5), ("lr", 0.5), ("lr", -0.5), ("lr", 1), ("multiplier", 0.5)),
    # a readout that starts too small is none
    "readout": (("init", 0.5), ("lr", 0.5), ("lr", 1), ("multiplier", 1)),
}
"""Role -> what may go wrong with such a matrix."""


@cache
def choices(name: str) -> tuple[Planted, ...]:
    """Every fault that an architecture can have."""
    model = ARCHITECTURES[name]
    with torch.random.fork_rng([]):
        setup = Setup.of(model, BASE)
    return tuple(
        Planted(parameter, cause, power, int(model.optimizer == "sgd"))
        for parameter, role in setup.roles.items()
        if (tensor := setup.parameters[parameter]).requires_grad and tensor.ndim > 1
        if not any(fnmatchcase(parameter, glob) for glob in model.spare)
        for cause, power in FAULTS.get(role, ())
        if cause == "lr" or tensor.any()
    )


def planted(name: str, draw: int = 0) -> Planted:
    """The fault that an architecture is given: cause and matrix follow from the hash of its name and of the draw."""
    found = choices(name)
    text = f"{name} {draw}" if draw else name
    return found[int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % len(found)]
