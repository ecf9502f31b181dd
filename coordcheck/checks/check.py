"""The main verb: `check`, and the form of it that raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.verdicts import TOLERANCE, Expectation
from coordcheck.checks.watching import WidthWatch
from coordcheck.common.errors import CoordCheckError, SweepInterrupted
from coordcheck.common.isolation import user_code
from coordcheck.recording.batches import Batches, cached_batches
from coordcheck.reporting.report import Report
from coordcheck.runs.arguments import (
    Means,
    expectation,
    fold_names,
    folder_path,
    labelled,
    means,
    optional_callable,
    role_overrides,
)
from coordcheck.runs.files import RunFolder
from coordcheck.runs.grids import bounded_grid, distinct_widths, seed_numbers
from coordcheck.runs.numbers import positive, whole_number
from coordcheck.runs.records import RunKey
from coordcheck.training.fingerprints.fingerprint import fingerprint, settings_of
from coordcheck.training.losses import as_loss
from coordcheck.training.surroundings import numeric_state, preserved_state, state_settings
from coordcheck.training.sweep import sweep, worker_threads
from coordcheck.training.trials import Build, Probe, Run, run_settings

WIDTHS = (64, 128, 256, 512)
DIAGNOSED_WIDTHS = (64, 128, 256)
DIAGNOSED_SEEDS = 2
SEEDS = 3
STEPS = 4


def check(
    build: Build | Mapping[str, Build],
    batch: Any = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    widths: Sequence[int] = WIDTHS,
    seeds: int | Sequence[int] = SEEDS,
    steps: int = STEPS,
    expect: Expectation | str | None = None,
    tolerance: float = TOLERANCE,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    timeout: float | None = None,
    save_to: str | PathLike[str] | None = None,
    axis: str = "width",
    probe: Any = "auto",
    roles: Mapping[str, str] | None = None,
    fold: Mapping[str, str] | None = None,
) -> Report:
    """Train `build(width)` at every width and seed for t = 0..steps, and judge how its scales depend on the width.

    How far the runs are is a bar on a terminal; elsewhere a line on standard error, no more than one in ten seconds. A
    program that has logging at INFO finds the lines there, and `logging.getLogger("coordcheck").setLevel("WARNING")`
    has neither.

    Args:
        build: `build(width) -> (model, optimizer)` or a `Trial`; or several by label: {"SP": ..., "µP": ...}.
        batch: one fixed batch (a tensor, a mapping, or a tuple such as (x, y)), an iterable of batches (step t
            trains on the t-th; scales, and changes h_t - h_0, are those of the first, on which the model is called
            once more at every step), or a function of the seed that gives either.
        loss: a function of (model, batch), a criterion of `torch.nn.functional` or `torch.nn` for pairs (x, y),
            or None for mapping batches whose model returns its own loss.
        widths: at least 3 distinct positive integers; a range of 8 or more times says most.
        seeds: how many, or which; one seed rarely decides.
        steps: optimizer updates; t = 0 is initialisation.
        expect: "mup" (the default), "sp", "ntk" or "mean-field": whose exponents the parameters are held against; or
            layer glob -> exponent for layers that should scale with the width, all others: 0.
        tolerance: slopes within this of the expected exponent are that exponent.
        device: where to train; None leaves the model where `build` put it.
        executor: any PEP 3148 executor of processes.
        jobs: how many runs side by side, in processes of our own, when no executor is given.
        timeout: seconds that a run may take; then its process is killed. Every run is in one, also with one job.
        save_to: folder for run files; finished runs found there are not run again.
        axis: the name of what `widths` counts, for text and figures (depth, heads, ...). Along another axis than the
            width nothing is diagnosed.
        probe: the batch of the diagnosis, of 1 to 8 examples or tokens; "auto" takes them from `batch`, None leaves the
            diagnosis out.
        roles: glob of parameter names -> "input", "hidden", "readout", "narrow", "vector" or "constant", where the
            shapes do not tell.
        fold: path of a container of repeated blocks -> "first", "last" or "mean": they become one layer, so that
            models of different depth can be compared: {"blocks": "last"} makes `blocks.last.mlp` of `blocks.7.mlp`.

    Returns:
        A `Report`: print it, `report.figure()`, `report.verdicts`, `report.raise_for_status()`.

    Raises:
        CoordCheckError: input that cannot be checked; the message says what is accepted.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with the report so far.
    """
    steps, probed = whole_number("steps", steps, 0), probe if axis == "width" else None
    plan = _Plan(batch, loss, steps, device, probe=probed)
    tolerance, folds = positive("tolerance", tolerance), fold_names(fold)
    criteria = Criteria(expectation(expect), tolerance, axis, role_overrides(roles), folds)
    return _checked(labelled(build), plan, criteria, widths, seeds, means(executor, jobs, timeout), save_to)


def diagnose(
    build: Build | Mapping[str, Build],
    batch: Any = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    widths: Sequence[int] = DIAGNOSED_WIDTHS,
    seeds: int | Sequence[int] = DIAGNOSED_SEEDS,
    expect: str | None = None,
    tolerance: float = TOLERANCE,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    timeout: float | None = None,
    save_to: str | PathLike[str] | None = None,
    probe: Any = "auto",
    roles: Mapping[str, str] | None = None,
) -> Report:
    """Say which parameter is to blame and by which power of the width to multiply what, after one or two updates.

    This is the diagnosis of `check` alone: no training on the batch, no figure of scales; three small widths and two
    seeds are enough, because its exponents are local to one parameter.

    Args:
        build: as for `check`.
        batch: as for `check`; a few examples or tokens of it are used.
        loss: as for `check`.
        widths: at least 3 distinct positive integers.
        seeds: how many, or which.
        expect: "mup" (the default), "sp", "ntk" or "mean-field".
        tolerance: exponents within this of the expected one are that exponent.
        device: as for `check`.
        executor: as for `check`.
        jobs: as for `check`.
        timeout: as for `check`.
        save_to: as for `check`.
        probe: the tiny batch itself; "auto" takes it from `batch`.
        roles: as for `check`.

    Returns:
        A `Report`, whose `verdicts` have one row per parameter.

    Raises:
        CoordCheckError: input that cannot be checked; the message says what is accepted.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with the report so far.

    Source: the exponents are those of abc-parametrizations, Yang & Hu 2021, arXiv:2011.14522.
    """
    if probe is None:
        raise CoordCheckError('probe must be a batch, or "auto" for a few examples of batch=.')
    plan = _Plan(batch, loss, 0, device, probe=probe, figure=False)
    criteria = Criteria(expectation(expect), positive("tolerance", tolerance), "width", role_overrides(roles))
    return _checked(labelled(build), plan, criteria, widths, seeds, means(executor, jobs, timeout), save_to)


def _checked(
    builds: Mapping[str, Build],
    plan: _Plan,
    criteria: Criteria,
    widths: Any,
    seeds: Any,
    how: Means,
    save_to: Any,
) -> Report:
    """Run a plan on a grid, and report."""
    for label, build in builds.items():
        if isinstance(build, torch.nn.Module):
            raise CoordCheckError(f"build of {label!r} is a model; pass a function of the width that makes one.")
    optional_callable(
        "loss", plan.loss, "a function of (model, batch), or a criterion of torch.nn.functional or torch.nn"
    )
    folder = None
    if save_to is not None:
        folder_path("save_to", save_to)
        folder = RunFolder(save_to)  # before anything of the user's runs, which may change the current folder
    numbers, given = seed_numbers(seeds), distinct_widths(widths)
    bounded_grid(labels=len(builds), widths=len(given), seeds=len(numbers))
    grid = [(seed, label, width) for seed in numbers for label in builds for width in given]
    with preserved_state():
        with user_code("batch, loss or build"):
            plan.prepare(worker_threads(how.executor, how.jobs), given, numbers, builds=builds)
            runs = [plan.run(RunKey(label, width, seed), builds[label]) for seed, label, width in grid]
        watch = WidthWatch() if criteria.axis == "width" else None
        try:

            def begin() -> None:
                if folder is not None:
                    settings = {run.key.label: run.settings for run in runs}
                    folder.save_experiment(criteria.to_json(), settings, [run.key for run in runs])

            records = sweep(runs, **how._asdict(), folder=folder, watch=watch, begin=begin)
        except SweepInterrupted as stop:
            done: Any = stop.report
            raise SweepInterrupted(str(stop), Report(done, criteria) if done else None) from None
    if not any(record.finished for record in records):
        raise CoordCheckError(f"every run failed; the first one, {records[0].key}:\n{records[0].reason}")
    return Report(records, criteria)


class _Plan:
    """What all runs of a check share, and how it is written down."""

    def __init__(
        self, batch: Any, loss: Any, steps: int, device: str | None, *, probe: Any, figure: bool = True
    ) -> None:
        self.loss = loss
        self._batch, self._steps, self._device = batch, steps, device
        self._probe, self._figure = probe, figure

    def prepare(
        self, threads: int, widths: Sequence[int], seeds: Sequence[int], *, builds: Mapping[str, Build]
    ) -> None:
        """Look at batch, loss and builds, choose the runs that are diagnosed, and write the settings down."""
        self._batches, self._threads = cached_batches(self._batch, self._steps), threads
        if self._figure:  # exponents that are local to a parameter need neither the widest model nor every seed
            widths, seeds = widths[: len(DIAGNOSED_WIDTHS)], seeds[:DIAGNOSED_SEEDS]
        self._diagnosed, self._smallest = (set(widths), set(seeds)), widths[0]
        self._settings = {
            "passes": (f"{self._figure_text()}, " if self._figure else "") + f"diagnosis on {self._probe_text()}",
            **run_settings(
                self._batches.values if isinstance(self._batches, Batches) else self._batch,
                self.loss,
                steps=self._steps,
                device=self._device,
                threads=threads,
            ),
        }
        self._described = {label: settings_of(build=build) for label, build in builds.items()}
        self._settings |= state_settings()  # last: with what was imported for the builds, and set by that
        self._state = numeric_state()

    def _figure_text(self) -> str:
        several = isinstance(self._batches, Batches) and len(self._batches.values) > 1
        return "figure of the first batch" if several else "figure"

    def _probe_text(self) -> str:
        if self._probe is None or isinstance(self._probe, str):
            return self._probe or "nothing"
        return fingerprint(self._probe)

    def run(self, key: RunKey, build: Build) -> Run:
        """One run, with everything that changes its numbers in its settings."""
        settings = self._settings | self._described[key.label]
        probe, (widths, seeds) = None, self._diagnosed
        if self._probe is not None and key.width in widths and key.seed in seeds:
            given = None if isinstance(self._probe, str) else self._probe
            probe = Probe(given, degrees=key.width == self._smallest)
        shared = self._batches, as_loss(self.loss), self._steps, self._device, self._threads
        return Run(key, build, *shared, settings, figure=self._figure, probe=probe, state=self._state)
