"""What of a report a figure shows: which steps, which layers, how large; few enough to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Integral
from typing import NamedTuple

import pandas as pd

from coordcheck.analysis.designs import decisive, spread
from coordcheck.analysis.measurements import judged
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import OF_SITES
from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.words import Quantity

MOST_COLUMNS = 6  # steps of a figure that chooses them itself
MOST_INCHES = 200  # of a figure, in each direction


@dataclass(frozen=True)
class View:
    """What a caller asks of a figure; the figure chooses what is None."""

    quantity: Quantity | None = None
    steps: tuple[int, ...] | None = None
    layers: tuple[str, ...] | None = None
    """Globs of layers, or of parameters where a row is one."""
    figsize: tuple[float, float] | None = None
    """Width and height in inches."""

    def named(self, names: pd.Series) -> pd.Series:
        """Which of these layers, or parameters, are to be drawn: a boolean per name.

        Raises:
            CoordCheckError: a glob that none of them matches.
        """
        if self.layers is None:
            return pd.Series(True, names.index)
        known = list(dict.fromkeys(names))
        wanted: set[str] = set()
        for glob in self.layers:
            found = {name for name in known if fnmatchcase(name, glob)}
            if not found:
                near = get_close_matches(glob, known, 3) or known[:3]
                raise CoordCheckError(
                    f"layers= names {glob!r}, which matches none of {len(known)} names. Give a name or a glob, such as "
                    f"{', '.join(map(repr, near))}."
                )
            wanted |= found
        return names.isin(wanted)


def view_of(
    quantity: str | Quantity | None = None,
    steps: Sequence[int] | int | None = None,
    layers: Sequence[str] | str | None = None,
    figsize: Sequence[float] | None = None,
) -> View:
    """A view of what a caller gave.

    Raises:
        CoordCheckError: an unknown quantity, steps that are no numbers of updates, layers that are no names, or a size
            that is no pair of positive numbers.
    """
    if quantity is not None and quantity not in OF_SITES:
        raise CoordCheckError(f"there is no quantity {quantity!r}; known are {', '.join(map(repr, OF_SITES))}.")
    chosen = [steps] if isinstance(steps, int) else steps
    if chosen is not None and not (isinstance(chosen, Iterable) and all(map(_is_step, chosen))):
        raise CoordCheckError(f"steps= must be numbers of updates, got {steps!r}. Give steps=(0, 1, 4), say.")
    globs = [layers] if isinstance(layers, str) else layers
    if globs is not None and not (isinstance(globs, Iterable) and all(isinstance(glob, str) for glob in globs)):
        raise CoordCheckError(f"layers= must be names or globs, got {layers!r}. Give layers='blocks.0.*', say.")
    if figsize is not None and not _is_size(figsize):
        raise CoordCheckError(f"figsize= must be two positive numbers of inches, got {figsize!r}. Give (7, 3), say.")
    return View(
        None if quantity is None else Quantity(quantity),
        None if chosen is None else tuple(map(int, chosen)),
        None if globs is None else tuple(globs),
        None if figsize is None else (float(figsize[0]), float(figsize[1])),
    )


def _is_step(given: object) -> bool:
    return isinstance(given, Integral) and int(given) >= 0


def _is_size(given: Sequence[float]) -> bool:
    """Whether these are two positive numbers; a figure of more than `MOST_INCHES` is a mistake of units."""
    try:
        numbers = [float(number) for number in given]
    except (TypeError, ValueError):
        return False
    return len(numbers) == 2 and all(0 < number <= MOST_INCHES for number in numbers)


class Column(NamedTuple):
    """One panel of each label: a quantity at a step."""

    quantity: Quantity
    step: int


def columns(report: Result, view: View, most: int = MOST_COLUMNS) -> list[Column]:
    """The panels of a label, in order of steps: what verdicts are read from, or one quantity.

    Verdicts are read from the scale at t = 0 and from the change after it; where no change could be measured, as on a
    stream of batches, the scale stands for it.

    Raises:
        CoordCheckError: a quantity that was not measured, or a step.
    """
    table = judged(report.measurements)
    table = table[table["value"].notna() | table["status"].isin(["nan", "inf"])]
    known = {Quantity(name): sorted(map(int, rows.unique())) for name, rows in table.groupby("quantity")["step"]}
    if view.quantity is not None:
        if view.quantity not in known:
            raise CoordCheckError(
                f"{view.quantity.value} was not measured, so it cannot be drawn (change needs steps >= 1)."
            )
        found = [Column(view.quantity, step) for step in known[view.quantity]]
    else:
        changes = set(known.get(Quantity.CHANGE, []))
        scales = known.get(Quantity.ACTIVATION, [])
        if changes:
            scales = [step for step in scales if step == 0]
        found = [Column(Quantity.ACTIVATION, step) for step in scales]
        found += [Column(Quantity.CHANGE, step) for step in sorted(changes)]
    if not found:
        raise CoordCheckError("no scale was measured, so there is nothing to draw.")
    chosen = chosen_steps(report, [column.step for column in found], view, most)
    return [column for column in found if column.step in chosen]


def chosen_steps(report: Result, known: Sequence[int], view: View, most: int = MOST_COLUMNS) -> list[int]:
    """The steps to draw: those asked for, or at most so many; the first, the last, those that decided a verdict first.

    Raises:
        CoordCheckError: a step that was not measured.
    """
    if view.steps is not None:
        strange = [step for step in view.steps if step not in known]
        if strange or not view.steps:
            told = ", ".join(map(str, known)) if len(known) <= 12 else f"{known[0]} to {known[-1]}"
            what = f"has {', '.join(map(str, strange))}, which" if strange else "is empty, and what"
            raise CoordCheckError(f"steps= {what} was not measured for this figure; known steps are {told}.")
        return sorted(set(view.steps))
    return spread(known, most, decisive(report))
