"""Widths and seeds that a caller hands in, and how many runs they make."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.numbers import integer
from coordcheck.runs.reading import LARGEST, WIDEST


def distinct_widths(widths: object) -> list[int]:
    """The widths as sorted, distinct integers.

    Raises:
        CoordCheckError: none, or one that is not a positive integer.

    >>> distinct_widths([128, "64", 64])
    [64, 128]
    """
    found: list[int] = []
    for width in (
        _bounded("widths", widths) if isinstance(widths, Iterable) and not isinstance(widths, str) else [widths]
    ):
        number = integer(
            int(width) if isinstance(width, str) and width.strip().isdecimal() and len(width) < 20 else width
        )
        if number is None or not 1 <= number <= WIDEST:
            raise CoordCheckError(f"widths must be positive integers, got {width!r}. Pass widths=(64, 128, 256, ...).")
        found.append(number)
    if not found:
        raise CoordCheckError("there are no widths. Pass widths=(64, 128, 256, ...).")
    twice = sorted({width for width in found if found.count(width) > 1})
    if twice:
        logging.getLogger("coordcheck").warning("widths given twice are checked once: %s", ", ".join(map(str, twice)))
    return sorted(set(found))


def words_of(texts: str | Iterable[str]) -> list[str]:
    """The words of a list as one types it, with commas, blanks or both: `64,128`, `64 128`, `"64, 128"`.

    >>> words_of(["64,128", "256 , 512"])
    ['64', '128', '256', '512']
    """
    given = [texts] if isinstance(texts, str) else texts
    return [word for text in given for word in re.split(r"[\s,]+", text) if word]


def seeds_of(texts: str | Iterable[str]) -> int | list[int]:
    """Seeds as one types them: `3` is how many; `0,3` and `0 3` are which, and so is `0,`.

    Raises:
        CoordCheckError: a word that is no integer, or no seeds.

    >>> seeds_of("3"), seeds_of(["0", "3"]), seeds_of("0,")
    (3, [0, 3], [0])
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    words = words_of(given)
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        raise CoordCheckError(f"seeds must be {SEEDS_ARE}, got {' '.join(given)!r}.") from None
    chosen = numbers[0] if len(numbers) == 1 and not any("," in text for text in given) else numbers
    seed_numbers(chosen)
    return chosen


SEEDS_ARE = "how many (1 or more, such as 3) or which (integers from 0, such as (0, 3) or (0,))"


def seed_numbers(seeds: object) -> list[int]:
    """Which seeds to run: 0, 1, ... for a count, or those given.

    Raises:
        CoordCheckError: a count below 1, no seeds, or one that is not an integer from 0.
    """
    count = integer(seeds)
    if count is not None and count > MOST_RUNS:
        raise CoordCheckError(f"seeds={count} is more than a check may have runs ({MOST_RUNS}). Pass seeds=3, say.")
    numbers = list(range(count)) if count is not None else None
    if numbers is None and isinstance(seeds, Iterable) and not isinstance(seeds, str):
        given = [integer(seed) for seed in _bounded("seeds", seeds)]
        if all(seed is not None and 0 <= seed <= LARGEST for seed in given):
            numbers = [seed for seed in dict.fromkeys(given) if seed is not None]
    if not numbers:
        raise CoordCheckError(f"seeds must be {SEEDS_ARE}, got {seeds!r}.")
    return numbers


MOST_RUNS = 100_000  # of one check; what is typed by mistake must not fill the memory before anything is said


def _bounded(name: str, values: Iterable[Any]) -> list[Any]:
    """The values of an iterable, which may be endless."""
    found = list(islice(values, MOST_RUNS + 1))
    if len(found) > MOST_RUNS:
        raise CoordCheckError(f"{name} has more values than a check may have runs ({MOST_RUNS}). Give fewer.")
    return found


def bounded_grid(**counts: int) -> None:
    """Refuse a grid with more runs than anybody could mean.

    Raises:
        CoordCheckError: the product of the counts is above `MOST_RUNS`.

    >>> bounded_grid(labels=2, widths=4, seeds=3)
    """
    if math.prod(counts.values()) > MOST_RUNS:
        told = " × ".join(f"{count} {name}" for name, count in counts.items())
        raise CoordCheckError(f"{told} are {math.prod(counts.values())} runs, more than {MOST_RUNS}. Give fewer.")
