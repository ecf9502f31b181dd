"""Runs -> records: every (label, width, seed), in this process or through an executor.

Finished runs are saved at once and found again when the same folder is used: a sweep that was
interrupted resumes where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import cloudpickle
import torch

from coordcheck.errors import CoordCheckError, SweepInterrupted
from coordcheck.records import Outcome, RunRecord
from coordcheck.runfiles import RunFolder
from coordcheck.training import Run, execute

Advance = Callable[[RunRecord], None]


def sweep(
    runs: Sequence[Run],
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    folder: RunFolder | None = None,
    watch: Callable[[RunRecord], None] | None = None,
) -> list[RunRecord]:
    """Execute the runs that `folder` does not hold yet, and return the records of all, in the order given.

    Args:
        executor: any PEP 3148 executor of processes; None runs here, or on a loky pool when `jobs` > 1.
        folder: where finished runs are saved as they end, and found again.
        watch: sees every record as it ends; what it raises ends the sweep.

    Raises:
        CoordCheckError: the folder holds runs made with other settings, or it cannot be written;
            an executor that forks.
        SweepInterrupted: Ctrl-C; everything finished is saved, and listed in its `report`.
    """
    done = _found(runs, folder)
    missing = [run for run in runs if run.key not in done]

    def keep(record: RunRecord) -> None:
        done[record.key] = record
        if folder is not None and record.finished:
            folder.save(record)

    try:
        with _progress(len(missing)) as advance:
            for record in _results(missing, executor, jobs):
                keep(record)
                advance(record)
                if watch is not None:
                    watch(record)
    except KeyboardInterrupt:
        kept = [done[run.key] for run in runs if run.key in done]
        where = "" if folder is None else f" They are saved in {folder}: the same call resumes."
        raise SweepInterrupted(f"interrupted: {len(kept)} of {len(runs)} runs are done.{where}", kept) from None
    return [done[run.key] for run in runs]


def _found(runs: Sequence[Run], folder: RunFolder | None) -> dict[Any, RunRecord]:
    """The finished runs that the folder already holds, once their settings were compared."""
    if folder is None:
        return {}
    folder.probe()
    found = {}
    for run in runs:
        record = folder.find(run.key)
        if record is None or not record.finished:
            continue
        if record.settings != dict(run.settings):
            raise CoordCheckError(
                f"{folder} holds a run of {run.key} made with other settings: "
                + "; ".join(differences(record.settings, run.settings))
                + ". Give another folder, or remove this one."
            )
        found[run.key] = record
    return found


def differences(before: Any, after: Any) -> list[str]:
    """What differs between two runs' settings, one text each.

    >>> differences({"steps": "4", "loss": "mse"}, {"steps": "3", "loss": "mse"})
    ['steps was 4, is 3']
    """
    names = sorted(set(before) | set(after))
    return [
        f"{name} was {before.get(name, 'not set')}, is {after.get(name, 'not set')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _results(runs: Sequence[Run], executor: Executor | None, jobs: int) -> Iterator[RunRecord]:
    if executor is None and jobs > 1 and len(runs) > 1:
        yield from _on_loky(runs, jobs)
    elif executor is None:
        yield from map(execute, runs)
    else:
        _refuse_fork(executor)
        for run, future in _submitted(runs, executor):
            yield _collected(run, future)


def execute_pickled(payload: bytes) -> RunRecord:
    """The one function submitted to executors: importable everywhere, its argument cloudpickle bytes.

    With closures inside the bytes, executors that pickle by name (spawn, MPI, parsl) work as well.
    """
    record: RunRecord = execute(cloudpickle.loads(payload))
    return record


def _submitted(runs: Sequence[Run], executor: Executor) -> Iterator[tuple[Run, Future[RunRecord]]]:
    """Submit the widest runs first, so that none of the long ones starts last; yield as they end."""
    longest_first = sorted(runs, key=lambda run: -run.key.width)
    futures = {executor.submit(execute_pickled, cloudpickle.dumps(run)): run for run in longest_first}
    try:
        for future in as_completed(futures):
            yield futures[future], future
    finally:
        for future in futures:
            future.cancel()


def _collected(run: Run, future: Future[RunRecord]) -> RunRecord:
    """The future's record; a worker that died is told in a record of its own."""
    try:
        return future.result()
    except CoordCheckError:
        raise
    except Exception as error:  # executors have errors of their own for a worker that died
        return RunRecord(
            run.key,
            settings=dict(run.settings),
            outcome=Outcome.CRASHED,
            reason=f"the worker process ended: {type(error).__name__}: {error}",
        )


def _on_loky(runs: Sequence[Run], jobs: int) -> Iterator[RunRecord]:
    """A pool of our own. When a worker dies it breaks the pool: the runs in flight are tried again, each alone."""
    from loky import ProcessPoolExecutor

    in_flight: list[Run] = []
    pool = ProcessPoolExecutor(max_workers=min(jobs, len(runs)))
    try:
        for run, future in _submitted(runs, pool):
            if isinstance(future.exception(), BrokenExecutor):
                in_flight.append(run)
            else:
                yield _collected(run, future)
    finally:
        pool.shutdown(wait=True, kill_workers=bool(sys.exc_info()[0]))
    for run in in_flight:
        with ProcessPoolExecutor(max_workers=1) as alone:
            yield _collected(run, alone.submit(execute_pickled, cloudpickle.dumps(run)))


def _refuse_fork(executor: Executor) -> None:
    """Refuse executors that fork: after a threaded torch operation a forked child deadlocks."""
    context = getattr(executor, "_mp_context", None)
    if context is not None and isinstance(context, multiprocessing.context.BaseContext):
        if context.get_start_method() == "fork":
            raise CoordCheckError(
                "executor= forks its workers, which deadlocks once torch has used threads. Use jobs=N, "
                "loky.ProcessPoolExecutor(), or ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))."
            )


def worker_threads(executor: Executor | None, jobs: int) -> int:
    """Threads per run: as found here, or this process's share of the cores when `jobs` run side by side."""
    found = torch.get_num_threads()
    return found if executor is not None or jobs == 1 else max(1, min(found, (os.cpu_count() or 1) // jobs))


def _progress(total: int) -> AbstractContextManager[Advance]:
    """A progress bar on a terminal or in a notebook, nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if total == 0 or not (console.is_terminal or console.is_jupyter):
        return nullcontext(lambda record: None)
    return _bar(total, console)


@contextmanager
def _bar(total: int, console: Any) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=total)
        yield lambda record: bar.update(task, advance=1, description=str(record.key))
