"""What a check would do, in counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordcheck.checks.plans.blueprints import Blueprint, Place


@dataclass(frozen=True)
class Cost:
    """Runs, passes, parameters and memory of a check."""

    runs: int
    forwards: int
    updates: int
    diagnosed: int
    """Runs that are diagnosed as well: built again, with an update or two on a few examples."""
    parameters: int
    """Parameters of all runs whose model could be built."""
    widest: int
    """The largest width at which a model could be built; 0 when none could."""
    widest_ratio: float
    """Parameters of the largest model over those of its label's smallest; NaN of one width."""
    widest_share: float
    """Share of the models at `widest` in all parameters trained."""
    training_bytes: int
    """Parameters, gradients and optimizer state of the largest model; activations come on top."""
    state_known: bool
    """Whether the optimizer state is in `training_bytes`."""


def cost_of(blueprints: Sequence[Blueprint], *, seeds: int, steps: int, diagnosed: int) -> Cost:
    """The cost of training every blueprint with every seed for t = 0..steps.

    >>> two = [Blueprint("SP", 64, Place.META), Blueprint("SP", 128, Place.META)]
    >>> cost_of(two, seeds=3, steps=4, diagnosed=4).updates
    24
    """
    runs = len(blueprints) * seeds
    built = [blueprint for blueprint in blueprints if blueprint.place.built]
    total = sum(blueprint.size for blueprint in built)
    widest = max((blueprint.width for blueprint in built), default=0)
    largest = max(built, key=lambda one: one.training_bytes, default=Blueprint("", 0, Place.FAILED))
    sizes = [blueprint.size for blueprint in built if blueprint.label == largest.label]
    several = len(sizes) > 1 and min(sizes) > 0
    return Cost(
        *(runs, runs * (steps + 1), runs * steps, diagnosed, total * seeds, widest),
        widest_ratio=largest.size / min(sizes) if several else math.nan,
        widest_share=sum(one.size for one in built if one.width == widest) / total if total else math.nan,
        training_bytes=largest.training_bytes,
        state_known=largest.state_bytes is not None,
    )
