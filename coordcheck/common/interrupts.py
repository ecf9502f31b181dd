"""Signals that ask a process to stop: Ctrl-C, SIGTERM (preemption), SIGHUP (a closed terminal).

Python turns a signal into an exception wherever it happens to be: inside an import, inside a `try: ... except:` of user
code, between a run's end and its file. So what was asked for is remembered, looked at again between runs, and put off
while a file is written.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from coordcheck.common.errors import SweepInterrupted

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
_leave = os._exit  # the system's own, whatever user code makes of the name
_asked: list[int] = []  # the signals that came since the command began


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop: what is done is kept, as with Ctrl-C."""

    @property
    def exit_code(self) -> int:
        return int(self.args[0])


def exit_code() -> int:
    """The exit code of a process that was asked to stop: 128 and the number of the first signal, as shells have it."""
    return 128 + _asked[0] if _asked else SweepInterrupted.exit_code


def look() -> None:
    """Stop where that was asked for, and something has swallowed the exception.

    Raises:
        Stopped: a signal came.
    """
    if _asked:
        raise Stopped(exit_code())


def asked() -> bool:
    """Whether a signal came since the command began."""
    return bool(_asked)


@contextmanager
def stoppable() -> Iterator[None]:
    """A block that a stopping signal ends by `Stopped`; a second Ctrl-C ends the process at once.

    Signals that are ignored stay ignored: `nohup` and shells set them so for what goes on without a terminal.
    """

    def stop(number: int, frame: Any) -> None:
        _asked.append(number)
        if len(_asked) == 1:
            raise Stopped(exit_code())
        if number == signal.SIGINT:  # the others come in pairs from schedulers and shells, and cleaning up is under way
            _leave(exit_code())

    _asked.clear()
    try:
        with _handlers(stop, lambda found: found is not signal.SIG_IGN):
            yield
    finally:
        _asked.clear()


@contextmanager
def deferred() -> Iterator[None]:
    """A block that a stopping signal does not interrupt: it is delivered at the end, or at once when it comes twice."""
    waiting: list[tuple[int, Any]] = []
    found: dict[int, Callable[[int, Any], object]] = {}

    def wait(number: int, frame: Any) -> None:
        waiting.append((number, frame))
        if len(waiting) > 1:
            found[number](number, frame)

    with _handlers(wait, callable) as before:
        found.update(before)
        yield
    for number, frame in waiting[:1]:
        found[number](number, frame)


@contextmanager
def _handlers(handler: Callable[[int, Any], None], replaces: Callable[[Any], bool]) -> Iterator[dict[int, Any]]:
    """Handle the stopping signals whose present handler is one that may be replaced; put them back afterwards."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only there can a handler be set
        for number in STOPPING:
            found = signal.getsignal(number)
            if found is not None and replaces(found):  # None: C code has set it
                before[number] = found
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, found in before.items():
            signal.signal(number, found)
