"""The rows of a figure that has a row per name: all, or repeated blocks as one, and at most so many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import coordcheck.reporting.figures.style as style
from coordcheck.runs.repeats import ANY, starred, together

MAX_ROWS = 40  # beyond it, the names of repeated blocks share rows
MOST_ROWS = 60  # rows that are drawn at most
LONGEST = 48  # characters of a row's name; of a longer one the end is shown


class Rows(NamedTuple):
    """Which row each name stands in."""

    texts: list[str]
    """Of the rows, from the first to the last."""
    place: dict[str, int]
    """Name -> row; names that are left out have none."""
    note: str
    """What the rows do not show; empty when that is nothing."""


def rows_of(names: Sequence[str], badness: Mapping[str, float], most: int = MOST_ROWS) -> Rows:
    """Names in rows, in their order.

    Args:
        names: in the order of the rows; each once.
        badness: of each name: the worst rows are kept where there are too many.
        most: rows at most.

    >>> rows_of(["a", "b"], {})
    Rows(texts=['a', 'b'], place={'a': 0, 'b': 1}, note='')
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name if len(names) <= MAX_ROWS else starred(name), []).append(name)
    note = "repeated blocks share a row" if len(groups) < len(names) else ""
    if len(groups) > most:
        worst = sorted(groups, key=lambda key: -max(badness.get(name, 0.0) for name in groups[key]))[:most]
        note = f"the worst {most} of {len(groups):,} rows" + (f"; {note}" if note else "")
        groups = {key: own for key, own in groups.items() if key in set(worst)}
    place = {name: number for number, own in enumerate(groups.values()) for name in own}
    return Rows([_text(key, own) for key, own in groups.items()], place, note)


def _text(key: str, names: Sequence[str]) -> str:
    """A row's name: the only one, or one that says which they are, or how many."""
    if len(names) == 1:
        return style.short(names[0], LONGEST)
    found = together(names, ANY)
    text = found[0][0] if len(found) == 1 and len(found[0][0]) <= LONGEST else key
    return f"{style.short(text, LONGEST)} ({len(names):,})"
