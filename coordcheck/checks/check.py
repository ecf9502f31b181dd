"""The main verb: `check`, and the form of it that raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.verdicts import TOLERANCE, Expectation
from coordcheck.checks.grid import Grid, grid_of, train
from coordcheck.checks.watching import WidthWatch
from coordcheck.common.docstrings import as_for
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import user_code
from coordcheck.recording.batches import Batches, cached_batches
from coordcheck.reporting.report import Report
from coordcheck.runs.arguments import expectation, fold_names, labelled, loss_function, means, role_overrides
from coordcheck.runs.numbers import positive, whole_number
from coordcheck.runs.records import RunKey
from coordcheck.training.fingerprints.fingerprint import fingerprint, settings_of
from coordcheck.training.losses import as_loss
from coordcheck.training.surroundings import numeric_state, preserved_state, state_settings
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

    Args:
        build: `build(width) -> (model, optimizer)` or a `Trial`; or several by label: {"SP": ..., "µP": ...}.
        batch: one fixed batch (a tensor, a mapping, or a tuple such as (x, y)), an iterable of batches (step t trains
            on the t-th; scales, and changes h_t - h_0, are those of the first, on which the model is called once more
            at every step), or a function of the seed that gives either.
        loss: a function of (model, batch), a criterion of `torch.nn.functional` or `torch.nn` for pairs (x, y), or
            None for mapping batches whose model returns its own loss.
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
        axis: what `widths` counts, for text and figures; along another axis (depth, heads) nothing is diagnosed.
        probe: the batch of the diagnosis, of 1 to 8 examples or tokens; "auto" takes them from `batch`, None leaves the
            diagnosis out.
        roles: glob of parameter names -> "input", "hidden", "readout", "narrow", "vector" or "constant", where the
            shapes do not tell.
        fold: path of a container of repeated blocks -> "first", "last" or "mean": they become one layer, so that models
            of different depth can be compared: {"blocks": "last"} makes `blocks.last.mlp` of `blocks.7.mlp`.

    Returns:
        A `Report`: print it, `report.figure()`, `report.verdicts`, `report.raise_for_status()`.

    Raises:
        CoordCheckError: input that cannot be checked; the message says what is accepted.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with the report so far.
    """
    plan = _Plan(batch, loss, whole_number("steps", steps, 0), device, probe if axis == "width" else None)
    tolerance, folds = positive("tolerance", tolerance), fold_names(fold)
    criteria = Criteria(expectation(expect), tolerance, axis, role_overrides(roles), folds)
    how = means(executor, jobs, timeout)
    return _checked(labelled(build), plan, criteria, widths=widths, seeds=seeds, means=how, save_to=save_to)


@as_for(check)
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

    This is the diagnosis of `check` alone: no training on the batch, but for the first update where an optimizer's eps
    is not far below the gradients, and no figure of scales; three small widths and two seeds are enough, because its
    exponents are local to one parameter.

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
    plan = _Plan(batch, loss, 0, device, probe, figure=False)
    criteria = Criteria(expectation(expect), positive("tolerance", tolerance), "width", role_overrides(roles))
    how = means(executor, jobs, timeout)
    return _checked(labelled(build), plan, criteria, widths=widths, seeds=seeds, means=how, save_to=save_to)


def _checked(builds: Mapping[str, Build], plan: _Plan, criteria: Criteria, **where: Any) -> Report:
    """Train a plan's runs on a grid, which `grid_of` takes as keywords, and report."""
    for label, build in builds.items():
        if isinstance(build, torch.nn.Module):
            raise CoordCheckError(f"build of {label!r} is a model; pass a function of the width that makes one.")
    loss_function(plan.loss)
    grid = grid_of(len(builds), **where)
    with preserved_state():
        with user_code("batch, loss or build"):
            runs = plan.runs(builds, grid)

        def begin() -> None:
            if grid.folder is not None:
                settings = {run.key.label: run.settings for run in runs}
                grid.folder.save_experiment(criteria.to_json(), settings, [run.key for run in runs])

        watch = WidthWatch() if criteria.axis == "width" else None
        return train(runs, grid, lambda records: Report(records, criteria), watch=watch, begin=begin)


@dataclass(frozen=True)
class _Plan:
    """What all runs of a check share."""

    batch: Any
    loss: Any
    steps: int
    device: str | None
    probe: Any
    figure: bool = True

    def runs(self, builds: Mapping[str, Build], grid: Grid) -> list[Run]:
        """The runs of a grid, seed by seed, each with everything that changes its numbers in its settings."""
        batches = cached_batches(self.batch, self.steps)
        given = batches.values if isinstance(batches, Batches) else self.batch
        common = {
            "passes": self._passes(batches),
            **run_settings(given, self.loss, steps=self.steps, device=self.device, threads=grid.threads),
        }
        described = {label: settings_of(build=build) for label, build in builds.items()}
        common |= state_settings()  # last: with what was imported for the builds, and set by that
        state, shared = numeric_state(), (batches, as_loss(self.loss), self.steps, self.device, grid.threads)
        found = []
        for seed, label, width in product(grid.seeds, builds, grid.widths):
            run = Run(RunKey(label, width, seed), builds[label], *shared, common | described[label])
            found.append(replace(run, figure=self.figure, probe=self._probe_of(width, seed, grid), state=state))
        return found

    def _passes(self, batches: Any) -> str:
        """What is done in a run, in words."""
        given = "nothing" if self.probe is None else self.probe
        probe = given if isinstance(given, str) else fingerprint(given)
        several = isinstance(batches, Batches) and len(batches.values) > 1
        figure = "figure of the first batch, " if several else "figure, "
        return (figure if self.figure else "") + f"diagnosis on {probe}"

    def _probe_of(self, width: int, seed: int, grid: Grid) -> Probe | None:
        """How a run is diagnosed, if it is."""
        widths, seeds = grid.widths, grid.seeds
        if self.figure:  # exponents that are local to a parameter need neither the widest model nor every seed
            widths, seeds = widths[: len(DIAGNOSED_WIDTHS)], seeds[:DIAGNOSED_SEEDS]
        if self.probe is None or width not in widths or seed not in seeds:
            return None
        return Probe(None if isinstance(self.probe, str) else self.probe, degrees=width == widths[0])
