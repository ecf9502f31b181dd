"""Everything a check found: tables, text, JSON, figures and the exit code, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from coordcheck import __version__
from coordcheck.audits import LIMITS, audit
from coordcheck.blame import combined
from coordcheck.diagnosis import PARAMETRIZATIONS, Finding, diagnose, parametrization
from coordcheck.errors import CoordCheckError, IncompleteCheck, NotWidthInvariant
from coordcheck.escaping import json_text
from coordcheck.exponents import exponents
from coordcheck.folds import folded
from coordcheck.labels import folder_paths, in_order, selected, told_apart
from coordcheck.marks import marks
from coordcheck.measurements import growing_outputs, measurements, not_finite, partial_layers, rerouted_layers
from coordcheck.records import NOT_COMPARED, Outcome, Quantity, RunKey, RunRecord, differences, same_label
from coordcheck.roles import outside, parts
from coordcheck.runfiles import RunFolder, replace_file
from coordcheck.slopes import MIN_WIDTHS, fit_slopes
from coordcheck.verdicts import TOLERANCE, Expectation, Verdict, judge, label_status, mostly_unseen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
TEXT_WIDTH = 100  # columns of the text report where no terminal sets another width


@dataclass(frozen=True)
class Criteria:
    """What the slopes are held against."""

    expect: Expectation | str | None = None
    """The name of a parametrization, or layer glob -> exponent for layers that should scale with the width."""
    tolerance: float = TOLERANCE
    axis: str = "width"
    roles: Mapping[str, str] | None = None
    """Parameter glob -> role, where the shapes do not tell."""
    fold: Mapping[str, str] | None = None
    """Path of a container -> "first", "last" or "mean": its numbered children become one layer."""

    @property
    def parametrization(self) -> str:
        return self.expect if isinstance(self.expect, str) else "mup"

    @property
    def exponents(self) -> Expectation | None:
        return None if isinstance(self.expect, str) else self.expect

    def to_json(self) -> dict[str, Any]:
        """The criteria as they stand in a folder's experiment.json."""
        return dict(vars(self))


