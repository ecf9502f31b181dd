"""Runs -> records: every (label, width, seed), in this process or through an executor.

Finished runs are saved at once and found again when the same folder is used: a sweep that was
interrupted resumes where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed

import torch

from coordcheck.common.errors import CoordCheckError, SweepInterrupted
from coordcheck.common.interrupts import deferred, look
from coordcheck.runs.files import RunFolder
from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Outcome
from coordcheck.training.keeper import keeping
from coordcheck.training.progress import progress
from coordcheck.training.run import execute
from coordcheck.training.trials import Run
from coordcheck.training.workers import collected, execute_pickled, on_workers, pickled, submitted


def sweep(
    runs: Sequence[Run],
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    timeout: float | None = None,
    folder: RunFolder | None = None,
    watch: Callable[[RunRecord], None] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> list[RunRecord]:
    """Execute the runs that `folder` does not hold yet, and return the records of all, in the order given.

    Args:
        runs: what to execute; keys must be distinct.
        jobs: how many runs side by side, when no executor is given.
        executor: any PEP 3148 executor of processes; None runs here, or in processes of our own when `jobs` > 1 or
            there is a `timeout`.
        timeout: seconds that a run may take.
        folder: where finished runs are saved as they end, and found again.
        watch: sees every record as it ends; what it raises ends the sweep.
        begin: called once, when the folder was found to be the right one and before anything runs.

    Returns:
        A record per run, also of those that failed.

    Raises:
        CoordCheckError: the folder holds runs made with other settings, another process is making such, or it cannot
            be written; an executor that forks.
        SweepInterrupted: Ctrl-C; everything finished is saved, and listed in its `report`.
    """
    with keeping(folder, runs) as keeper:
        done = keeper.found(runs)
        keeper.begin(begin)
        missing = [run for run in runs if run.key not in done]
        for record in done.values():
            _show(record, watch)
        try:
            with progress([run.key for run in missing]) as following:
                for record in _results(missing, executor, jobs, timeout):
                    if record.outcome is Outcome.REFUSED and not any(other.finished for other in done.values()):
                        raise CoordCheckError(record.reason)  # nothing has worked yet: no need to try the rest
                    with deferred():  # a run that has ended must not lose its file to a signal
                        done[record.key] = record
                        keeper.save(record)
                    following.ended(record)
                    _show(record, watch)
                    look()
        except KeyboardInterrupt:
            kept = [done[run.key] for run in runs if run.key in done]
            with deferred():
                where = keeper.told(kept)
            raise SweepInterrupted(f"interrupted: {len(kept)} of {len(runs)} runs are done.{where}", kept) from None
        records = [done[run.key] for run in runs]
        keeper.told(records)
    return records


def _show(record: RunRecord, watch: Callable[[RunRecord], None] | None) -> None:
    if watch is not None:
        watch(record)


def _results(runs: Sequence[Run], executor: Executor | None, jobs: int, timeout: float | None) -> Iterator[RunRecord]:
    if not runs:
        return
    if executor is not None:
        yield from _on_executor(runs, executor)
    elif jobs > 1 or timeout is not None:  # what hangs in native code can only be ended from without
        yield from on_workers(runs, jobs, timeout)
    else:
        yield from map(execute, runs)


def _on_executor(runs: Sequence[Run], executor: Executor) -> Iterator[RunRecord]:
    """Submit the runs, the widest first, so that none of the long ones starts last; yield their records as they end."""
    ordered = sorted(runs, key=lambda run: -run.key.width)
    futures = {submitted(executor, execute_pickled, pickled(run)): run for run in ordered}
    try:
        for future in as_completed(futures):
            yield collected(futures[future], future)
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def worker_threads(executor: Executor | None, jobs: int) -> int:
    """Threads per run: as found here, or this process's share of the cores when `jobs` run side by side."""
    found = torch.get_num_threads()
    return found if executor is not None or jobs == 1 else max(1, min(found, (os.cpu_count() or 1) // jobs))
