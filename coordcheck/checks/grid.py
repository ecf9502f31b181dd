"""The runs of a check or a sweep: where they lie on the grid, and how they are trained and handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from coordcheck.common.errors import CoordCheckError, SweepInterrupted
from coordcheck.runs.arguments import Means, folder_path
from coordcheck.runs.files import RunFolder
from coordcheck.runs.grids import bounded_grid, distinct_widths, seed_numbers
from coordcheck.runs.records import RunRecord
from coordcheck.training.sweep import sweep, worker_threads
from coordcheck.training.trials import Run

Found = TypeVar("Found")


@dataclass(frozen=True)
class Grid:
    """At which widths and seeds to train, by which means, and the folder of the run files."""

    widths: list[int]
    seeds: list[int]
    means: Means
    folder: RunFolder | None

    @property
    def threads(self) -> int:
        """Threads per run."""
        return worker_threads(self.means.executor, self.means.jobs)


def grid_of(labels: int, *, widths: Any, seeds: Any, means: Means, save_to: Any, **counts: int) -> Grid:
    """The grid that a caller asks for; it is made before any code of the caller's, which may change the folder.

    Args:
        labels: how many models there are.
        widths: positive integers.
        seeds: how many, or which.
        means: how runs are executed.
        save_to: the folder of the run files, or None.
        counts: how many of everything else that the runs differ in, such as `lrs`.

    Returns:
        The grid, with its widths ascending and distinct.

    Raises:
        CoordCheckError: widths, seeds or a folder that cannot be used, or more runs than anybody could mean.
    """
    if save_to is not None:
        folder_path("save_to", save_to)
    folder = None if save_to is None else RunFolder(save_to)
    numbers, given = seed_numbers(seeds), distinct_widths(widths)
    bounded_grid(labels=labels, widths=len(given), seeds=len(numbers), **counts)
    return Grid(given, numbers, means, folder)


def train(
    runs: Sequence[Run],
    grid: Grid,
    report: Callable[[list[RunRecord]], Found],
    *,
    watch: Callable[[RunRecord], None] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Found:
    """Train the runs that the grid's folder does not hold yet, and report on all.

    Args:
        runs: one per point of the grid and label.
        grid: how they are executed, and where they are kept.
        report: makes of the records what the caller gets.
        watch: as for `sweep`.
        begin: as for `sweep`.

    Returns:
        What `report` makes of all records.

    Raises:
        CoordCheckError: no run finished, or the folder cannot be used.
        SweepInterrupted: Ctrl-C; its `report` is that of what is finished.
    """
    try:
        records = sweep(runs, **grid.means._asdict(), folder=grid.folder, watch=watch, begin=begin)
    except SweepInterrupted as stop:
        done: Any = stop.report
        raise SweepInterrupted(str(stop), report(done) if done else None) from None
    if not any(record.finished for record in records):
        raise CoordCheckError(f"every run failed; the first one, {records[0].key}:\n{records[0].reason}")
    return report(records)
