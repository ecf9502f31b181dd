"""The report of a check, as a person holds it: printed, drawn, written to a page or a file, logged, loaded again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from coordcheck.analysis.audits import LIMITS
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import TOLERANCE, Expectation
from coordcheck.common.errors import CoordCheckError, IncompleteCheck, NotWidthInvariant
from coordcheck.common.escaping import json_text
from coordcheck.common.version import __version__
from coordcheck.reporting.summaries import failure
from coordcheck.runs.agreement import differences
from coordcheck.runs.files import RunFolder, replace_file
from coordcheck.runs.names import same_label
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.selection import folder_paths, in_order, selected, told_apart
from coordcheck.runs.words import Outcome, Quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


class Report(Result):
    """The result of a check: print it, draw it, save it, read its tables.

    Needs neither torch nor the model: `coordcheck.load` makes it from run files.

    Attributes:
        records: the runs, finished or not.
        measurements: tidy table, one row per measured scale.
        slopes: one row per (label, layer, quantity, step).
        verdicts: per label one row per layer, in data-flow order, then one per parameter (where it was diagnosed).
    """

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
            raise errors[self.exit_code](failure(self))

    def __str__(self) -> str:
        from coordcheck.reporting.text import plain

        return plain(self)

    def __rich__(self) -> Any:
        """The report as rich renders it: `rich.print(report)` shows it in colour."""
        from coordcheck.reporting.text import render

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

        Returns:
            The figure, which no window shows by itself.

        Raises:
            CoordCheckError: another kind or quantity; steps or layers that are not there, a size that leaves no room
                for the panels, or a path that cannot be written.
        """
        from coordcheck.reporting.figures import draw, save_figure, view_of

        figure = draw(self, kind, view_of(quantity, steps, layers, figsize))
        if path is not None:
            save_figure(figure, path)
        return figure

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write the report as one HTML page that needs no other file and no network; it is replaced in one step.

        Raises:
            CoordCheckError: a path that cannot be written.
        """
        from coordcheck.reporting.page import render_page

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
        from coordcheck.reporting.trackers import log

        log(self, to, step=step)

    def _repr_html_(self) -> str:
        """The report as a notebook shows it."""
        from coordcheck.reporting.page import render_fragment

        return render_fragment(self)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write one run file per run into `folder`, from which `coordcheck.load` reads them."""
        runs = RunFolder(folder)
        settings = {r.key.label: r.settings for r in self.records}
        runs.save_experiment(self.criteria.to_json(), settings, [r.key for r in self.records])
        for record in self.records:
            runs.save(record)

    def to_json(self) -> str:
        """All of the report as strict JSON (no NaN: null), as `coordcheck/reporting/report.schema.json` tells it."""
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
        expect: "mup", "sp", "ntk", "mean-field", or layer glob -> exponent. This and the others are those of the check
            that wrote the folder, unless given.
        tolerance: how far a slope may lie from the expected exponent.
        axis: the name of what the widths count.
        roles: glob of parameter names -> role, where the shapes do not tell.
        fold: path of a container of repeated blocks -> "first", "last" or "mean": they become one layer.

    Returns:
        The report of all runs, those that were planned and did not run included.

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


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON data: NaN and Inf become null."""
    rows = []
    for row in table.to_dict("records"):
        rows.append({str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    return rows
