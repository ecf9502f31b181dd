"""Runs side by side: processes of our own, each of which can be lost, or killed, without costing another one's run."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any

import torch

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import summary, user_code
from coordcheck.common.output import streams_that_flush
from coordcheck.runs.records import RunRecord, kept
from coordcheck.runs.words import Outcome
from coordcheck.training.payloads import packed, unpacked
from coordcheck.training.run import execute
from coordcheck.training.trials import Run

START = 300.0  # seconds that a worker may take to import torch, where a limit of time was set
LOOK = 1.0  # seconds between two looks of a worker for its parent


def on_workers(runs: Sequence[Run], jobs: int, timeout: float | None = None) -> Iterator[RunRecord]:
    """Execute runs in at most `jobs` processes, the widest first, and yield the records as they end.

    A run whose worker dies is run once more, alone, in a new one: the system may have killed it for the memory that
    another one took. After that it is told as crashed. A run that takes longer than `timeout` seconds is killed.

    Yields:
        The record of each run, as it ends.

    Raises:
        CoordCheckError: a run that cannot be sent to another process.
    """
    waiting = deque(sorted(runs, key=lambda run: -run.key.width))  # so that none of the long ones starts last
    lanes = [Lane(timeout) for _ in range(min(jobs, len(runs)))]
    crashed = []
    try:
        for lane, record in _worked_off(lanes, waiting):
            if record.outcome is Outcome.CRASHED:
                crashed.append(lane.run)
            else:
                yield record
        for lane in lanes[1:]:
            lane.kill()
        for _, record in _worked_off(lanes[:1], deque(crashed)):
            yield record
    finally:
        for lane in lanes:
            lane.kill()


def _worked_off(lanes: Sequence[Lane], waiting: deque[Run]) -> Iterator[tuple[Lane, RunRecord]]:
    """Keep the lanes busy until nothing waits; yield each run's record with the lane that it came from."""
    busy: list[Lane] = []
    while True:
        for lane in lanes:
            if lane not in busy and waiting:
                lane.start(waiting.popleft())
                busy.append(lane)
        if not busy:
            return
        patience = min(lane.seconds_left for lane in busy)
        wait(
            [lane.waits_for for lane in busy],
            timeout=None if math.isinf(patience) else max(patience, 0.0),
            return_when=FIRST_COMPLETED,
        )
        for lane in [lane for lane in busy if lane.ended]:
            busy.remove(lane)
            yield lane, lane.record()


class Lane:
    """A worker process and the run that it is at; a new process after one that died.

    Attributes:
        run: what was started last.
    """

    run: Run

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._pool: Any = None
        self._ready: Future[float] | None = None
        self._found: Future[RunRecord] = Future()

    def start(self, run: Run) -> None:
        """Begin a run; the process begins with the first one."""
        self.run, payload = run, pickled(run)
        if self._pool is None:
            from loky import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(max_workers=1, initializer=follow_parent, initargs=(os.getpid(),))
        self._begun = time.monotonic()
        with streams_that_flush():
            self._ready = submitted(self._pool, _warm_up)
            self._found = submitted(self._pool, execute_pickled, payload)

    @property
    def waits_for(self) -> Future[Any]:
        """What happens next: the worker is there, or the run has ended."""
        return self._found if self._ready is None or self._ready.done() else self._ready

    @property
    def seconds_left(self) -> float:
        """How long the run, or the start of its worker, may still take."""
        if self._timeout is None:
            return math.inf
        if self._ready is not None and self._ready.done():
            self._ready, self._begun = None, time.monotonic()
        return self._begun + (START if self._ready is not None else self._timeout) - time.monotonic()

    @property
    def ended(self) -> bool:
        return self._found.done() or self.seconds_left <= 0

    def record(self) -> RunRecord:
        """What came of the run; a process that died, or took too long, is gone afterwards."""
        if self._found.done():
            record = collected(self.run, self._found)
            if record.outcome is Outcome.CRASHED:
                self.kill()
            return record
        self.kill()
        why = f"it took longer than {self._timeout:g} s, and its process was killed"
        return RunRecord(self.run.key, settings=dict(self.run.settings), outcome=Outcome.TIMED_OUT, reason=why)

    def kill(self) -> None:
        """End the process, and whatever user code has left running in it."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where neither psutil nor pgrep is there, children of it may go on
                pool.shutdown(wait=True, kill_workers=True)


def _warm_up() -> None:
    """What a worker does first, to show that it is there: torch imports much with the first optimizer only."""
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0).step()


def follow_parent(parent: int) -> None:
    """End this process when its parent, of this number, is gone: after a `kill -9` nobody else would."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=follow, name="coordcheck: follows its parent", daemon=True).start()


def pickled(run: Run) -> bytes:
    """A run as bytes for another process.

    Raises:
        CoordCheckError: what the user gave cannot be pickled.
    """
    try:
        with user_code("its pickling"):
            return packed(run)
    except Exception as error:  # picklers raise whatever their object's own code raises
        raise CoordCheckError(
            f"build, batch or loss of {run.key.label!r} cannot be sent to another process: {error}. "
            "Make what they hold picklable, or run without jobs=, timeout= and executor=."
        ) from error


def submitted(executor: Executor, function: Any, *arguments: Any) -> Future[Any]:
    """A future of an executor, which has failed already where the executor takes no more work."""
    try:
        return executor.submit(function, *arguments)
    except Exception as error:  # a pool that is broken or shut down
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


def execute_pickled(payload: bytes) -> RunRecord:
    """The one function submitted to executors: importable everywhere, its argument bytes.

    With the user's code inside the bytes, executors that pickle by name (spawn, MPI, parsl) work as well.
    """
    run, note = unpacked(payload)
    record = execute(run)
    record.notes.extend([note] if note else [])
    return record


def collected(run: Run, future: Future[RunRecord]) -> RunRecord:
    """The future's record; a worker that died is told in a record of its own."""
    try:
        record = future.result()
        if not isinstance(record, RunRecord):
            raise TypeError(f"it returned {type(record).__name__}, and not what it was given to run")
        return record
    except (CoordCheckError, KeyboardInterrupt):
        raise
    except BaseException as error:  # executors have errors of their own; what is unpickled may call sys.exit
        what = "the worker process ended" if isinstance(error, BrokenExecutor) else "the executor failed"
        reason = kept(f"{what}: {summary(error)}")
        return RunRecord(run.key, settings=dict(run.settings), outcome=Outcome.CRASHED, reason=reason)
