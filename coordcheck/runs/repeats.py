"""Names that differ in numbers only, such as those of repeated blocks, told as one name that hides none of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import prod

PARTS = re.compile(r"(?<![^.\[])\d+(?![^.\]])")
"""The numbers that are a whole part of a path, or an index: those that count blocks."""
ANY = re.compile(r"\d+")


def starred(name: str, numbers: re.Pattern[str] = ANY) -> str:
    """A name with its numbers left out, alike for all repeats.

    >>> starred("blocks.12.fc1")
    'blocks.*.fc*'
    >>> starred("blocks.12.fc1", PARTS)
    'blocks.*.fc1'
    """
    return numbers.sub("*", name.replace("*", "**"))  # a star of the name's own is no number


def pattern(name: str) -> str:
    """A name without the numbers that stand between two of its parts: parameters of repeated blocks are alike.

    >>> pattern("blocks.12.mlp.up.weight")
    'blocks.*.mlp.up.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def together(names: Sequence[str], numbers: re.Pattern[str] = PARTS) -> list[tuple[str, tuple[str, ...]]]:
    """Names of one pattern as few names as say exactly which there are, numbers in braces as a shell expands them.

    Args:
        names: that differ in their numbers only.
        numbers: which of the digits in them are numbers that may differ.

    Returns:
        (the name of several, those that it stands for), in the order in which the names came.

    >>> together(["blocks.0.up", "blocks.1.up", "blocks.2.up", "blocks.4.up"])
    [('blocks.{0..2,4}.up', ('blocks.0.up', 'blocks.1.up', 'blocks.2.up', 'blocks.4.up'))]
    >>> [name for name, _ in together(["b.0.net.1", "b.0.net.3", "b.1.net.3"])]
    ['b.0.net.{1,3}', 'b.1.net.3']
    """
    found = {name: tuple(numbers.findall(name)) for name in names}
    columns = [list(dict.fromkeys(column)) for column in zip(*found.values(), strict=True)]
    if prod(map(len, columns)) == len(found):
        texts = iter(map(_braced, columns))
        return [(numbers.sub(lambda _: next(texts), names[0]), tuple(found))]
    # no full grid: apart by the number that takes the fewest values, until each part is one
    by = min((len(column), place) for place, column in enumerate(columns) if len(column) > 1)[1]
    apart: dict[str, list[str]] = {}
    for name, values in found.items():
        apart.setdefault(values[by], []).append(name)
    return [one for part in apart.values() for one in together(part, numbers)]


def _braced(numbers: Sequence[str]) -> str:
    """Numbers as one text: `3`, or `{0..5,7}`; three or more in a row are a range, and so are many that are even."""
    if len(numbers) == 1:
        return numbers[0]
    if any(len(number) > 15 or str(int(number)) != number for number in numbers):  # 007 is not 7
        return f"{{{','.join(numbers)}}}"
    ordered = sorted(map(int, numbers))
    steps = {after - before for before, after in pairwise(ordered)}
    if len(steps) == 1 and len(ordered) > 3 and steps != {1}:
        return f"{{{ordered[0]}..{ordered[-1]}..{steps.pop()}}}"
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return f"{{{','.join(texts)}}}"
