"""What `coordcheck.fix` makes of an entry, and what a check with other seeds and other data says of that."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

import coordcheck
from coordcheck.analysis.verdicts import Verdict
from coordcheck.checks.fixing.fix import Fix
from fixmatrix.entries import WIDTHS, Entry

SEEDS = (101, 102, 103, 104), tuple(range(101, 113))
"""Of the check: what is undecided with the first ones is asked again with all."""
DATA = 100
"""The seed of the batch of the check; that of the mending is 0."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    before: str
    rounds: int
    blamed: int
    """Parameters and operations to blame before."""
    after: str
    seconds: float
    note: str
    """What is not ok after, and what is told of it."""

    @property
    def violated(self) -> bool:
        return self.before not in ("ok", "undecided")

    @property
    def mended(self) -> bool:
        return self.after == "ok" and self.rounds <= 2


def judged(entry: Entry, widths: Sequence[int] = WIDTHS) -> Row:
    """Mend one entry, and check it."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _judged(entry, widths, start)
        except Exception as error:  # the matrix goes on, whatever becomes of one entry
            return Row(entry.name, "?", 0, 0, "raised", time.perf_counter() - start, f"{type(error).__name__}: {error}")


def _judged(entry: Entry, widths: Sequence[int], start: float) -> Row:
    model = entry.model
    fixed = coordcheck.fix(entry.build, model.batch(0), loss=model.loss, base_width=widths[0], widths=widths)
    report = checked(entry, fixed, widths)
    before, _ = fixed.status
    rounds = int(fixed.rules["round"].max()) if len(fixed.rules) else 0
    return Row(
        entry.name,
        "" if before is None else before.value,
        rounds,
        0 if fixed.before is None else len(fixed.before.culprits),
        report.status["after"].value,
        time.perf_counter() - start,
        "; ".join([*left(report), *fixed.obstacles]),
    )


def checked(entry: Entry, fixed: Fix, widths: Sequence[int]) -> coordcheck.Report:
    """The check of what was mended."""
    batch, loss = entry.model.batch(DATA), entry.model.loss
    with tempfile.TemporaryDirectory() as folder:
        for seeds in SEEDS:
            report = coordcheck.check(
                {"after": fixed.build}, batch, loss=loss, widths=widths, seeds=seeds, steps=2, save_to=folder
            )
            if report.status["after"] is not Verdict.UNDECIDED:
                break
    return report


def left(report: coordcheck.Report) -> list[str]:
    """What a check says of what is not ok, the parameters first."""
    table = report.verdicts
    bad = table[table["verdict"].map(lambda verdict: Verdict(verdict).violated or verdict == "undecided")]
    bad = bad.sort_values("parameter", key=lambda names: names.isna(), kind="stable")
    return [f"{row.layer} {row.verdict}: {row.explanation}" for row in bad.itertuples()]
