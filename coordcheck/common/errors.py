"""Every error the package raises on purpose, each with the exit code the command line gives it.

Those that users import from `coordcheck` say so: a traceback, and a line of pytest's summary, is for the reader.
"""

from __future__ import annotations

from coordcheck.common.escaping import told
from coordcheck.common.redaction import redacted


class CoordCheckError(Exception):
    r"""Input that cannot be checked: says what was seen, what is accepted and what to do.

    The message holds names and paths of unknown origin, and what other code said: it is fit for a terminal, and without
    secrets.

    >>> str(CoordCheckError("cannot read a\x1b[31m.json of https://me:pw@host"))
    'cannot read a\\x1b[31m.json of https://***@host'
    """

    __module__ = "coordcheck"
    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(told(redacted(str(message))))


class NotWidthInvariant(CoordCheckError, AssertionError):
    """At least one layer's scale depends on the width; the message is the explanation on one screen."""

    __module__ = "coordcheck"
    exit_code = 1


class BaselineChanged(CoordCheckError, AssertionError):
    """The exponents of a check are not those of its baseline; the message is a table of what changed."""

    exit_code = 1


class IncompleteCheck(CoordCheckError):
    """No layer is violated, but runs are missing or the evidence does not decide."""

    __module__ = "coordcheck"
    exit_code = 3


class RunFileError(CoordCheckError):
    """A run file that is damaged, truncated, foreign, or written by a newer version."""

    __module__ = "coordcheck"
    exit_code = 4


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `report` holds what was finished (None when nothing was)."""

    __module__ = "coordcheck"
    exit_code = 130

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(told(redacted(message)))
        self.report = report
