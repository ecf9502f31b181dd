"""What the reader of a report must know beside its verdicts: one function per kind of note."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from coordcheck.analysis.audits import listed
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.findings import Finding
from coordcheck.analysis.measurements import not_finite, partial_layers
from coordcheck.analysis.verdicts import Verdict, mostly_unseen
from coordcheck.runs.records import NOT_COMPARED, RunRecord

SHOWN = 3  # layers named of many
OPEN = [Verdict.NOT_VISIBLE.value, Verdict.UNDECIDED.value, Verdict.NOT_FINITE.value]
"""The verdicts on a parameter of which it is not known whether it is right."""


def of_unexplained(verdicts: pd.DataFrame, diagnosed: Container[str]) -> Iterator[str]:
    """Per diagnosed label, the first layer whose symptom no parameter explains, and where its cause may be.

    That is in a parameter of which nothing was decided, or else in what the layers up to this one compute.

    Yields:
        A note per label.
    """
    for label, rows in verdicts.groupby("label", sort=False):
        layers, parameters = rows[rows["role"].isna()], rows[rows["role"].notna()]
        violated = layers["verdict"].map(lambda word: Verdict(word).violated).astype(bool)
        unexplained = layers[violated & layers["cause"].isna()]
        if label not in diagnosed or unexplained.empty:
            continue
        first: Any = next(unexplained.sort_values("order").itertuples())
        names = list(parameters.loc[parameters["verdict"].isin(OPEN), "layer"])
        names = names or list(layers.loc[layers["order"] <= first.order, "layer"])
        yield f"{label}: {first.layer}: {first.verdict}; cause not found among: {listed(names)}"


def of_failures(records: Iterable[RunRecord]) -> Iterator[str]:
    """The runs that did not finish, those of one label and reason together."""
    failures: dict[tuple[str, str, str], list[int]] = {}
    for r in records:
        if not r.finished:
            failures.setdefault((r.key.label, r.outcome.value, last_line(r.reason)), []).append(r.key.width)
    for (label, outcome, why), widths in failures.items():
        at = ", ".join(map(str, sorted(set(widths))))
        yield f"{label}: {runs(len(widths))} {outcome} (width {at})" + (f": {why}" if why else "")


def of_found(records: Sequence[RunRecord]) -> Iterator[str]:
    """The runs that were found in the folder, and what of their settings could not be compared."""
    found = [record for record in records if record.found]
    if not found:
        return
    yield f"{len(found)} of {runs(len(records))} were found in the folder, and not run again"
    told = {name: why for record in found for name, why in record.settings.items() if name.startswith(NOT_COMPARED)}
    if told:
        values = "; ".join(f"{name.removeprefix(NOT_COMPARED)} ({why})" for name, why in told.items())
        yield f"they may be out of date: these could not be compared: {values}"


def of_unsaved(records: Sequence[RunRecord]) -> Iterator[str]:
    """The runs that could not be saved."""
    unsaved = [record.unsaved for record in records if record.unsaved]
    if unsaved:
        many = f"{len(unsaved)} of {runs(len(records))}"
        yield f"{many} could not be saved: {unsaved[0]} The same check trains them again."


def of_runs(records: Iterable[RunRecord], findings: Mapping[str, Sequence[Finding]]) -> Iterator[str]:
    """What the runs themselves noted, the parameters that nothing saw, and those that no optimizer holds."""
    for record in records:
        label = record.key.label
        yield from (f"{label}: {note}" for note in record.notes)
        followed = {f.use.parameter for f in findings.get(label, []) if f.verdict is not Verdict.NOT_VISIBLE}
        hidden = [info.name for info in record.parameters if not info.visible and info.name not in followed]
        if hidden:
            yield f"{label}: not visible: {', '.join(hidden)} (trained, but not in a call of their own module)"
        idle = [info.name for info in record.parameters if info.learning_rate is None]
        if idle:
            yield f"{label}: no optimizer holds {', '.join(idle)}"


def of_unseen(verdicts: pd.DataFrame, status: Mapping[str, Verdict]) -> Iterator[str]:
    """The labels most of whose parameters are not visible."""
    for name, rows in verdicts.groupby("label", sort=False):
        if mostly_unseen(rows):
            open_ = "the cause may be one of them" if status[str(name)].violated else "nothing is decided"
            yield f"{name}: most of its parameters are not visible, so that {open_}"


def of_unjudged(layers: pd.DataFrame) -> Iterator[str]:
    """The labels whose changes are not judged."""
    for label in layers.loc[layers["verdict"] == Verdict.NOT_JUDGED.value, "label"].unique():
        yield (
            f"{label}: every step saw another batch, so that changes are not judged: give the Recorder one to call the "
            "model on after each update, probe=batch"
        )


def of_globs(criteria: Criteria, parameters: Collection[str], layers: Collection[str]) -> Iterator[str]:
    """The names in `roles` and `expect` that no parameter, or no layer, has."""
    wanted = [("roles", "parameter", glob, parameters) for glob in criteria.roles or {}]
    wanted += [("expect", "layer", glob, layers) for glob in criteria.exponents or {}]
    for name, kind, glob, known in wanted:
        if known and not any(fnmatchcase(one, glob) for one in known):
            yield f"{name}= names {glob!r}, which is no {kind}"


def of_undiagnosed(records: Iterable[RunRecord], known: Collection[str]) -> Iterator[str]:
    """The labels that were diagnosed at too few widths; those that are `known` are not."""
    for label in sorted({record.key.label for record in records if record.uses} - set(known)):
        yield f"{label}: not diagnosed: too few of its widths were"


def of_partial(measurements: pd.DataFrame) -> Iterator[str]:
    """The layers that are not there at every width."""
    partial: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (label, layer), widths in partial_layers(measurements).items():
        partial.setdefault((label, tuple(widths)), []).append(layer)
    for (label, seen), layers in partial.items():
        more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
        yield f"{label}: seen only at {', '.join(map(str, seen))}: {', '.join(layers[:SHOWN])}{more}"


def of_not_finite(measurements: pd.DataFrame) -> Iterator[str]:
    """Where scales first ceased to be numbers."""
    for row in not_finite(measurements).itertuples():
        first: Any = row
        where = f"width {', '.join(map(str, first.widths))}, {runs(first.runs)}"
        yield f"{first.label}: first {first.status} in {first.layer} at t={first.step} ({where})"


def runs(count: int) -> str:
    """How many runs, in words.

    >>> runs(1), runs(12)
    ('1 run', '12 runs')
    """
    return f"{count} run" if count == 1 else f"{count} runs"


def last_line(text: str) -> str:
    """The last line of a text: of a traceback, what was raised."""
    return text.strip().splitlines()[-1] if text.strip() else ""
