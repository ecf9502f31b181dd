"""How far the runs of a sweep are: a bar on a terminal or in a notebook, elsewhere a line now and then.

Lines go to standard error, or to the log of "coordcheck" where a program has logging at INFO. A level above INFO on
that logger is the way to have neither:

    logging.getLogger("coordcheck").setLevel(logging.WARNING)
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from coordcheck.common.escaping import printable
from coordcheck.runs.records import RunKey, RunRecord

LOGGER = logging.getLogger("coordcheck")
PAUSE = 10.0  # seconds between two lines, at least
BLINK = 0.1  # seconds between two states of the bar: steps may be many and short
POWERS = 0.0, 2.5  # of the width that the seconds of a run are taken to grow with, at least and at most

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)
_CURRENT: ContextVar[Progress | None] = ContextVar("current", default=None)


class Progress:
    """The state of one sweep; `tell` is called whenever it has changed."""

    def __init__(
        self, keys: Sequence[RunKey], tell: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open, self._tell, self._clock, self._start = dict.fromkeys(keys), tell, clock, clock()
        self._seconds: dict[tuple[str, int], list[float]] = {}
        self.total = len(keys)
        self.current: RunKey | None = None
        """The run that was heard of last."""
        self.step, self.steps = 0, 0
        """How many of its steps are done, of how many; 0 of 0 where that is not known."""

    @property
    def done(self) -> int:
        """Runs that have ended, however."""
        return self.total - len(self._open)

    @property
    def completed(self) -> float:
        """The same, with the share of the run that is at work."""
        return self.done + (self.step / (self.steps + 1) if self.steps else 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep began."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float | None:
        """Seconds to go as far as the runs so far tell; None when none has ended."""
        if not self._seconds:
            return None
        means = {at: sum(several) / len(several) for at, several in self._seconds.items()}
        known = sum(sum(several) for several in self._seconds.values())
        side_by_side = max(1.0, known / self.elapsed if self.elapsed > 0 else 1.0)
        waiting = Counter((key.label, key.width) for key in self._open)
        rest = sum(count * expected(means, label, width) for (label, width), count in waiting.items())
        if self.current in self._open and self.steps:
            rest -= expected(means, self.current.label, self.current.width) * self.step / (self.steps + 1)
        return rest / side_by_side

    def started(self, key: RunKey) -> None:
        """A run has begun, in this process."""
        self.current, self.step, self.steps = key, 0, 0
        self._tell(self)

    def stepped(self, step: int, steps: int) -> None:
        """The current run has done this many of its steps."""
        self.step, self.steps = step, steps
        self._tell(self)

    def ended(self, record: RunRecord) -> None:
        """A run has ended, here or in another process."""
        self._open.pop(record.key, None)
        if record.finished:
            self._seconds.setdefault((record.key.label, record.key.width), []).append(record.seconds)
        self.current, self.step, self.steps = record.key, 0, 0
        self._tell(self)

    def __str__(self) -> str:
        """The state in a line."""
        parts = [f"{self.done} of {self.total} runs", f"{duration(self.elapsed)} so far"]
        if self.remaining is not None:
            parts.append(f"about {duration(self.remaining)} to go")
        return ", ".join(parts) + (f": {self.place}" if self.current is not None else "")

    @property
    def place(self) -> str:
        """The run that was heard of last, and its step."""
        where = f", step {self.step} of {self.steps}" if self.steps else ""
        return printable(f"{self.current}{where}")


def expected(means: Mapping[tuple[str, int], float], label: str, width: int) -> float:
    """Seconds that a run takes: as those like it, else by the power of the width that the others of its label tell.

    >>> expected({("SP", 64): 1.0, ("SP", 128): 4.0}, "SP", 256)
    16.0
    """
    if (label, width) in means:
        return means[label, width]
    own = {at: mean for (name, at), mean in means.items() if name == label}
    by_width = own or {at: mean for (_, at), mean in means.items()}
    widths, power = sorted(by_width), 1.0
    if len(widths) > 1 and min(by_width[widths[-1]], by_width[widths[-2]]) > 0:
        rise = math.log(by_width[widths[-1]] / by_width[widths[-2]])
        power = min(max(rise / math.log(widths[-1] / widths[-2]), POWERS[0]), POWERS[1])
    nearest = min(widths, key=lambda at: abs(math.log(at / width)))
    return by_width[nearest] * (width / nearest) ** power


def duration(seconds: float) -> str:
    """A length of time, in the units that fit it.

    >>> duration(7.4), duration(200), duration(3900)
    ('7 s', '3 min 20 s', '1 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def started(key: RunKey) -> None:
    """Tell the sweep of this process, if there is one, that a run has begun."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.started(key)


def stepped(step: int, steps: int) -> None:
    """Tell the sweep of this process, if there is one, how many steps of the run are done."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.stepped(step, steps)


@contextmanager
def silent(quiet: bool = True) -> Iterator[None]:
    """Sweeps within tell nothing."""
    token = _SILENT.set(quiet)
    try:
        yield
    finally:
        _SILENT.reset(token)


@contextmanager
def progress(keys: Sequence[RunKey]) -> Iterator[Progress]:
    """Follow a sweep of these runs; what is told of it, and where, is decided once, here."""
    with _teller(len(keys)) as tell:
        found = Progress(keys, tell)
        token = _CURRENT.set(found)
        try:
            yield found
        finally:
            _CURRENT.reset(token)


@contextmanager
def _teller(total: int) -> Iterator[Callable[[Progress], None]]:
    if total == 0 or _SILENT.get() or LOGGER.level > logging.INFO or sys.stderr is None:
        yield lambda progress: None
    elif LOGGER.isEnabledFor(logging.INFO):
        yield Lines(lambda text: LOGGER.info("%s", text))
    else:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal):
            with _bar(total, console) as tell:
                yield tell
        else:
            yield Lines(_write)


class Lines:
    """A line, but none sooner after another than `PAUSE`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._last = write, 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.done < progress.total and progress.elapsed - self._last >= PAUSE:
            self._last = progress.elapsed
            self._write(str(progress))


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # a standard error that is closed must not end a sweep
        print(f"coordcheck: {text}", file=sys.stderr, flush=True)


@contextmanager
def _bar(total: int, console: Any) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    rest = TextColumn("{task.fields[rest]}", markup=False)
    told = [-BLINK]
    with Bar(*columns, rest, console=console, transient=True) as bar:
        task = bar.add_task("training", total=total, rest="")

        def tell(progress: Progress) -> None:
            if progress.elapsed - told[0] >= BLINK:
                told[0] = progress.elapsed
                to_go = "" if progress.remaining is None else f"about {duration(progress.remaining)} to go"
                bar.update(task, completed=progress.completed, description=progress.place, rest=to_go)

        yield tell
