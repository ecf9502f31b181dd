"""Every error the package raises on purpose, each with the exit code the command line gives it."""

from __future__ import annotations


class CoordCheckError(Exception):
    """Input that cannot be checked: says what was seen, what is accepted and what to do."""

    exit_code = 2


class NotWidthInvariant(CoordCheckError, AssertionError):
    """At least one layer's scale depends on the width; the message is the explanation on one screen."""

    exit_code = 1


class IncompleteCheck(CoordCheckError):
    """No layer is violated, but runs are missing or the evidence does not decide."""

    exit_code = 3


class RunFileError(CoordCheckError):
    """A run file that is damaged, truncated, foreign, or written by a newer version."""

    exit_code = 4


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `report` holds what was finished (None when nothing was)."""

    exit_code = 130

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report
