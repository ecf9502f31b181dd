"""Values that come from a file, each looked at before it is used.

A reader takes any value that JSON can hold, and returns it as what it is, or says what is wrong with it. Where a value
inside of others is wrong, the message names its place:

    rows[17][3]: expected a finite number of 0 or more, got -1.0
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
Reader = Callable[[Any], T]

TEXT = 2**20  # characters of a name or message
LARGEST = 2**63 - 1  # a size or seed, and what tensors and tables count with
WIDEST = 2**53  # a width, which fits and figures take for a float


class Wrong(ValueError):
    """A value that no check writes: what is wrong with it, and where."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(what, place)
        self.what, self.place = what, place

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what

    def inside(self, place: str) -> Wrong:
        """The same, told from farther outside."""
        return Wrong(self.what, place + self.place)


def wrong(accepted: str, value: object) -> Wrong:
    """What is accepted, and what was seen, in short.

    >>> str(wrong("a text", [1] * 1000))
    'expected a text, got [1, 1, 1, 1, 1, 1, ...]'
    """
    seen = "a list" if isinstance(value, Iterator) else reprlib.repr(value)  # a list that is still being read
    return Wrong(f"expected {accepted}, got {seen}")


def text(value: object) -> str:
    """A text of a length that a name or a message can have."""
    if not isinstance(value, str):
        raise wrong("a text", value)
    if len(value) > TEXT:
        raise wrong(f"a text of at most {TEXT} characters", value)
    return value


def integer(value: object, least: int = 0, most: int = LARGEST) -> int:
    """A whole number; true and false are none."""
    if type(value) is not int or not least <= value <= most:
        raise wrong(f"an integer from {least} to {most}", value)
    return value


def count(value: object) -> int:
    """A whole number above 0."""
    return integer(value, 1)


def number(value: object) -> float:
    """A finite number."""
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int and abs(value) <= 10**300:
        return float(value)
    raise wrong("a finite number", value)


def positive(value: object) -> float:
    """A finite number of 0 or more."""
    found = number(value)
    if found < 0:
        raise wrong("a finite number of 0 or more", value)
    return found


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def optional(read: Reader[T]) -> Reader[T | None]:
    """The reader, which takes null as well."""
    return lambda value: None if value is None else read(value)


def one_of(words: type[E]) -> Reader[E]:
    """A word of an enumeration."""
    known = {member.value: member for member in words}

    def read(value: object) -> E:
        found = known.get(value) if isinstance(value, str) else None
        if found is None:
            raise wrong(f"one of {', '.join(map(repr, known))}", value)
        return found

    return read


def listed(value: object) -> Iterator[Any]:
    """The items of a list, or of one that is still being read."""
    if isinstance(value, list):
        return iter(value)
    if isinstance(value, Iterator):
        return value
    raise wrong("a list", value)


def items(read: Reader[T], most: int) -> Reader[list[T]]:
    """A list of at most so many items, each of which the reader looks at."""

    def read_all(value: object) -> list[T]:
        found: list[T] = []
        given = listed(value)
        try:
            for item in given:
                if len(found) == most:
                    raise Wrong(f"expected at most {most} items")
                found.append(read(item))
        except Wrong as error:
            raise error.inside(f"[{len(found)}]") if len(found) < most else error from None
        return found

    return read_all


def fields(*reads: Reader[Any], least: int | None = None) -> Reader[list[Any]]:
    """A list with a value of its own kind at each place; those behind the first `least` were added later."""
    fewest = len(reads) if least is None else least

    def read_all(value: object) -> list[Any]:
        if not isinstance(value, list) or not fewest <= len(value) <= len(reads):
            raise wrong(f"a list of {len(reads)} values", value)
        found: list[Any] = []
        try:
            for read, item in zip(reads, value, strict=False):
                found.append(read(item))
        except Wrong as error:
            raise error.inside(f"[{len(found)}]") from None
        return found

    return read_all


def mapping(read: Reader[T], most: int = 100_000) -> Reader[dict[str, T]]:
    """A mapping of texts to what the reader takes."""

    def read_all(value: object) -> dict[str, T]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise wrong(f"a mapping of at most {most} names", value)
        return {text(name): read_at(name, read, item) for name, item in value.items()}

    return read_all


def read_at(name: str, read: Reader[T], value: object) -> T:
    """A value under a name, which a message tells."""
    try:
        return read(value)
    except Wrong as error:
        raise error.inside(f"{reprlib.repr(name)[1:-1]}" + ("." if error.place[:1] not in ("", "[") else "")) from None


def members(
    found: Iterable[tuple[str, Any]], reads: Mapping[str, Reader[Any]], needed: Iterable[str] = ()
) -> dict[str, Any]:
    """The members of an object, each by the reader of its name; one that is not known is a later version's.

    Args:
        found: names with values, each name once.
        reads: the reader of each name.
        needed: the names that must be there.

    Returns:
        Name -> what its reader made of the value.

    Raises:
        Wrong: a name that is not known, one that is there twice, or one that is needed and missing.
    """
    values: dict[str, Any] = {}
    for name, value in found:
        if name not in reads:
            raise Wrong(f"has {reprlib.repr(name)}, which this version does not know: a later one may")
        if name in values:
            raise Wrong("is there twice", name)
        values[name] = read_at(name, reads[name], value)
    missing = [name for name in needed if name not in values]
    if missing:
        raise Wrong(f"lacks {', '.join(map(repr, missing))}")
    return values


def distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names differ, where others take the last of them: as `object_pairs_hook`."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{reprlib.repr(name)} is there twice")
        found[name] = value
    return found


def no_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are no JSON: as `parse_constant`."""
    raise ValueError(f"{name} is not a JSON number")
