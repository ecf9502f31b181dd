"""The main verb: `check`, and the form of it that raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from coordcheck.arguments import (
    distinct_widths,
    expectation,
    folder_path,
    labelled,
    optional_callable,
    positive,
    process_executor,
    seed_numbers,
    whole_number,
)
from coordcheck.batches import Batches, cached_batches
from coordcheck.errors import CoordCheckError, SweepInterrupted
from coordcheck.fingerprints import describe_callable, fingerprint
from coordcheck.losses import as_loss
from coordcheck.records import RunKey, RunRecord
from coordcheck.report import Criteria, Report
from coordcheck.runfiles import RunFolder, versions
from coordcheck.sweep import sweep, worker_threads
from coordcheck.training import Build, Run, preserved_state
from coordcheck.verdicts import TOLERANCE, Expectation

WIDTHS = (64, 128, 256, 512)
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
    expect: Expectation | None = None,
    tolerance: float = TOLERANCE,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    save_to: str | PathLike[str] | None = None,
    axis: str = "width",
) -> Report:
    """Train `build(width)` at every width and seed for t = 0..steps, and judge how its scales depend on the width.

    Args:
        build: `build(width) -> (model, optimizer)` or a `Trial`; or several by label: {"SP": ..., "µP": ...}.
        batch: one fixed batch (a tensor, a mapping, or a tuple such as (x, y)), an iterable of batches (step t
            uses the t-th: scales are shown, but h_t - h_0 is then no effect of training alone, and layers stay
            undecided), or a function of the seed that gives either.
        loss: a function of (model, batch), a criterion of `torch.nn.functional` or `torch.nn` for pairs (x, y),
            or None for mapping batches whose model returns its own loss.
        widths: at least 3 distinct positive integers; a range of 8 or more times says most.
        seeds: how many, or which; one seed rarely decides.
        steps: optimizer updates; t = 0 is initialisation.
        expect: layer glob -> exponent for layers that should scale with the width; all others: 0.
        tolerance: slopes within this of the expected exponent are that exponent.
        device: where to train; None leaves the model where `build` put it.
        executor: any PEP 3148 executor of processes.
        jobs: how many runs side by side, on a pool of our own, when no executor is given.
        save_to: folder for run files; finished runs found there are not run again.
        axis: the name of what `widths` counts, for text and figures (depth, heads, ...).

    Returns:
        A `Report`: print it, `report.figure()`, `report.verdicts`, `report.raise_for_status()`.

    Raises:
        CoordCheckError: input that cannot be checked; the message says what is accepted.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with the report so far.
    """
    builds = labelled(build)
    criteria = Criteria(expectation(expect), positive("tolerance", tolerance), axis)
    steps, jobs = whole_number("steps", steps, 0), whole_number("jobs", jobs, 1)
    optional_callable("loss", loss, "a function of (model, batch), or a criterion of torch.nn.functional or torch.nn")
    process_executor(executor)
    if save_to is not None:
        folder_path("save_to", save_to)
    grid = [
        (seed, label, width) for seed in seed_numbers(seeds) for label in builds for width in distinct_widths(widths)
    ]
    with preserved_state():
        plan = _Plan(batch, loss, steps, device, worker_threads(executor, jobs))
        runs = [plan.run(RunKey(label, width, seed), builds[label]) for seed, label, width in grid]
        watch = _WidthWatch() if axis == "width" else None
        try:
            folder = None if save_to is None else RunFolder(save_to)
            records = sweep(runs, executor=executor, jobs=jobs, folder=folder, watch=watch)
        except SweepInterrupted as stop:
            done: Any = stop.report
            raise SweepInterrupted(str(stop), Report(done, criteria) if done else None) from None
    if not any(record.finished for record in records):
        raise CoordCheckError(f"every run failed; the first one, {records[0].key}:\n{records[0].reason}")
    if folder is not None:
        folder.save_experiment(criteria.to_json(), {run.key.label: run.settings for run in runs})
    return Report(records, criteria)


class _Plan:
    """What all runs of a check share, and how it is written down."""

    def __init__(self, batch: Any, loss: Any, steps: int, device: str | None, threads: int) -> None:
        self._batches = cached_batches(batch, steps)
        self._loss, self._steps, self._device, self._threads = as_loss(loss), steps, device, threads
        self._settings = {
            "steps": str(steps),
            "batch": fingerprint(self._batches.values if isinstance(self._batches, Batches) else self._batches),
            "loss": describe_callable(loss),
            "device": device or "as built",
            "threads": str(threads),
            "dtype": str(torch.get_default_dtype()),
            "torch": versions()["torch"],
        }

    def run(self, key: RunKey, build: Build) -> Run:
        """One run, with everything that changes its numbers in its settings."""
        settings = {**self._settings, "build": describe_callable(build)}
        return Run(key, build, self._batches, self._loss, self._steps, self._device, self._threads, settings)


def assert_width_invariant(build: Build | Mapping[str, Build], batch: Any = None, **options: Any) -> Report:
    """Check, and raise an AssertionError with the report's text when a layer's scale depends on the width.

    Takes the arguments of `check`; returns its report when it passes.

    Raises:
        NotWidthInvariant: (an AssertionError) a layer is violated.
        IncompleteCheck: runs are missing, or the evidence does not decide.
        CoordCheckError: input that cannot be checked.
    """
    __tracebackhide__ = True  # pytest shows the report, not this function
    report = check(build, batch, **options)
    report.raise_for_status()
    return report


class _WidthWatch:
    """Refuses a factory that ignores its width, as soon as two widths of one label have been built."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, list[tuple[str, tuple[int, ...]]]]] = {}

    def __call__(self, record: RunRecord) -> None:
        if not record.finished:
            return
        shapes = [(info.name, info.shape) for info in record.parameters]
        width, other = self._seen.setdefault(record.key.label, (record.key.width, shapes))
        if width != record.key.width and shapes == other:
            raise CoordCheckError(
                f"build of {record.key.label!r} made models with equal parameter shapes at widths {width} and "
                f"{record.key.width}: does the factory use its width argument? If another axis is checked, "
                'name it: axis="depth".'
            )
