"""The terminal's summary, from what the tests' properties say: it is the same under pytest-xdist."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest

PROPERTY = re.compile(r"coordcheck(?:\.(?P<number>\d+))?\.(?P<name>[a-z_]+)")


class Outcome(NamedTuple):
    """One check of one test."""

    nodeid: str
    failed: bool
    """Whether the test failed, for whatever reason."""
    properties: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.properties.get("status", "not checked"))

    @property
    def baseline(self) -> str:
        """What became of its baseline, in one word; empty where it has none."""
        return str(self.properties.get("baseline", "")).partition(":")[0]

    @property
    def bad(self) -> bool:
        return self.failed and (self.status != "ok" or self.baseline in ("changed", "missing"))


def outcomes(reports: Iterable[Any]) -> list[Outcome]:
    """The checks that the reports of a run tell of, in the order of the tests."""
    properties: dict[str, Sequence[tuple[str, Any]]] = {}
    failed = set()
    for report in reports:
        given = getattr(report, "user_properties", ())
        if any(PROPERTY.fullmatch(str(name)) for name, _ in given):
            properties[report.nodeid] = max(properties.get(report.nodeid, ()), given, key=len)
            if report.outcome == "failed":
                failed.add(report.nodeid)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for nodeid, pairs in properties.items():
        for name, value in pairs:
            match = PROPERTY.fullmatch(str(name))
            if match:
                found.setdefault((nodeid, int(match["number"] or 1)), {})[match["name"]] = value
    return [Outcome(nodeid, nodeid in failed, found[nodeid, number]) for nodeid, number in sorted(found)]


def headline(found: Sequence[Outcome]) -> str:
    """How many checks there were, and how they ended.

    >>> headline([Outcome("a", False, {"status": "ok"}), Outcome("b", True, {"status": "violated"})])
    'coordcheck: 2 checks: 1 ok, 1 violated'
    """
    count = f"coordcheck: {len(found)} check{'s' * (len(found) > 1)}"
    if all(outcome.status == "ok" and not outcome.bad for outcome in found):
        return f"{count}, {'all ' * (len(found) > 1)}width-invariant"
    words = Counter(
        outcome.status + ("" if outcome.failed or outcome.status == "ok" else " as the test expects")
        for outcome in found
    )
    told = Counter(f"baseline {outcome.baseline}" for outcome in found if outcome.bad and outcome.baseline in _TOLD)
    kinds = (", ".join(f"{number} {word}" for word, number in some.items()) for some in (words, told) if some)
    return f"{count}: {'; '.join(kinds)}"


_TOLD = "changed", "missing"


def write_summary(terminal: pytest.TerminalReporter) -> None:
    """A line when all is well (none with -q), else the worst layers of each check that failed its test."""
    found = outcomes(report for reports in terminal.stats.values() for report in reports)
    written = Counter(str(o.properties["baseline"]) for o in found if o.baseline == "written")
    verbosity, bad = terminal.config.getoption("verbose"), [outcome for outcome in found if outcome.bad]
    shown = found if verbosity > 0 else bad
    if shown and verbosity >= 0:
        terminal.section("coordcheck")
        for outcome in shown:
            _write_outcome(terminal, outcome)
    if found and (bad or verbosity >= 0):
        terminal.write_line(headline(found), red=bool(bad), green=not bad)
    if verbosity > -2:
        for text, count in sorted(written.items()):
            terminal.write_line(f"coordcheck: baseline {text}; review it, and commit it")
            if count > 1:  # by workers of pytest-xdist, none of which saw what the other wrote
                terminal.write_line(f"  it was written by {count} checks: give each a name of its own", red=True)


def _write_outcome(terminal: pytest.TerminalReporter, outcome: Outcome) -> None:
    baseline = f", baseline {outcome.baseline}" if outcome.baseline in _TOLD else ""
    terminal.write_line(f"{outcome.nodeid}: {outcome.status}{baseline}", bold=True)
    for line in str(outcome.properties.get("layers", "")).splitlines():
        terminal.write_line(f"  {line}")
    for name in ("culprits", "files"):
        if name in outcome.properties:
            terminal.write_line(f"  {name}: {outcome.properties[name]}")
