"""The pytest plugin: a fixture that checks a model, its marker and options, baselines, and a summary.

    @pytest.mark.coordcheck(widths=(32, 128, 512))
    def test_width_invariance(coordcheck):
        coordcheck(build, batch, loss=torch.nn.functional.cross_entropy)

Nothing heavy is imported before a check runs: a suite starts as fast as without the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordcheck.pytest_plugin.settings import MARKER, Settings, marked, settings_of
from coordcheck.pytest_plugin.summary import write_summary

if TYPE_CHECKING:
    from coordcheck.pytest_plugin.fixture import Check

SETTINGS = pytest.StashKey[Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all of them `--coordcheck-...`, and the keys of the ini file, all of them `coordcheck_...`."""
    group = parser.getgroup("coordcheck", "width-invariance of PyTorch models")
    add = group.addoption
    add("--coordcheck-widths", metavar="N,N,N", help="widths of every check in this run, whatever the tests say")
    add("--coordcheck-seeds", metavar="N", help="how many seeds, or which (0,1,7), of every check in this run")
    add("--coordcheck-report", metavar="DIR", help="write figures, page and JSON of every check that fails into DIR")
    add("--coordcheck-report-all", action="store_true", help="with --coordcheck-report: of every check")
    add("--coordcheck-update", action="store_true", help="write the baselines that are missing or have changed")
    add("--coordcheck-only", action="store_true", help="run only the tests with the fixture or marker coordcheck")
    add("--coordcheck-skip", action="store_true", help="skip the tests with the fixture or marker coordcheck")
    parser.addini("coordcheck_widths", "widths of a check, such as 64,128,256", default=None)
    parser.addini("coordcheck_seeds", "how many seeds of a check (2), or which (0,1,7)", default=None)
    parser.addini("coordcheck_steps", "optimizer updates of a check", default=None)
    parser.addini("coordcheck_tolerance", "how far a slope may lie from its exponent", default=None)
    parser.addini("coordcheck_jobs", "how many runs of a check go side by side", default=None)
    parser.addini("coordcheck_report", "folder for figures, page and JSON of every check that fails", default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and look at the options before any test is collected."""
    config.addinivalue_line(
        "markers", f"{MARKER}: settings of the checks that a test makes with the fixture coordcheck"
    )
    config.stash[SETTINGS] = settings_of(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what --coordcheck-only and --coordcheck-skip say."""
    settings = config.stash[SETTINGS]
    checks = [item for item in items if _checks(item)]
    if settings.skip:
        for item in checks:
            item.add_marker(pytest.mark.skip(reason="--coordcheck-skip"))
    if settings.only:
        config.hook.pytest_deselected(items=[item for item in items if not _checks(item)])
        items[:] = checks


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look at a test's markers before its fixtures are made: a wrong one is the error of this test alone."""
    __tracebackhide__ = True
    if _checks(item):
        marked(item)


def _checks(item: pytest.Item) -> bool:
    return "coordcheck" in getattr(item, "fixturenames", ()) or item.get_closest_marker("coordcheck") is not None


@pytest.fixture
def coordcheck(request: pytest.FixtureRequest) -> Check:
    """`coordcheck(build, batch, **options)` fails the test unless the model keeps its scale as it gets wider.

    Takes the options of `coordcheck.check`, `control=` (a model that must fail) and `baseline="name"` (exponents stored
    beside the test); returns the report.
    """
    from coordcheck.pytest_plugin.fixture import Check

    return Check(request.node, request.config.stash[SETTINGS])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the checks found: a line when all passed, else the worst layers of each that did not."""
    write_summary(terminalreporter)