class Report:
    """The result of a check. Needs neither torch nor the model: `coordcheck.load` makes it from run files.

    Attributes:
        records: the runs, finished or not.
        measurements: tidy table, one row per measured scale.
        slopes: one row per (label, layer, quantity, step).
        verdicts: per label one row per layer, in data-flow order, then one per parameter (where it was diagnosed).
    """

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
        """The slopes that are violated, and those that are by design another than 0, as `coordcheck.marks` says."""
        return marks(self)

    @cached_property
    def verdicts(self) -> pd.DataFrame:
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
        return combined(sites, self.findings, self.criteria.tolerance)

    @cached_property
    def findings(self) -> dict[str, list[Finding]]:
        """The diagnosis per label: one finding per parameter; empty where there are too few widths for one."""
        found = {}
        for label in self.labels:
            own = [r for r in self.records if r.finished and r.uses and r.key.label == label]
            if len({record.key.width for record in own}) < MIN_WIDTHS:
                continue
            rows = self.measurements[self.measurements["label"] == label]
            uses = parts(own, self.criteria.roles)
            targets = PARAMETRIZATIONS[self.criteria.parametrization]
            found[label] = diagnose(uses, exponents(rows, uses), targets, self.criteria.tolerance)
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

    def select(self, labels: Sequence[str]) -> Report:
        """The report of these labels alone, in this order.

        Raises:
            CoordCheckError: a label that is not in the report, one given twice, or none.
        """
        return Report(selected(self.records, labels), self.criteria)

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
                reasons[label] = f"no run finished; the first one: {_last_line(first.reason)}"
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
        failures: dict[tuple[str, str, str], list[int]] = {}
        found = sum(record.found for record in self.records)
        for r in self.missing:
            failures.setdefault((r.key.label, r.outcome.value, _last_line(r.reason)), []).append(r.key.width)
        notes = [
            f"{label}: {_runs(len(widths))} {outcome} (width {', '.join(map(str, sorted(set(widths))))})"
            + (f": {why}" if why else "")
            for (label, outcome, why), widths in failures.items()
        ]
        if found:
            notes.append(f"{found} of {_runs(len(self.records))} were found in the folder, and not run again")
            notes += self._not_compared()
        if self.unsaved:
            notes.append(
                f"{len(self.unsaved)} of {_runs(len(self.records))} could not be saved: {self.unsaved[0].unsaved} "
                "The same check trains them again."
            )
        for record in self.records:
            label = record.key.label
            notes.extend(f"{label}: {note}" for note in record.notes)
            followed = {
                finding.part.parameter
                for finding in self.findings.get(label, [])
                if finding.verdict is not Verdict.NOT_VISIBLE
            }
            hidden = [info.name for info in record.parameters if not info.visible and info.name not in followed]
            if hidden:
                why = "trained, but not in a call of their own module"
                notes.append(f"{label}: not visible: {', '.join(hidden)} ({why})")
            idle = [info.name for info in record.parameters if info.learning_rate is None]
            if idle:
                notes.append(f"{label}: no optimizer holds {', '.join(idle)}")
        for name, rows in self.verdicts.groupby("label", sort=False):
            if mostly_unseen(rows):
                open_ = "the cause may be one of them" if self.status[str(name)].violated else "nothing is decided"
                notes.append(f"{name}: most of its parameters are not visible, so that {open_}")
        unjudged = self.layers[self.layers["verdict"] == Verdict.NOT_JUDGED.value]
        notes += [
            f"{label}: every step saw another batch, so that changes are not judged: give the Recorder one to call the "
            "model on after each update, probe=batch"
            for label in unjudged["label"].unique()
        ]
        notes.extend(audit(self.records, self.findings))
        notes += self._globs_of_nothing()
        undiagnosed = {r.key.label for r in self.records if r.uses} - set(self.findings) - set(self.too_few_widths)
        notes += [f"{label}: not diagnosed: too few of its widths were" for label in sorted(undiagnosed)]
        partial: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for (label, layer), widths in partial_layers(self.measurements).items():
            partial.setdefault((label, tuple(widths)), []).append(layer)
        for (label, seen), layers in partial.items():
            more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
            notes.append(f"{label}: seen only at {', '.join(map(str, seen))}: {', '.join(layers[:3])}{more}")
        for row in not_finite(self.measurements).itertuples():
            first: Any = row
            where = f"width {', '.join(map(str, first.widths))}, {_runs(first.runs)}"
            notes.append(f"{first.label}: first {first.status} in {first.layer} at t={first.step} ({where})")
        return list(dict.fromkeys(notes))

    def _not_compared(self) -> list[str]:
        """Which values runs were found with, of which nobody knows whether they are still the same."""
        found = [record.settings for record in self.records if record.found]
        told = {name: why for settings in found for name, why in settings.items() if name.startswith(NOT_COMPARED)}
        values = [f"{name.removeprefix(NOT_COMPARED)} ({why})" for name, why in told.items()]
        return [f"they may be out of date: these could not be compared: {'; '.join(values)}"] if values else []

    def _globs_of_nothing(self) -> list[str]:
        """The names in `roles` and `expect` that no parameter, or no layer, has."""
        parameters = {info.name for record in self.records for info in record.parameters}
        layers = set(self.measurements["layer"])
        wanted = [("roles", glob, parameters) for glob in self.criteria.roles or {}]
        wanted += [("expect", glob, layers) for glob in self.criteria.exponents or {}]
        return [
            f"{name}= names {glob!r}, which is no {'parameter' if name == 'roles' else 'layer'}"
            for name, glob, known in wanted
            if known and not any(fnmatchcase(one, glob) for one in known)
        ]

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

    def raise_for_status(self) -> None:
        """Raise when the check did not pass; the message is the report on one screen.

        Raises:
            NotWidthInvariant: (an AssertionError) a layer is violated.
            IncompleteCheck: runs are missing, or a layer is undecided.
            CoordCheckError: fewer than 3 widths.
        """
        __tracebackhide__ = True  # pytest shows the report, not this method
        errors = {1: NotWidthInvariant, 2: CoordCheckError, 3: IncompleteCheck}
        if self.exit_code:
            from coordcheck.summaries import failure

            raise errors[self.exit_code](failure(self))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(
            file=StringIO(), width=TEXT_WIDTH, force_terminal=False, force_jupyter=False, color_system=None
        )
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO given above
        return "\n".join(line.rstrip() for line in text.splitlines())

    def __rich__(self) -> Any:
        """The report as rich renders it: `rich.print(report)` shows it in colour."""
        from coordcheck.text import render

        return render(self)

    def figure(
        self,
        kind: str = "divergence",
        *,
        quantity: str | Quantity | None = None,
        steps: Sequence[int] | int | None = None,
        layers: Sequence[str] | str | None = None,
        figsize: Sequence[float] | None = None,
        path: str | PathLike[str] | None = None,
    ) -> Figure:
        """Draw the check. What you set in matplotlib's rcParams (fonts, sizes, a style) holds; none of it is changed.

        Args:
            kind: "divergence" (scale and change against width, a row per label, a column per step), "slopes" (a map of
                the slopes, layers by steps) or "exponents" (parameter by parameter, what the diagnosis measured).
            quantity: of the first two: "activation", "mean_abs" or "change". Without one, the first shows what verdicts
                are read from, the scale at t = 0 and the change after it, and the second the change.
            steps: which steps of the first two; at most six that tell most, unless given.
            layers: a name or a glob, or several: only these layers, or parameters.
            figsize: width and height in inches; as large as it takes, unless given.
            path: also save it there, as the suffix says (.png, .svg, .pdf); the file is replaced in one step.

        Raises:
            CoordCheckError: another kind or quantity; steps or layers that are not there, a size that leaves no room
                for the panels, or a path that cannot be written.
        """
        from coordcheck import figures

        drawers = {
            "divergence": figures.draw_divergence,
            "slopes": figures.draw_slope_map,
            "exponents": figures.draw_exponents,
        }
        if kind not in drawers:
            raise CoordCheckError(f"there is no figure {kind!r}; known are {', '.join(map(repr, drawers))}.")
        figure = drawers[kind](self, figures.view_of(quantity, steps, layers, figsize))
        if path is not None:
            figures.save_figure(figure, path)
        return figure

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write the report as one HTML page that needs no other file and no network; it is replaced in one step.

        Raises:
            CoordCheckError: a path that cannot be written.
        """
        from coordcheck.page import render_page

        data = render_page(self).encode()
        try:
            replace_file(Path(path), data)
        except ValueError as error:  # no name, or a NUL in it
            raise CoordCheckError(f"cannot write {str(path)!r}: {error}. Give the path of a file.") from error

    def log(self, to: Any, *, step: int | None = None) -> None:
        """Log the report: figures, text, the verdicts as a table, and how many layers are violated.

        A tracker that fails is told once in the log of "coordcheck"; it raises nothing.

        Args:
            to: a TensorBoard `SummaryWriter`, a W&B or trackio run or module, the module mlflow or `(MlflowClient,
                run_id)`, or a Lightning logger of one of these.
            step: the tracker's step.

        Raises:
            CoordCheckError: anything else; the message lists what is accepted.
        """
        from coordcheck.integrations.loggers import log

        log(self, to, step=step)

    def _repr_html_(self) -> str:
        """The report as a notebook shows it."""
        from coordcheck.page import render_fragment

        return render_fragment(self)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write one run file per run into `folder`, from which `coordcheck.load` reads them."""
        runs = RunFolder(folder)
        settings = {r.key.label: r.settings for r in self.records}
        runs.save_experiment(self.criteria.to_json(), settings, [r.key for r in self.records])
        for record in self.records:
            runs.save(record)

    def to_json(self) -> str:
        """All of the report as strict JSON (no NaN: null), as `coordcheck/report.schema.json` describes it."""
        return json_text(
            {
                "format": "coordcheck report",
                "schema": SCHEMA,
                "coordcheck": __version__,
                "exit_code": self.exit_code,
                "status": {label: verdict.value for label, verdict in self.status.items()},
                "axis": self.criteria.axis,
                "widths": self.widths,
                **{key: value for key, value in self.criteria.to_json().items() if key != "axis"},
                "verdicts": _records(self.verdicts),
                "slopes": _records(self.slopes),
                "parametrizations": self.parametrizations,
                "runs": [
                    {
                        **{"label": r.key.label, "width": r.key.width, "seed": r.key.seed},
                        **{"outcome": r.outcome.value, "reason": r.reason, "seconds": r.seconds},
                    }
                    for r in self.records
                ],
                "settings": {record.key.label: record.settings for record in reversed(self.records)},
                "notes": self.notes,
                "limits": LIMITS,
            },
        )


def load(
    folder: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    labels: Sequence[str] | None = None,
    expect: Expectation | str | None = None,
    tolerance: float | None = None,
    axis: str | None = None,
    roles: Mapping[str, str] | None = None,
    fold: Mapping[str, str] | None = None,
) -> Report:
    """The report of a folder of run files, or of several, whoever wrote them: a check, or the jobs of a cluster.

    Args:
        folder: one folder, or several; a label that two of them have gets the name of its folder: `build (after)`.
        labels: which to show, and in which order; None shows all, in the order in which they were checked.
        expect: this and the others are those of the check that wrote the folder, unless given.
        tolerance: as for `check`.
        axis: as for `check`.
        roles: as for `check`.
        fold: as for `check`.

    Raises:
        CoordCheckError: no such folder, no runs in it, runs of one label made with different settings, folders that
            were judged differently, or a label that is not there.
        RunFileError: a file that is damaged, truncated, foreign or newer.
    """
    given = {"expect": expect, "tolerance": tolerance, "axis": axis, "roles": roles, "fold": fold}
    given = {name: value for name, value in given.items() if value is not None}
    found: dict[Path, list[RunRecord]] = {}
    judged: dict[Path, dict[str, Any]] = {}
    for path in folder_paths(folder):
        found[path], judged[path] = _read(RunFolder(path))
    records = told_apart(found) if len(found) > 1 else next(iter(found.values()))
    criteria = {"tolerance": TOLERANCE, "axis": "width", **_common_criteria(judged, given), **given}
    return Report(records if labels is None else selected(records, labels), Criteria(**criteria))


