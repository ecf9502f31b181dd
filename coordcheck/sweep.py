"""Runs -> records: every (label, width, seed), in this process or through an executor.

Finished runs are saved at once and found again when the same folder is used: a sweep that was
interrupted resumes where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import contextmanager

import torch

from coordcheck.errors import CoordCheckError, SweepInterrupted
from coordcheck.interrupts import deferred, look
from coordcheck.isolation import summary, user_code
from coordcheck.output import streams_that_flush
from coordcheck.payloads import packed, unpacked
from coordcheck.progress import progress
from coordcheck.records import Outcome, RunKey, RunRecord, differences, kept
from coordcheck.runfiles import RunFolder
from coordcheck.training import execute
from coordcheck.trials import Run


def sweep(
    runs: Sequence[Run],
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    folder: RunFolder | None = None,
    watch: Callable[[RunRecord], None] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> list[RunRecord]:
    """Execute the runs that `folder` does not hold yet, and return the records of all, in the order given.

    Args:
        runs: what to execute; keys must be distinct.
        jobs: how many runs side by side, when no executor is given.
        executor: any PEP 3148 executor of processes; None runs here, or on a loky pool when `jobs` > 1.
        folder: where finished runs are saved as they end, and found again.
        watch: sees every record as it ends; what it raises ends the sweep.
        begin: called once, when the folder was found to be the right one and before anything runs.

    Raises:
        CoordCheckError: the folder holds runs made with other settings, or it cannot be written;
            an executor that forks.
        SweepInterrupted: Ctrl-C; everything finished is saved, and listed in its `report`.
    """
    done = _found(runs, folder)
    begin()
    missing = [run for run in runs if run.key not in done]
    for record in done.values():
        _show(record, watch)
    try:
        with progress([run.key for run in missing]) as following:
            for record in _results(missing, executor, jobs):
                if record.outcome is Outcome.REFUSED and not any(other.finished for other in done.values()):
                    raise CoordCheckError(record.reason)  # nothing has worked yet: no need to try the rest
                with deferred():  # a run that has ended must not lose its file to a signal
                    done[record.key] = record
                    _save(record, folder)
                following.ended(record)
                _show(record, watch)
                look()
    except KeyboardInterrupt:
        kept = [done[run.key] for run in runs if run.key in done]
        where = f" They are saved in {folder}: the same call resumes." if folder is not None and kept else ""
        raise SweepInterrupted(f"interrupted: {len(kept)} of {len(runs)} runs are done.{where}", kept) from None
    return [done[run.key] for run in runs]


def _show(record: RunRecord, watch: Callable[[RunRecord], None] | None) -> None:
    if watch is not None:
        watch(record)


def _save(record: RunRecord, folder: RunFolder | None) -> None:
    """Save a run, a failed one as well; a disk that is full must not cost what is in memory."""
    if folder is not None:
        try:
            folder.save(record)
        except CoordCheckError as error:
            record.notes.append(f"this run was not saved: {error}")


def _found(runs: Sequence[Run], folder: RunFolder | None) -> dict[RunKey, RunRecord]:
    """The finished runs that the folder already holds, once their settings were compared."""
    if folder is None:
        return {}
    folder.probe()
    found = {}
    for label in dict.fromkeys(run.key.label for run in runs):
        other = next((record for record in folder.records_of(label) if record.finished), None)
        for run in runs:
            record = folder.find(run.key) if run.key.label == label else None
            before = record if record is not None and record.finished else other
            if run.key.label != label or before is None:
                continue
            differing = differences(before.settings, run.settings)
            if differing:
                raise CoordCheckError(
                    f"{folder} holds a run of {before.key} made with other settings: {'; '.join(differing)}. "
                    f"{_hint(before.settings, run.settings)}Give another folder, or remove this one."
                )
            if before is record:
                found[run.key] = record
    return found


def _hint(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Why settings differ that the user may not have changed knowingly."""
    if before.get("fingerprints") != after.get("fingerprints"):
        return "Another version of coordcheck wrote it, and noted less, or more, of what a build reads. "
    if before.get("batch") != after.get("batch"):
        return "Is the batch random? Call torch.manual_seed before making it. "
    return (
        "jobs= and torch.set_num_threads decide the threads. " if before.get("threads") != after.get("threads") else ""
    )


