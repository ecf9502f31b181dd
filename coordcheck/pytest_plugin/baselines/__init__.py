"""Exponents that were reviewed once, and what of them a later check measures otherwise.

A baseline holds of each layer the slope that decided its verdict, and of each parameter its gain and its response.
Widths, seeds and steps must be those of the check that it is compared with; code, batch and machine may differ, for
exponents should not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.escaping import legible, printable
from coordcheck.runs.agreement import differences
from coordcheck.runs.names import distinct, same_label
from coordcheck.runs.words import Role

TOLERANCE = 0.1  # exponents in practice are multiples of 1/2, and those of one model differ by a few hundredths
DIGITS = 3
SHOWN = 10  # changes, and names, in a text
KINDS = "layers", "parameters"


class Reading(NamedTuple):
    """An exponent as a baseline keeps it."""

    value: float
    half: float | None
    """Half of its 95 % interval; None where the fit leaves nothing to estimate it from."""

    def __str__(self) -> str:
        return f"{self.value:+.2f}" + ("" if self.half is None else f" ± {self.half:.2f}")


class Entry(NamedTuple):
    """What a baseline says of one layer, or of one parameter."""

    verdict: str
    readings: Mapping[str, Reading]
    """By what was measured: "change at t=1" of a layer, "gain" and "response" of a parameter."""


class Name(NamedTuple):
    """Which entry; unique within a baseline."""

    label: str
    kind: str
    """One of `KINDS`."""
    name: str

    def __str__(self) -> str:
        return f"{legible(self.label)}: {legible(self.name)}"


@dataclass(frozen=True)
class Baseline:
    """The exponents of a check, with the settings that they depend on."""

    settings: Mapping[str, Any]
    entries: Mapping[Name, Entry]


class Change(NamedTuple):
    """One exponent, or verdict, that is not what it was."""

    name: Name
    measured: str
    before: str
    after: str
    allowed: float
    """How far apart the two exponents may be; NaN where they are not two numbers."""
    size: float
    """How far apart they are; Inf where they are not two numbers."""


@dataclass(frozen=True)
class Comparison:
    """A check held against a baseline; `str` of it is the table of what changed."""

    settings: tuple[str, ...] = ()
    """Settings that differ, one text each; then nothing else was compared."""
    changes: tuple[Change, ...] = ()
    """The largest first."""
    new: tuple[Name, ...] = ()
    missing: tuple[Name, ...] = ()
    compared: int = 0
    """How many exponents and verdicts."""

    @property
    def same(self) -> bool:
        return not (self.settings or self.changes or self.new or self.missing)

    def __str__(self) -> str:
        if self.settings:
            return f"made with other settings: {'; '.join(self.settings)}"
        counts = [f"{len(self.changes)} of {self.compared} exponents changed"] if self.changes else []
        counts += [
            f"{len(names)} {what}" for what, names in (("new", self.new), ("missing", self.missing)) if len(names)
        ]
        lines = [", ".join(counts) or f"all {self.compared} exponents are as they were"]
        lines += _table(self.changes)
        lines += [
            f"  {what}: {_listed(names)}" for what, names in (("new", self.new), ("missing", self.missing)) if names
        ]
        return "\n".join(lines)


def baseline_of(report: Result) -> Baseline:
    """The exponents of a report, with 3 digits."""
    entries, names = {}, _Names()
    for values in report.layers.itertuples():
        row: Any = values
        reading = _reading(row.slope, (row.high - row.low) / 2)
        readings = {} if reading is None else {_measured(row): reading}
        entries[names.of(row.label, "layers", row.layer)] = Entry(row.verdict, readings)
    for label, findings in report.findings.items():
        for finding in findings:
            if finding.use.role is Role.FUNCTION and not finding.culprit:  # as in the report's own table
                continue
            found = {
                key: _reading(exponent.value, (exponent.high - exponent.low) / 2)
                for key, exponent in (("gain", finding.gain), ("response", finding.response))
            }
            known = {key: reading for key, reading in found.items() if reading is not None}
            entries[names.of(label, "parameters", finding.use.name)] = Entry(finding.verdict.value, known)
    return Baseline(_settings(report), entries)


def compare(stored: Baseline, report: Result, tolerance: float = TOLERANCE) -> Comparison:
    """What a check measures otherwise than the baseline.

    An exponent has changed when it is farther from the stored one than `tolerance`, and farther than the 95 % interval
    of their difference, sqrt(half_stored ** 2 + half_now ** 2). The slope of a layer is read again where the
    stored one was read (quantity and step), wherever its verdict is decided now. A verdict by itself has changed when
    it is another one, and neither is "undecided": that is a matter of noise.

    Args:
        stored: the baseline.
        report: the check, made with the same settings.
        tolerance: how far an exponent may move, 0.1 if not given.

    Returns:
        What changed, and what is new or missing; where settings differ, these alone.
    """
    now = baseline_of(report)
    differing = differences(_texts(stored.settings), _texts(now.settings))
    if differing:
        return Comparison(settings=tuple(differing))
    slopes = _slopes(report)
    shared = [name for name in stored.entries if name in now.entries]
    changes = [
        change
        for name in shared
        for change in _changes(name, stored.entries[name], now.entries[name], slopes.get(name, {}), tolerance)
    ]
    return Comparison(
        changes=tuple(sorted(changes, key=lambda change: -change.size)),
        new=tuple(name for name in now.entries if name not in stored.entries),
        missing=tuple(name for name in stored.entries if name not in now.entries),
        compared=sum(max(len(stored.entries[name].readings), 1) for name in shared),
    )


def _changes(
    name: Name, before: Entry, after: Entry, slopes: Mapping[str, Reading], tolerance: float
) -> Iterator[Change]:
    """What is different in one entry."""
    again = {**slopes, **after.readings}
    keys = before.readings if name.kind == "layers" else {**before.readings, **after.readings}
    moved = False
    for key in keys:
        old, new = before.readings.get(key), again.get(key)
        gap, allowed = math.inf, math.nan
        if old is not None and new is not None:
            gap, allowed = abs(new.value - old.value), max(tolerance, math.hypot(old.half or 0, new.half or 0))
        if not gap <= allowed:
            moved = True
            texts = f"{old or 'none'}, {before.verdict}", f"{new or 'none'}, {after.verdict}"
            yield Change(name, key, *texts, allowed, gap)
    words = before.verdict, after.verdict
    if not moved and words[0] != words[1] and Verdict.UNDECIDED.value not in words:
        yield Change(name, "verdict", *words, math.nan, math.inf)


def _settings(report: Result) -> dict[str, Any]:
    """What exponents depend on beside the code."""
    return {
        "axis": _plain(report.criteria.axis),
        "labels": sorted(_plain(label) for label in report.labels),
        "seeds": sorted({record.key.seed for record in report.records}),
        "steps": max(map(int, report.slopes["step"]), default=0),
        "widths": sorted({record.key.width for record in report.records}),
    }


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as they are told in a message."""
    return {
        name: f"({', '.join(map(str, value))})" if isinstance(value, (list, tuple)) else str(value)
        for name, value in settings.items()
    }


