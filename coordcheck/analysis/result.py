"""Records -> what they mean: tables, verdicts, status, notes and the exit code. Needs neither torch nor the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from coordcheck.analysis import notes, saturation
from coordcheck.analysis.audits import audit
from coordcheck.analysis.biases import with_biases
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.culprits import combined
from coordcheck.analysis.diagnosis import diagnose
from coordcheck.analysis.exponents import exponents
from coordcheck.analysis.findings import Finding
from coordcheck.analysis.judging import judge
from coordcheck.analysis.marks import marks
from coordcheck.analysis.measurements import growing_outputs, measurements, partial_layers, rerouted_layers
from coordcheck.analysis.roles import outside, uses_across_widths
from coordcheck.analysis.slopes import MIN_WIDTHS, fit_slopes
from coordcheck.analysis.small_gradients import with_eps
from coordcheck.analysis.targets import PARAMETRIZATIONS, parametrization
from coordcheck.analysis.verdicts import Verdict, label_status
from coordcheck.common.errors import CoordCheckError, IncompleteCheck, NotWidthInvariant
from coordcheck.runs.folds import folded
from coordcheck.runs.records import RunRecord
from coordcheck.runs.selection import selected

if TYPE_CHECKING:
    from typing_extensions import Self


class Result:
    """What the runs of a check mean: tables, verdicts, status, notes and the exit code, from records alone."""

    def __init__(self, records: Sequence[RunRecord], criteria: Criteria | None = None) -> None:
        self.records = list(records)
        self.criteria = criteria or Criteria()

    @cached_property
    def _folded(self) -> list[RunRecord]:
        return folded(self.records, self.criteria.fold or {})

    @cached_property
    def measurements(self) -> pd.DataFrame:
        return measurements(self._folded)

    @cached_property
    def slopes(self) -> pd.DataFrame:
        return fit_slopes(self.measurements)

    @cached_property
    def growing(self) -> dict[tuple[str, str], bool]:
        """Per (label, layer) whether its output has an axis that grows with the width; a readout's has none."""
        return growing_outputs(self._folded)

    @cached_property
    def marks(self) -> pd.DataFrame:
        """The slopes that are violated, and those that are by design another than 0, as `marks.marks` says."""
        return marks(self.slopes, self.layers, self.growing, self.criteria)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        return combined(self._sites, self.findings, self.criteria.tolerance)

    @cached_property
    def _sites(self) -> pd.DataFrame:
        """The verdicts on layers, before their causes are known."""
        sites = judge(
            self.slopes,
            self.growing,
            partial=partial_layers(self.measurements),
            expect=self.criteria.exponents,
            tolerance=self.criteria.tolerance,
            trained=self.criteria.parametrization == "mup",
            outside=outside(self.records),
            rerouted=rerouted_layers(self.measurements),
        )
        return saturation.without_learnt(sites, saturation.learnt(self.records))

    @cached_property
    def findings(self) -> dict[str, list[Finding]]:
        """The diagnosis per label: one finding per parameter; empty where there are too few widths for one."""
        found = {}
        for label in self.labels:
            trained = [r for r in self.records if r.finished and r.key.label == label]
            own = [record for record in trained if record.uses]
            if len({record.key.width for record in own}) < MIN_WIDTHS:
                continue
            rows = self.measurements[self.measurements["label"] == label]
            uses = uses_across_widths(own, self.criteria.roles)
            targets = PARAMETRIZATIONS[self.criteria.parametrization]
            judged = diagnose(uses, exponents(rows, uses), targets, self.criteria.tolerance)
            judged = with_eps(judged, trained, self.criteria.tolerance)
            sites = self._sites[self._sites["label"] == label]
            found[label] = with_biases(judged, sites, rows, self.criteria.tolerance)
        return found

    @cached_property
    def parametrizations(self) -> dict[str, str | None]:
        """Per diagnosed label the parametrization whose exponents it has: "SP", "NTK", "mean-field", "µP" or None."""
        return {label: parametrization(found) for label, found in self.findings.items()}

    @property
    def layers(self) -> pd.DataFrame:
        """The rows of `verdicts` that are about layers."""
        return self.verdicts[self.verdicts["role"].isna()]

    @property
    def parameters(self) -> pd.DataFrame:
        """The rows of `verdicts` that are about parameters (and attention logits)."""
        return self.verdicts[self.verdicts["role"].notna()]

    @property
    def culprits(self) -> pd.DataFrame:
        """The rows of `verdicts` whose parameter is to blame."""
        return self.verdicts[self.verdicts["culprit"].astype(bool)]

    @cached_property
    def status(self) -> dict[str, Verdict]:
        """Each label's verdict: its first violated layer's, else undecided, else ok."""
        found = label_status(self.verdicts)
        known = {label: found.get(label, Verdict.UNDECIDED) for label in self.labels}
        return {label: Verdict.UNDECIDED if label in self.too_few_widths else known[label] for label in known}

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(record.key.label for record in self.records))

    def select(self, labels: Sequence[str]) -> Self:
        """The result of these labels alone, in this order.

        Returns:
            A result of the same kind, with the same criteria.

        Raises:
            CoordCheckError: a label that is not there, one given twice, or none.
        """
        return type(self)(selected(self.records, labels), self.criteria)

    @property
    def widths(self) -> list[int]:
        """The widths at which a run finished."""
        return sorted({record.key.width for record in self.records if record.finished})

    def widths_of(self, label: str) -> list[int]:
        """The widths at which a run of one label finished."""
        return sorted({r.key.width for r in self.records if r.finished and r.key.label == label})

    @property
    def missing(self) -> list[RunRecord]:
        """The runs that did not finish, each with its reason."""
        return [record for record in self.records if not record.finished]

    @property
    def unsaved(self) -> list[RunRecord]:
        """The runs that should have been saved and could not be, on a full disk say, each with the reason."""
        return [record for record in self.records if record.unsaved]

    @cached_property
    def too_few_widths(self) -> dict[str, str]:
        """The labels that can have no verdict at all, each with the reason."""
        reasons = {}
        for label in self.labels:
            widths = self.widths_of(label)
            if not widths:
                first = next(record for record in self.missing if record.key.label == label)
                reasons[label] = f"no run finished; the first one: {notes.last_line(first.reason)}"
            elif len(widths) < MIN_WIDTHS:
                reasons[label] = (
                    f"a verdict needs at least {MIN_WIDTHS} distinct widths with finished runs; "
                    f"{label!r} has {len(widths)} ({', '.join(map(str, widths))}). "
                    "Add widths: a range of 8 or more times is best."
                )
        return reasons

    @cached_property
    def notes(self) -> list[str]:
        """What the reader must know beside the verdicts."""
        parameters = {info.name for record in self.records for info in record.parameters}
        found = (
            *notes.of_unexplained(self.verdicts, self.findings),
            *notes.of_failures(self.records),
            *notes.of_found(self.records),
            *notes.of_unsaved(self.records),
            *notes.of_runs(self.records, self.findings),
            *notes.of_unseen(self.verdicts, self.status),
            *notes.of_unjudged(self.layers),
            *saturation.notes(self.layers, saturation.learnt(self.records)),
            *audit(self.records, self.findings),
            *notes.of_globs(self.criteria, parameters, set(self.measurements["layer"])),
            *notes.of_undiagnosed(self.records, {*self.findings, *self.too_few_widths}),
            *notes.of_partial(self.measurements),
            *notes.of_not_finite(self.measurements),
        )
        return list(dict.fromkeys(found))

    @property
    def exit_code(self) -> int:
        """0 invariant, 1 violated, 2 too few widths, 3 runs missing, undecided, or not saved."""
        if any(verdict.violated for verdict in self.status.values()) or self.verdicts["culprit"].any():
            return NotWidthInvariant.exit_code
        if self.missing or self.unsaved:
            return IncompleteCheck.exit_code
        if self.too_few_widths:
            return CoordCheckError.exit_code
        return 0 if all(verdict.passes for verdict in self.status.values()) else IncompleteCheck.exit_code
