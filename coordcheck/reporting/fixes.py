"""A fix as tables and text: what changes, by which power of the width, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.console import Group
from rich.text import Text

from coordcheck.analysis.result import Result
from coordcheck.common.escaping import legible, printable
from coordcheck.common.output import plain_text
from coordcheck.reporting.summaries import headline
from coordcheck.reporting.text import Head, NamedRows, Row
from coordcheck.runs.repeats import PARTS, starred, together
from coordcheck.runs.rules import Rule, RuleBook
from coordcheck.runs.words import Side

COLUMNS = ["parameter", "glob", "role", "init", "lr", "multiplier", "eps", "where", "cause", "round"]
MOST = 40  # rules shown, those that differ in a number of their name only as one
LENGTH = 400  # characters of an obstacle


def frame(book: RuleBook) -> pd.DataFrame:
    """The rules as a table, one row each."""
    globs = {name: glob for glob, names in _alike(book.rules) for name in names}
    rows = [
        (
            *(rule.name, globs[_key(rule)], rule.role.value),
            *(power + 0.0 for power in rule[3:7]),  # no zero of them with a minus sign
            *(where(rule), rule.cause, rule.round),
        )
        for rule in book.rules
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def where(rule: Rule) -> str:
    """The module on which a multiplier is put; empty where there is none."""
    return "" if rule.side is Side.NONE or not rule.multiplier else f"{rule.side.value} of {rule.module}"


def _key(rule: Rule) -> tuple[str, int]:
    return rule.name, rule.round


def _alike(rules: Iterable[Rule]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Rules that differ in a number of their names alone, under one name."""
    found: dict[tuple[Any, ...], dict[str, Rule]] = {}
    for rule in rules:
        key = starred(rule.name, PARTS), *rule[2:7], starred(rule.module, PARTS), rule.side, rule.cause, rule.round
        found.setdefault(key, {})[rule.name] = rule
    return [(name, [_key(of[one]) for one in names]) for of in found.values() for name, names in together(list(of))]


def plain(book: RuleBook, before: Result | None, after: Result | None) -> str:
    """The fix as it is printed where the output is no terminal."""
    return plain_text(render(book, before, after))


def render(book: RuleBook, before: Result | None, after: Result | None) -> Group:
    """The verdicts before and after, the rules, and what stands in the way, on one screen."""
    parts: list[Any] = [*_headlines(before, "before"), *(_headlines(after, "after") if book.rules else ())]
    if book.rules:
        parts.append(_table(book))
        decay = {"keep": "weight decays stay as they are", "constant": "lr × weight decay stays what it is"}
        parts.append(
            Text(f"  m = width / {book.base_width}; {decay[book.weight_decay]}; schedulers come after", style="dim")
        )
    elif after is not None and not after.exit_code:
        parts.append(Text("nothing to change"))
    parts += [Text(f"not fixed: {legible(printable(one), LENGTH)}", style="yellow") for one in book.obstacles]
    parts += [Text(f"not judged: {legible(printable(one), LENGTH)}", style="dim") for one in book.unjudged[:MOST]]
    return Group(*parts)


def _headlines(result: Result | None, label: str) -> list[Text]:
    if result is None:
        return []
    line = headline(result, result.labels[0])
    colour = "red" if line.failed else "green" if line.verdict.passes else "yellow"
    return [Text.assemble((f"{label}: ", "bold"), (line.word, f"bold {colour}"), f"  {printable(line.text)}")]


def _table(book: RuleBook) -> NamedRows:
    hooked = any(map(where, book.rules))
    by_key = {_key(rule): rule for rule in book.rules}
    rows = []
    alike = _alike(book.rules)
    for name, keys in alike[:MOST]:
        rule = by_key[keys[0]]
        shown = name if len(keys) == 1 else f"{name} ({len(keys)})"
        cells = Text(change(rule)), Text(rule.cause), Text(_places([by_key[key] for key in keys]))
        rows.append(Row(shown, cells[: 2 + hooked]))
    if len(alike) > MOST:
        rows.append(Row(f"and {len(alike) - MOST} more: fix.rules", (Text(""),) * (2 + hooked)))
    heads = Head("multiply by"), Head("cause"), Head("by a hook on")
    return NamedRows("rule", heads[: 2 + hooked], rows)


def _places(rules: Sequence[Rule]) -> str:
    found = list(dict.fromkeys(where(rule) for rule in rules))
    return legible(found[0] if len(found) == 1 else starred(found[0], PARTS))


def change(rule: Rule) -> str:
    """What a rule multiplies, in powers of m."""
    powers = {"init": rule.init, "multiplier": rule.multiplier, "lr": rule.learning_rate, "eps": rule.eps}
    return ", ".join(f"{what} × m^{power:g}" for what, power in powers.items() if power)