def _read(runs: RunFolder) -> tuple[list[RunRecord], dict[str, Any]]:
    """The runs of one folder, those that were planned and not run included, and how they were judged."""
    records = list(runs.records())
    first: dict[str, RunRecord] = {}
    for record in records:
        other = first.setdefault(record.key.label, record)
        differing = differences(other.settings, record.settings)
        if differing:
            raise CoordCheckError(
                f"{runs} mixes runs made with different settings: from {other.key} to {record.key}, "
                f"{'; '.join(differing)}. Keep each setting in a folder of its own."
            )
    experiment = runs.experiment()
    done = {(same_label(r.key.label), r.key.width, r.key.seed) for r in records}
    for label, planned in experiment.get("planned", {}).items():
        for width, seed in planned:
            if (same_label(label), width, seed) not in done:
                settings = experiment["labels"].get(label, {})
                records.append(RunRecord(RunKey(label, width, seed), settings=settings, outcome=Outcome.NOT_RUN))
    return in_order(records, experiment.get("labels", {})), experiment.get("criteria", {})


def _common_criteria(judged: Mapping[Path, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """How all folders were judged, where the caller does not say; what a Recorder wrote was not judged by anybody."""
    known = [(path, criteria) for path, criteria in judged.items() if criteria]
    for path, criteria in known[1:]:
        pair = ({name: str(value) for name, value in c.items() if name not in given} for c in (known[0][1], criteria))
        differing = differences(*pair)
        if differing:
            name = differing[0].partition(" ")[0]
            raise CoordCheckError(
                f"the runs of {known[0][0]} and {path} were not judged alike: {'; '.join(differing)}. Pass {name}=."
            )
    saved = known[0][1] if known else {}
    return {name: saved[name] for name in Criteria.__dataclass_fields__ if name in saved and name not in given}


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON data: NaN and Inf become null."""
    rows = []
    for row in table.to_dict("records"):
        rows.append({str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    return rows