def _slopes(report: Result) -> dict[Name, dict[str, Reading]]:
    """Every slope of every layer, by quantity and step."""
    found: dict[Name, dict[str, Reading]] = {}
    names = _Names()
    for layer in report.layers.itertuples():  # in the order of `baseline_of`
        names.of(str(layer.label), "layers", str(layer.layer))
    for values in report.slopes.itertuples():
        row: Any = values
        reading = _reading(row.slope, (row.high - row.low) / 2)
        if reading is not None:
            found.setdefault(names.of(row.label, "layers", row.layer), {})[_measured(row)] = reading
    return found


def _measured(row: Any) -> str:
    return f"{row.quantity} at t={row.step}"


def _plain(text: str) -> str:
    """A label as it is stored: the two mu signs alike, without control characters."""
    return printable(same_label(text))


class _Names:
    """The names of entries: printable, and two names that look the same then are two all the same."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str, str], Name] = {}
        self._taken: dict[tuple[str, str], set[str]] = {}

    def of(self, label: str, kind: str, name: str) -> Name:
        """The entry's name of a layer or parameter, the same for the same one."""
        key = label, kind, name
        if key not in self._given:
            plain = _plain(label)
            taken = self._taken.setdefault((plain, kind), set())
            found = Name(plain, kind, distinct(printable(name), taken))
            taken.add(found.name)
            self._given[key] = found
        return self._given[key]


def _reading(value: float, half: float) -> Reading | None:
    """A rounded exponent; + 0.0 because -0.0 and 0.0 must be stored alike."""
    if not math.isfinite(value):
        return None
    return Reading(round(value, DIGITS) + 0.0, round(half, DIGITS) + 0.0 if math.isfinite(half) else None)


def _table(changes: Sequence[Change]) -> list[str]:
    """The changes as aligned lines."""
    if not changes:
        return []
    rows = [("exponent", "measured", "baseline", "now", "allowed")]
    for change in changes[:SHOWN]:
        allowed = "" if math.isnan(change.allowed) else f"± {change.allowed:.2f}"
        rows.append((str(change.name), change.measured, change.before, change.after, allowed))
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "    ".join(map(str.ljust, row, sizes)).rstrip() for row in rows]
    return lines + ([f"  and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else [])


def _listed(names: Sequence[Name]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