def _results(runs: Sequence[Run], executor: Executor | None, jobs: int) -> Iterator[RunRecord]:
    if executor is not None:
        for run, future in _submitted(runs, executor):
            yield _collected(run, future)
    elif jobs > 1 and runs:
        yield from _on_loky(runs, jobs)
    else:
        yield from map(execute, runs)


def execute_pickled(payload: bytes) -> RunRecord:
    """The one function submitted to executors: importable everywhere, its argument bytes.

    With the user's code inside the bytes, executors that pickle by name (spawn, MPI, parsl) work as well.
    """
    run, note = unpacked(payload)
    record = execute(run)
    record.notes.extend([note] if note else [])
    return record


def _submitted(runs: Sequence[Run], executor: Executor) -> Iterator[tuple[Run, Future[RunRecord]]]:
    """Submit the runs, and yield them as they end."""
    futures = _futures(runs, executor)
    try:
        for future in as_completed(futures):
            yield futures[future], future
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _futures(runs: Sequence[Run], executor: Executor) -> dict[Future[RunRecord], Run]:
    """Every run, submitted: the widest first, so that none of the long ones starts last."""
    return {_submit(run, executor): run for run in sorted(runs, key=lambda run: -run.key.width)}


def _submit(run: Run, executor: Executor) -> Future[RunRecord]:
    try:
        with user_code("its pickling"):
            payload = packed(run)
    except Exception as error:  # picklers raise whatever their object's own code raises
        raise CoordCheckError(
            f"build, batch or loss of {run.key.label!r} cannot be sent to another process: {error}. "
            "Make what they hold picklable, or run without jobs= and executor=."
        ) from error
    try:
        return executor.submit(execute_pickled, payload)
    except Exception as error:  # a pool that is broken or shut down
        failed: Future[RunRecord] = Future()
        failed.set_exception(error)
        return failed


def _collected(run: Run, future: Future[RunRecord]) -> RunRecord:
    """The future's record; a worker that died is told in a record of its own."""
    try:
        record = future.result()
        if not isinstance(record, RunRecord):
            raise TypeError(f"it returned {type(record).__name__}, and not what it was given to run")
        return record
    except (CoordCheckError, KeyboardInterrupt):
        raise
    except BaseException as error:  # executors have errors of their own; unpickling may call sys.exit
        what = "the worker process ended" if isinstance(error, BrokenExecutor) else "the executor failed"
        reason = kept(f"{what}: {summary(error)}")
        return RunRecord(run.key, settings=dict(run.settings), outcome=Outcome.CRASHED, reason=reason)


def _on_loky(runs: Sequence[Run], jobs: int) -> Iterator[RunRecord]:
    """A pool of our own. A worker that dies breaks the pool for all; what it had not done is run again, one by one."""
    unfinished: list[Run] = []
    with _loky_pool(min(jobs, len(runs))) as pool:
        futures = _futures(runs, pool)
        for future in as_completed(futures):  # not cancelled on the way out: the pool is killed
            run = futures[future]
            if isinstance(future.exception(), BrokenExecutor):
                unfinished.append(run)
            else:
                yield _collected(run, future)
    while unfinished:  # one at a time: a run that kills its worker is known, and the next gets a new one
        with _loky_pool(1) as pool:
            while unfinished:
                run = unfinished.pop(0)
                record = _collected(run, _submit(run, pool))
                yield record
                if record.outcome is Outcome.CRASHED:
                    break


@contextmanager
def _loky_pool(workers: int) -> Iterator[Executor]:
    """A loky pool that is gone afterwards; its workers are killed when the block is left by an exception."""
    from loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(max_workers=workers)
    try:
        with streams_that_flush():
            yield pool
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise
    pool.shutdown(wait=True)


def worker_threads(executor: Executor | None, jobs: int) -> int:
    """Threads per run: as found here, or this process's share of the cores when `jobs` run side by side."""
    found = torch.get_num_threads()
    return found if executor is not None or jobs == 1 else max(1, min(found, (os.cpu_count() or 1) // jobs))
