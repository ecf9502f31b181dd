"""Room on Python's stack: a call with hooks on it takes more frames than a bare one."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType

# torch 2.13 takes `_wrapped_call_impl`, `_call_impl` and `forward` for a bare call and one more, `inner`, where there
# are hooks; a forward that is written in C takes none itself, so that of the calls of a model at most half are ours
MORE = 1.5
WITHIN_A_HOOK = 300  # frames that one hook takes, with what it imports when it is first called; once, not per level
LARGEST = 2**31 - 1  # that the interpreter takes


class Room:
    """From `begin` to `end`, what recurses as deeply as Python allows without hooks can do so with them.

    Python's limit is one for all threads. Several may begin and end in any order; the last one puts back the limit that
    the first one found, unless somebody else has set another one.

    >>> before = sys.getrecursionlimit()
    >>> with Room():
    ...     sys.getrecursionlimit() > before
    True
    >>> sys.getrecursionlimit() == before
    True
    """

    _begun: set[Room] = set()
    _found = _given = 0

    def __enter__(self) -> Room:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def begin(self) -> None:
        """Raise the limit; once is enough."""
        if not self._begun:
            Room._found = sys.getrecursionlimit()
            Room._given = min(int(MORE * self._found) + WITHIN_A_HOOK, LARGEST)
            sys.setrecursionlimit(self._given)
        self._begun.add(self)

    def end(self) -> None:
        """Put it back; one that has not begun changes nothing."""
        if self not in self._begun:
            return
        self._begun.remove(self)
        if not self._begun and sys.getrecursionlimit() == self._given:
            with suppress(RecursionError):  # this is further down the stack than the old limit allows
                sys.setrecursionlimit(self._found)
