"""Which update moved a parameter first; and of one that never moved, whether its gradients could have moved it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordcheck.analysis.logs import Array, Logs
from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.runs.records import BEGINS, BETWEEN, ROUNDED_AWAY
from coordcheck.runs.words import Quantity, Role

NONE = 2.0**-126  # a gradient below this is what underflow left of one: the smallest normal number of single precision
LEFT = 1e-3  # of the largest gradient at t=0, below which none is left
HALF_ULPS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
NOTHING_LEFT = (
    "no gradient is left after the first updates, as where the probe is learnt: lower the learning rate, or "
    "give a probe of more examples"
)


def first_movement(logs: Logs, number: int) -> int:
    """The first step at which the parameter had moved in every run, by more than a decay that needs no gradient.

    Where there is none, in every run that has a gradient of it: the probe may give an expert nothing in some.
    """
    somewhere = 0
    for step in logs.steps:
        change = logs.values(Quantity.WEIGHT_UPDATE, step)[number]
        later = logs.values(Quantity.WEIGHT_UPDATE, step + 1)[number] if step + 1 in logs.steps else change
        gradient = logs.values(Quantity.WEIGHT_GRADIENT, max(step - 1, 0))[number]
        seen = np.isfinite(change)
        if not step or not seen.any() or (gradient[seen] == 0).all() or (change < BEGINS * later)[seen].all():
            continue
        if (change[seen] > 0).all():
            return int(step)
        if (change[seen & (gradient > 0)] > 0).all() and (gradient[seen] > 0).any():
            somewhere = somewhere or int(step)
    return somewhere


class Stillness(NamedTuple):
    """Of each use, what its gradients say where it does not move."""

    has_gradient: list[bool]
    frozen: list[bool]
    """Whether updates followed gradients that could move it at every width, and moved it in no run."""
    faint: list[str]
    """Why no gradient could move it, where none did; empty elsewhere."""

    @classmethod
    def of(cls, logs: Logs, uses: Sequence[UseAcrossWidths]) -> Stillness:
        """What is known of all uses."""
        if not logs.steps:
            return cls([False] * len(uses), [False] * len(uses), [""] * len(uses))
        rounding, nothing_left = _rounding(logs, uses), _nothing_left(logs)
        found = cls([], [], [])
        for number, use in enumerate(uses):
            gradients = np.array([logs.values(Quantity.WEIGHT_GRADIENT, step)[number] for step in logs.steps])
            before = np.array([logs.values(Quantity.WEIGHT_GRADIENT, max(s - 1, 0))[number] for s in logs.steps])
            changes = np.array([logs.values(Quantity.WEIGHT_UPDATE, step)[number] for step in logs.steps])
            updated = np.isfinite(changes) & (np.array(logs.steps) > 0)[:, None, None]
            followed = updated & (before > NONE)
            could = followed & ~_loses(before, logs, number, use)
            still = not (changes[followed] > 0).any()
            at_all_widths = bool((could.any(axis=(0, 1)) | ~updated.any(axis=(0, 1))).all())
            late = nothing_left and not (gradients[:1] > NONE).any()
            idle = still or (late and (use.degree or 0.0) > BETWEEN[1])  # else a decay moved it
            why = NOTHING_LEFT if late else ROUNDED_AWAY if followed.any() else ""
            found.has_gradient.append(bool((gradients > NONE).any()) and not rounding[number])
            found.frozen.append(still and bool(could.any()) and (at_all_widths or not use.of_rate_above_zero))
            found.faint.append(why if idle and updated.any() and not could.any() and not rounding[number] else "")
        return found


def _loses(gradients: Array, logs: Logs, number: int, use: UseAcrossWidths) -> NDArray[np.bool_]:
    """Whether gradients times the learning rate are at most half a rounding of the parameter: (step, seed, width).

    Not so of a parameter that no optimizer holds, or with a learning rate of 0.
    """
    rates = np.array([use.rates.get(int(width), np.nan) if use.of_rate_above_zero else np.nan for width in logs.widths])
    least = HALF_ULPS.get(use.dtype, HALF_ULPS["float32"]) * np.nan_to_num(logs.values(Quantity.WEIGHT)[number])
    return np.asarray(gradients * rates <= least)


def _nothing_left(logs: Logs) -> bool:
    """Whether the gradients of all parameters vanish in every run after the first updates."""
    largest = np.array([_largest(logs.values(Quantity.WEIGHT_GRADIENT, step)) for step in logs.steps])
    return bool(largest.size) and bool((largest < LEFT * largest[0]).any(axis=0).all())


def _largest(values: Array) -> Array:
    """(seed, width) of all uses; NaN where nothing is known of any."""
    known = np.where(np.isfinite(values), values, -1.0).max(axis=0)
    return np.where(known < 0, np.nan, known)


def _rounding(logs: Logs, uses: Sequence[UseAcrossWidths]) -> list[bool]:
    """Vectors on which the loss does not depend: a key's bias, whose gradient sums to zero but for rounding."""
    bounds, largest = 2 ** logs.of([use.roundings for use in uses]), np.zeros(len(uses))
    for step in logs.steps:
        gradient = logs.values(Quantity.WEIGHT_GRADIENT, step)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = gradient / logs.values(Quantity.GRADIENT, step) / bounds
        known = np.where(np.isfinite(share), share, -1.0)
        largest = np.maximum(largest, known.max(axis=(1, 2)))
    vectors = [use.role in (Role.VECTOR, Role.CONSTANT) for use in uses]
    return [bool(vector and 0 < share < 1) for vector, share in zip(vectors, largest, strict=True)]
