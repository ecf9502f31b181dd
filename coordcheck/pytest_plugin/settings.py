"""With which widths, seeds, ... a check of a test runs, and where it says so: command line, call, marker, ini file.

The command line is for one run of somebody at a keyboard, and beats everything: `--coordcheck-widths 32,64,128` makes a
suite quick although its tests name wider models. If it stood behind the marker it would be ignored, silently, by just
the tests that are slow; what holds for a whole project belongs into the ini file, which anything else beats. A call
beats its marker, and the closest marker those around it, keyword by keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coordcheck.common.errors import CoordCheckError

LEAST_WIDTHS = 3  # slopes.MIN_WIDTHS, which would load numpy into every run of pytest
ACCEPTED = {
    "widths": "at least 3 distinct positive integers, such as 64,128,256",
    "seeds": "how many (such as 2) or which (such as 0,1,7, or 7, for one)",
    "steps": "an integer of 0 or more",
    "tolerance": "a number above 0",
    "jobs": "an integer of 1 or more",
    "expect": "mup, sp, ntk, mean-field, or a mapping of layer globs to exponents",
}
ON_THE_COMMAND_LINE = "widths", "seeds"
IN_THE_INI_FILE = "widths", "seeds", "steps", "tolerance", "jobs"
MARKER = f"coordcheck({', '.join(f'{name}=...' for name in ACCEPTED)})"


class Settings(NamedTuple):
    """What the options of one run of pytest say."""

    command_line: Mapping[str, Any]
    ini: Mapping[str, Any]
    report: Path | None
    """The folder for figures, pages and JSON; absolute."""
    report_all: bool
    """Whether checks that pass leave files there, too."""
    update: bool
    """Whether baselines are written."""
    only: bool
    skip: bool


def settings_of(config: pytest.Config) -> Settings:
    """The options of a run, looked at before any test is collected.

    Raises:
        pytest.UsageError: a value that is not accepted, or options that exclude one another.
    """
    option = config.getoption
    ini = {name: config.getini(f"coordcheck_{name}") for name in IN_THE_INI_FILE}
    given = {name: option(f"coordcheck_{name}") for name in ON_THE_COMMAND_LINE}
    found = Settings(
        {name: parsed(name, value, f"--coordcheck-{name}") for name, value in given.items() if value is not None},
        {name: parsed(name, value, f"coordcheck_{name} of the ini file") for name, value in ini.items() if value},
        _folder(config),
        option("coordcheck_report_all"),
        option("coordcheck_update"),
        option("coordcheck_only"),
        option("coordcheck_skip"),
    )
    if found.only and found.skip:
        raise pytest.UsageError("--coordcheck-only and --coordcheck-skip leave no test to run; give one of them.")
    if found.report_all and found.report is None:
        raise pytest.UsageError("--coordcheck-report-all needs --coordcheck-report=DIR, the folder to write into.")
    return found


def _folder(config: pytest.Config) -> Path | None:
    """The report folder: of the command line from where pytest was started, of the ini file from where that stands."""
    given = config.getoption("coordcheck_report")
    if given is not None:
        if not given:
            raise pytest.UsageError("--coordcheck-report must be a folder, got ''.")
        return Path(config.invocation_params.dir, given)
    named = config.getini("coordcheck_report")
    return Path(config.rootpath if config.inipath is None else config.inipath.parent, named) if named else None


def parsed(name: str, value: object, source: str) -> Any:
    """A setting as `coordcheck.check` takes it, from text or as it is.

    Raises:
        pytest.UsageError: it is not accepted; the message names the source.
    """
    __tracebackhide__ = True
    from coordcheck.runs import arguments, grids, numbers

    parsers: dict[str, Callable[[Any], Any]] = {
        "widths": _widths,
        "seeds": lambda v: grids.seeds_of(v) if isinstance(v, str) else grids.seed_numbers(v) and v,
        "steps": lambda v: numbers.whole_number("steps", _number(v, int), 0),
        "tolerance": lambda v: numbers.positive("tolerance", _number(v, float)),
        "jobs": lambda v: numbers.whole_number("jobs", _number(v, int), 1),
        "expect": arguments.expectation,
    }
    try:
        return parsers[name](value)
    except (CoordCheckError, ValueError):
        raise pytest.UsageError(f"{source}: must be {ACCEPTED[name]}; got {value!r}.") from None


def _widths(value: Any) -> list[int]:
    from coordcheck.runs.grids import distinct_widths, words_of

    found = distinct_widths(words_of(value) if isinstance(value, str) else value)
    if len(found) < LEAST_WIDTHS:
        raise ValueError
    return found


def _number(value: Any, kind: type) -> Any:
    return kind(value) if isinstance(value, str) else value


def marked(node: pytest.Item) -> dict[str, Any]:
    """The keywords of a test's markers, the closest one first.

    Raises:
        pytest.UsageError: a keyword or a value that is not accepted; the message names the test.
    """
    __tracebackhide__ = True
    found: dict[str, Any] = {}
    for marker in node.iter_markers("coordcheck"):
        where = f"{node.nodeid}: @pytest.mark.coordcheck"
        unknown = [repr(value) for value in marker.args] + [name for name in marker.kwargs if name not in ACCEPTED]
        if unknown:
            raise pytest.UsageError(f"{where} takes {', '.join(ACCEPTED)} as keywords; got {', '.join(unknown)}.")
        for name, value in marker.kwargs.items():
            found.setdefault(name, parsed(name, value, f"{where}({name}=...)"))
    return found


def resolved(settings: Settings, marker: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """The options for `coordcheck.check`: command line, then call, then marker, then ini file.

    Widths that count something else (`axis="depth"` in the call) are the test's own: command line and ini file speak
    of widths, and leave them alone.
    """
    other_axis = call.get("axis", "width") != "width"
    command_line, ini = (
        {name: value for name, value in given.items() if not (other_axis and name == "widths")}
        for given in (settings.command_line, settings.ini)
    )
    return {**ini, **marker, **call, **command_line}


def on_the_command_line(values: Mapping[str, Any]) -> Iterable[str]:
    """The options that give these settings again."""
    for name, value in values.items():
        listed = isinstance(value, list)
        yield from (
            f"--coordcheck-{name}",
            ",".join(map(str, value)) + "," * (len(value) == 1) if listed else str(value),
        )
