"""Rules: what to multiply by which power of the width, and the file of them. Numbers and names, and no code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.documents import read_document
from coordcheck.runs.files import versions, write_document
from coordcheck.runs.reading import Wrong, count, fields, integer, items, mapping, members, number, one_of, text, wrong
from coordcheck.runs.words import Role, Side

DECAYS = ("keep", "constant")
MOST = 2**17  # rules, and names
LARGEST_POWER = 16.0  # of a rule: none that is meant is as large
NUMBERS = 64  # that say which channels a block is
OFF = 1e-6  # distance from a whole number up to which a count of channels is one


class Linear(NamedTuple):
    """A number of channels at any width: `start + slope * width`."""

    start: float
    slope: float

    def at(self, width: int) -> int:
        """The number at a width.

        Raises:
            CoordCheckError: it is not whole there.
        """
        exact = self.start + self.slope * width
        if abs(exact - round(exact)) > OFF or exact < 0:
            raise CoordCheckError(f"at width {width} a block would begin, or end, inside of a channel ({exact:g}).")
        return round(exact)


class Rule(NamedTuple):
    """What is to be changed of one parameter, block, use or operation; powers of m = width / base width."""

    name: str
    """As the report has it: a parameter, a block `qkv.weight[0]`, a second use `wte.weight@linear`, an operation."""
    parameter: str
    """Empty where the rule is about an operation."""
    role: Role
    init: float = 0.0
    learning_rate: float = 0.0
    multiplier: float = 0.0
    eps: float = 0.0
    degree: int = 0
    """Of the optimizer's update in the gradient."""
    module: str = ""
    """Where its multiplier is put; empty where initial values and learning rate do the same."""
    side: Side = Side.NONE
    channels: tuple[Linear, ...] = ()
    """Of a block, as a record's `Use` tells them."""
    cause: str = ""
    round: int = 1
    """The diagnosis that it comes from, from 1 on."""


class RuleBook(NamedTuple):
    """What a file of rules holds."""

    base_width: int
    weight_decay: str
    """Of groups whose learning rate changes: "keep" it, or keep "constant" what it pulls by, rate times decay."""
    rules: tuple[Rule, ...]
    names: tuple[str, ...]
    """Every parameter of the model that they were made for."""
    obstacles: tuple[str, ...] = ()
    """What no rule mends, each with what stands in the way."""
    unjudged: tuple[str, ...] = ()
    """The parameters that no measurement decides, each with the reason."""


def save_rules(path: str | PathLike[str], book: RuleBook) -> None:
    """Write a file of rules; it is replaced in one step.

    Raises:
        CoordCheckError: it cannot be written.
    """
    content = {
        "base_width": book.base_width,
        "weight_decay": book.weight_decay,
        "rules": [[*rule[:2], rule.role.value, *rule[3:9], rule.side.value, *_plain(rule)] for rule in book.rules],
        "names": list(book.names),
        "obstacles": list(book.obstacles),
        "unjudged": list(book.unjudged),
        "versions": versions(),
    }
    write_document(Path(path), "rules", content)


def _plain(rule: Rule) -> tuple[Any, ...]:
    return [list(linear) for linear in rule.channels], rule.cause, rule.round


def load_rules(path: str | PathLike[str]) -> RuleBook:
    """Read a file of rules; nothing of it is executed.

    Raises:
        RunFileError: it is damaged, foreign, newer, or holds what no `save_rules` writes.
    """
    return read_document(Path(path), "rules", _read)


def _power(value: object) -> float:
    found = number(value)
    if abs(found) > LARGEST_POWER:
        raise wrong(f"a power from -{LARGEST_POWER:g} to {LARGEST_POWER:g}", value)
    return found


def _decay(value: object) -> str:
    if value not in DECAYS:
        raise wrong(f"one of {', '.join(DECAYS)}", value)
    return str(value)


_linear = fields(number, number)
_rule = fields(
    *(text, text, one_of(Role), _power, _power, _power, _power),
    lambda value: integer(value, 0, 1),
    *(text, one_of(Side), items(lambda value: Linear(*_linear(value)), NUMBERS), text, count),
)


def _read_rule(value: object) -> Rule:
    rule = Rule(*_rule(value))
    if bool(rule.module) != (rule.side is not Side.NONE):
        raise Wrong("names a module and no side of it, or a side of none")
    if len(rule.channels) not in (0, *range(7, NUMBERS, 2)):
        raise Wrong("its channels are not told as those of a block")
    return rule._replace(channels=tuple(rule.channels))


FIELDS = {
    "base_width": count,
    "weight_decay": _decay,
    "rules": items(_read_rule, MOST),
    "names": items(text, MOST),
    "obstacles": items(text, MOST),
    "unjudged": items(text, MOST),
    "versions": mapping(text, 1000),
}


def _read(content: Iterable[tuple[str, Any]]) -> RuleBook:
    found: Mapping[str, Any] = members(content, FIELDS, [name for name in FIELDS if name != "versions"])
    lists: Sequence[Sequence[Any]] = [found[name] for name in ("rules", "names", "obstacles", "unjudged")]
    return RuleBook(found["base_width"], found["weight_decay"], *map(tuple, lists))
