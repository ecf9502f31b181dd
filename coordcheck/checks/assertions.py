"""Checks that raise, and their negative controls: for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordcheck.checks.check import check
from coordcheck.common.docstrings import as_for
from coordcheck.common.errors import IncompleteCheck, NotWidthInvariant
from coordcheck.reporting.report import Report
from coordcheck.runs.arguments import optional_callable
from coordcheck.training.trials import Build

CONTROL = "control"  # the label of a negative control


@as_for(check)
def assert_width_invariant(
    build: Build | Mapping[str, Build], batch: Any = None, *, control: Build | None = None, **options: Any
) -> Report:
    """Check, and raise an AssertionError with the report's text when a layer's scale depends on the width.

    Args:
        build: as for `check`.
        batch: as for `check`.
        control: a negative control: a factory that must fail the same check, such as your model in SP. When it does
            not, the check is too weak to find anything (a learning rate of nearly 0, widths too close), and says so.
        options: the other arguments of `check`.

    Returns:
        The report of `build`, which passed.

    Raises:
        NotWidthInvariant: (an AssertionError) a layer is violated.
        IncompleteCheck: runs are missing, the evidence does not decide, or the control passed.
        CoordCheckError: input that cannot be checked.
    """
    __tracebackhide__ = True  # pytest shows the report, not this function
    check_control(control)
    report = check(build, batch, **options)
    report.raise_for_status()
    if control is not None:
        assert_control_fails(control, batch, **options)
    return report


def check_control(control: Any) -> None:
    """Refuse a negative control that is no function.

    Raises:
        CoordCheckError: it is neither None nor callable.
    """
    optional_callable("control", control, "a function of the width that must fail, such as your model in SP")


def assert_control_fails(control: Build, batch: Any = None, **options: Any) -> None:
    """Check a negative control, which must be violated; the other arguments are those of `check`.

    Raises:
        IncompleteCheck: it is not: then the check is too weak to find anything.
        CoordCheckError: input that cannot be checked.
    """
    found = check({CONTROL: control}, batch, **{**options, "save_to": None})  # not among the runs of the model
    if found.exit_code != NotWidthInvariant.exit_code:
        raise IncompleteCheck(
            f"the check is too weak: the negative control, which must fail, is {found.status[CONTROL].value}. "
            "A larger learning rate, a wider range of widths or more seeds make it stronger; or there is nothing wrong "
            f"with the control.\n{found}"
        )
