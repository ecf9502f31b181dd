"""Blueprints: what `build(width)` makes, as plain data without any values. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

Shape = tuple[int, ...]


class Place(str, Enum):
    """Where a model was built to be looked at."""

    META = "meta"
    """On the meta device: shapes without memory or arithmetic."""
    PARAMETERS = "parameters on meta"
    """Every tensor for real, but each parameter moved to the meta device as soon as its module holds it."""
    REAL = "for real"
    FAILED = "failed"
    NOT_BUILT = "not built"
    """It cannot be built on the meta device, and would be large for real."""

    @property
    def built(self) -> bool:
        return self in (Place.META, Place.PARAMETERS, Place.REAL)


class Fan(NamedTuple):
    """How one parameter is used, as far as the kind of its module tells."""

    inputs: int
    """Coordinates of the input that one coordinate of the output sums over."""
    outputs: int
    elementwise: bool = False
    """Added or multiplied coordinate by coordinate: biases, gains."""


class Drawn(NamedTuple):
    """One parameter of one model before training, as the optimizer holds it."""

    name: str
    shape: Shape | None
    """None of a lazy parameter, whose shape a first forward pass tells."""
    bytes: int
    fan: Fan | None
    """None where the module is none of torch's own, or the parameter is lazy."""
    learning_rate: float | None
    """None when no optimizer holds it."""
    weight_decay: float | None
    trainable: bool
    holders: int
    """How many parameter groups hold it."""
    tied: tuple[str, ...]
    """Its other names in the model."""
    pulled: bool | None = None
    """Whether a decay moves it by learning rate times weight decay; None where that is not known."""

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        count = 1
        for length in self.shape or ():
            count *= length
        return 0 if self.shape is None else count


@dataclass(frozen=True)
class Blueprint:
    """What `build(width)` of one label made, or why it made nothing."""

    label: str
    width: int
    place: Place
    reason: str = ""
    """Why it failed, was not built, or was not built on the meta device."""
    parameters: tuple[Drawn, ...] = ()
    foreign: tuple[Shape, ...] = ()
    """Shapes of what the optimizers hold and the model does not."""
    optimizer: str = ""
    """The optimizers' class names."""
    state_bytes: int | None = None
    """Of the optimizers' state after an update on the meta device; None where that was not possible."""
    seconds: float = 0.0
    """That building took."""

    @property
    def size(self) -> int:
        """Coordinates of all parameters, tied ones counted once."""
        return sum(drawn.size for drawn in self.parameters)

    @property
    def bytes(self) -> int:
        return sum(drawn.bytes for drawn in self.parameters)

    @property
    def training_bytes(self) -> int:
        """Parameters, gradients and (where it is known) optimizer state; no activations."""
        gradients = sum(drawn.bytes for drawn in self.parameters if drawn.trainable and drawn.holders)
        return self.bytes + gradients + (self.state_bytes or 0)


def by_name(blueprints: Iterable[Blueprint]) -> dict[str, dict[int, Drawn]]:
    """Every parameter across the widths of one label, in the order in which the models register them."""
    found: dict[str, dict[int, Drawn]] = {}
    for blueprint in blueprints:
        for drawn in blueprint.parameters:
            found.setdefault(drawn.name, {})[blueprint.width] = drawn
    return found
