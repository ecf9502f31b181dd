"""How two runs differ: in their settings, and, where a run was made twice, in its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from coordcheck.runs.records import RunRecord


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs between two runs' settings, one text each.

    >>> differences({"steps": "4", "loss": "mse"}, {"steps": "3", "loss": "mse"})
    ['steps was 4, is 3']
    """
    return [
        f"{name} was {before.get(name, 'not set')}, is {after.get(name, 'not set')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


class Difference(NamedTuple):
    """The largest difference between two records of one run."""

    relative: float
    """|a - b| / max(|a|, |b|): 0 where all values are equal, infinite where one alone is a number."""
    where: str
    values: int
    """How many values were compared."""

    def __str__(self) -> str:
        if not self.relative:
            return f"all {self.values} values are identical"
        size = f"by up to {self.relative:.2g}, relative" if math.isfinite(self.relative) else "as one is no number"
        return f"values differ {size}, in {self.where}"


def largest_difference(one: RunRecord, other: RunRecord) -> Difference:
    """Compare every scale and loss of two records of the same run.

    Returns:
        The largest relative difference, dimensionless, and where it is.
    """
    first, second = _values(one), _values(other)
    worst, where = 0.0, ""
    for place in [*first, *(place for place in second if place not in first)]:
        distance = _distance(first.get(place), second.get(place))
        if distance > worst:
            worst, where = distance, place
    return Difference(worst, where, len(first))


def _values(record: RunRecord) -> dict[str, float | str | None]:
    """Every number of a record, or the status that stands for it, by the words for its place."""
    names = [site.layer for site in record.sites]
    found: dict[str, float | str | None] = {
        f"{row.quantity.value} of {names[row.site]} at t={row.step}": row.status.value
        if row.value is None
        else row.value
        for row in record.rows
    }
    found.update({f"the loss at t={step}": loss for step, loss in enumerate(record.losses)})
    return found


def _distance(one: float | str | None, other: float | str | None) -> float:
    if one == other:
        return 0.0
    if not isinstance(one, float) or not isinstance(other, float):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other))
