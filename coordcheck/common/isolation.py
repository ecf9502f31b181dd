"""What user code may not do to a check: leave through it, or end the process that runs it.

A factory that gives up with `sys.exit(0)` has checked nothing, and must not be taken for a check that passed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from coordcheck.common.errors import CoordCheckError


class Exited(CoordCheckError):
    """User code raised what is no error, such as SystemExit; that is its cause, with its traceback."""


class user_code:  # noqa: N801  # read as the block it opens: `with user_code("build"):`
    """A block in which user code runs: what leaves it is an Exception, or a KeyboardInterrupt.

    The outcomes of pytest (`pytest.skip`, and a time limit that a plugin sets) belong to the test, and pass.

    Raises:
        Exited: the code raised SystemExit, GeneratorExit or another BaseException.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, (Exception, KeyboardInterrupt)):
            return
        if any(base.__module__ == "_pytest.outcomes" for base in type(error).__mro__):
            return
        raise Exited(f"{self._what} left by {summary(error)}") from error


def summary(error: BaseException) -> str:
    """An error's type and text on one line, and how SystemExit came about.

    >>> summary(SystemExit(0))
    'SystemExit: 0 (sys.exit was called)'
    """
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{told} (sys.exit was called)" if isinstance(error, SystemExit) else told


@contextmanager
def kept_alive() -> Iterator[None]:
    """A block in which `os._exit` on this thread raises SystemExit instead of ending the process without a word.

    Forked children and other threads (a watchdog's, say) end the process as ever, and so does C code.
    """
    process, thread, leave = os.getpid(), threading.get_ident(), os._exit

    def refuse(status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) == (process, thread):
            raise SystemExit(f"os._exit({status})")
        leave(status)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave
