"""The pytest plugin: whole runs of pytest on small test files, most of them with a check that answers at once."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import power_law_records

import coordcheck
from coordcheck import CoordCheckError, Report
from coordcheck.analysis.slopes import MIN_WIDTHS
from coordcheck.pytest_plugin.fixture import started_by
from coordcheck.pytest_plugin.outcomes import folder_name
from coordcheck.pytest_plugin.settings import LEAST_WIDTHS
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.words import Outcome

pytest_plugins = ["pytester"]

ROOT = Path(coordcheck.__file__).parent.parent
NAME = "coordcheck.pytest_plugin"
# installed, the package is loaded by its entry point, and pytest refuses a plugin that is loaded twice
INSTALLED = any(point.value == NAME for point in entry_points(group="pytest11"))
LOADING = () if INSTALLED else ("-p", NAME)
# nothing is kept between inner runs, and none loads hypothesis, which takes longer than the run
QUICK = (*LOADING, "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
RERUN = "" if INSTALLED else f" -p {NAME}"

FLAT = {"activation": 0.0, "change": 0.0}
GROWING = {"activation": 0.0, "change": 0.5}
HOSTILE = "</property>\x00\x1b[31m\n\ud800<![CDATA[ ]]> & \"'"


@pytest.fixture(autouse=True)
def _started_as_pytest(monkeypatch):
    """Whoever started the tests: the commands that inner runs print begin alike."""
    monkeypatch.setattr(sys, "argv", ["pytest"])


def noisy(width: int, seed: int, layer: str) -> float:
    return 0.8 if width == 128 else -0.4


REPORTS: dict[str, Callable[[], Report]] = {
    "ok": lambda: Report(power_law_records({"fc": FLAT, "head": FLAT})),
    "moved": lambda: Report(power_law_records({"fc": {"activation": 0.0, "change": 0.2}, "fresh": FLAT})),
    "violated": lambda: Report(power_law_records({"fc": GROWING, "head": FLAT, "out": {"activation": 0.5}})),
    "undecided": lambda: Report(power_law_records({"fc": FLAT}, noise=noisy)),
    "too few": lambda: Report(power_law_records({"fc": FLAT}, widths=(64, 128))),
    "incomplete": lambda: Report(
        [*power_law_records({"fc": FLAT}), RunRecord(RunKey("model", 512, 0), outcome=Outcome.FAILED, reason="x")]
    ),
    "both": lambda: Report(
        [*power_law_records({"fc": FLAT}, label="µP"), *power_law_records({"fc": GROWING}, label="SP")]
    ),
    "three": lambda: Report(
        [
            *power_law_records({"fc": FLAT}, label="µP"),
            *power_law_records({"fc": GROWING}, label="SP"),
            *power_law_records({"fc": FLAT}, label="noisy", noise=noisy),
        ]
    ),
    "two and three": lambda: Report(
        [*power_law_records({"fc": FLAT}, label="a", widths=(64, 128)), *power_law_records({"fc": FLAT}, label="b")]
    ),
    "hostile": lambda: Report(power_law_records({HOSTILE: GROWING}, label="l\x01")),
}


@pytest.fixture
def calls(monkeypatch) -> list[dict[str, Any]]:
    """A check that answers at once: `build` is the name of a report, or a control with such a name.

    Collects the options that it was given.
    """
    found: list[dict[str, Any]] = []

    def answer(build: Any, batch: Any = None, **options: Any) -> Report:
        found.append(options)
        name = next(iter(build.values())).__name__ if isinstance(build, dict) else build
        if name not in REPORTS:
            raise CoordCheckError(f"there is no report {name!r}")
        report = REPORTS[name]()
        if isinstance(build, dict):
            for record in report.records:
                record.key = RunKey(next(iter(build)), record.key.width, record.key.seed)
        return report

    for place in ("assertions", "check"):  # the former imports the latter
        monkeypatch.setattr(f"coordcheck.checks.{place}.check", answer)
    return found


@pytest.fixture(scope="module", autouse=True)
def _loaded(report, tmp_path_factory):
    """What a check loads late is loaded now: pytester forgets modules that an inner run was the first to load."""
    for kind in ("divergence", "exponents"):
        report.figure(kind, path=tmp_path_factory.mktemp("figures") / f"{kind}.png")
    str(report), report.to_json()


@pytest.fixture
def run(pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest in this process on a test file."""
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")

    def runner(source: str, *options: str, name: str = "test_model") -> pytest.RunResult:
        pytester.makepyfile(**{name: source})
        return pytester.runpytest_inprocess(*QUICK, *options)

    return runner


def one(call: str, decorator: str = "") -> str:
    return f"import pytest\n{decorator}\ndef test_model(coordcheck):\n    {call}\n"


def text(result: pytest.RunResult) -> str:
    return "\n".join(result.outlines)


# what a test says


def test_a_check_that_passes_is_one_line(run, calls):
    result = run(one("assert coordcheck('ok').exit_code == 0"))
    result.assert_outcomes(passed=1)
    assert [line for line in result.outlines if "coordcheck" in line][-1:] == ["coordcheck: 1 check, width-invariant"]
    assert "= coordcheck =" not in text(result)


FAILURE = """\
>       coordcheck("violated")
E       coordcheck.NotWidthInvariant: model: VIOLATED  1 of 3 layers blows up, 1 initialised too large \
from width 64 to 256; first fc
E         layer  verdict                measured                  slope  64 → 256
E         fc     blows up               change at t=1      +0.50 ± 0.00        ×2
E         out    initialised too large  activation at t=0  +0.50 ± 0.00        ×2
E       rule: each slope within 0.25 of its exponent, with its whole 95 % interval (t = 0..2, 3 seeds)
E       files: none; --coordcheck-report=DIR writes the figures and the whole report
E       rerun: pytest test_model.py::test_model{rerun}

test_model.py:4: NotWidthInvariant
"""
SUMMARY = """\
================================== coordcheck ==================================
test_model.py::test_model: violated
  fc   blows up               +0.50 ± 0.00  change at t=1
  out  initialised too large  +0.50 ± 0.00  activation at t=0
coordcheck: 1 check: 1 violated
"""


def shown_failure(result: pytest.RunResult) -> str:
    """The failing line of the test, and the message."""
    shown = text(result)
    return shown[shown.index(">  ") : shown.index("=====", shown.index(">  "))]


def test_the_message_of_a_check_that_fails(run, calls):
    result = run(one('coordcheck("violated")'))
    result.assert_outcomes(failed=1)
    assert shown_failure(result) == FAILURE.format(rerun=RERUN)
    assert SUMMARY in text(result)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("both", "NotWidthInvariant: 1 of 2 models violated: SP"),
        ("three", "NotWidthInvariant: 1 of 3 models violated: SP"),
        ("two and three", "CoordCheckError: 1 of 2 models with too few widths: a"),
    ],
)
def test_of_several_models_the_first_line_says_which_fail(run, calls, name, line):
    result = run(one(f"coordcheck({name!r})"))
    result.stdout.fnmatch_lines([f"E *{line}"])


def test_of_several_models_the_summary_names_the_label(run, calls):
    run(one("coordcheck('both')")).stdout.fnmatch_lines(["test_model.py::test_model: violated", "  SP: fc *"])


@pytest.mark.parametrize(
    ("name", "error", "status"),
    [
        ("undecided", "IncompleteCheck: model: UNDECIDED", "undecided"),
        ("incomplete", "IncompleteCheck: 1 of 10 runs did not finish", "incomplete"),
        ("too few", "CoordCheckError: model: a verdict needs at least 3", "too few widths"),
        ("nonsense", "CoordCheckError: there is no report 'nonsense'", "bad input"),
        ("violated", "NotWidthInvariant: model: VIOLATED", "violated"),
    ],
)
def test_every_way_to_fail_has_its_error_and_its_word(run, calls, name, error, status):
    result = run(one(f"coordcheck({name!r})"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [f"E *{error}*", f"test_model.py::test_model: {status}", f"coordcheck: 1 check: 1 {status}"]
    )


@pytest.mark.parametrize("call", ["coordcheck('violated')", "coordcheck('nonsense')", "coordcheck('ok', control=3)"])
def test_no_frame_of_coordcheck_is_shown(run, calls, call):
    shown = text(run(one(call)))
    assert re.findall(r"^\S+\.py:\d+: ", shown, flags=re.M) == ["test_model.py:4: "]
    assert "def __call__" not in shown


def test_the_full_trace_is_there_for_who_asks(run, calls):
    assert "fixture.py:" in text(run(one("coordcheck('nonsense')"), "--full-trace"))


def test_an_unknown_option_is_told_by_check(run):
    result = run(one("coordcheck(None, width=3)"))
    result.stdout.fnmatch_lines(["E *coordcheck() takes no 'width' (did you mean 'widths'?*"])


def test_two_checks_in_one_test_are_two_checks(run, calls):
    result = run(one("coordcheck('ok'); coordcheck('violated')"))
    result.stdout.fnmatch_lines(
        ["test_model.py::test_model: violated", "  fc *", "coordcheck: 2 checks: 1 ok, 1 violated"]
    )


def test_a_failure_after_the_check_is_not_the_checks(run, calls):
    result = run(one("coordcheck('ok'); assert 0"))
    result.assert_outcomes(failed=1)
    assert "coordcheck: 1 check, width-invariant" in result.outlines


def test_a_test_that_is_repeated_keeps_nothing_of_the_first_attempt(run, calls, pytester):
    source = """
        from coordcheck.pytest_plugin import SETTINGS
        from coordcheck.pytest_plugin.fixture import Check
        def test_model(request, coordcheck):
            try:
                coordcheck("violated")
            except AssertionError:
                Check(request.node, request.config.stash[SETTINGS])("ok")
    """
    run(source, "--junitxml=j.xml").assert_outcomes(passed=1)
    assert properties(pytester.path / "j.xml")["coordcheck.worst_slope"] == "0.0"


def test_a_violation_that_the_test_expects(run, calls):
    source = one("coordcheck('violated')", "@pytest.mark.xfail(strict=True)")
    result = run(source)
    result.assert_outcomes(xfailed=1)
    assert "coordcheck: 1 check: 1 violated as the test expects" in result.outlines
    assert "= coordcheck =" not in text(result)


def test_a_check_in_a_fixture_of_the_user(run, calls):
    source = """
        import pytest
        @pytest.fixture
        def checked(coordcheck):
            return coordcheck("violated")
        def test_a(checked): pass
    """
    result = run(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *NotWidthInvariant*", "test_model.py::test_a: violated", "*1 check: 1 violated"])


@pytest.mark.parametrize(
    ("options", "shown", "hidden"),
    [
        (["-q"], ["coordcheck: 2 checks: 1 violated, 1 ok"], "= coordcheck ="),
        (["-v"], ["test_model.py::test_bad: violated", "test_model.py::test_good: ok", "  fc *ok *"], "nothing"),
        ([], ["test_model.py::test_bad: violated"], "test_model.py::test_good: ok"),
    ],
)
def test_the_summary_follows_the_verbosity(run, calls, options, shown, hidden):
    result = run(
        "def test_bad(coordcheck): coordcheck('violated')\ndef test_good(coordcheck): coordcheck('ok')", *options
    )
    result.stdout.fnmatch_lines(shown)
    assert hidden not in text(result)


def test_a_quiet_run_that_passes_says_nothing(run, calls):
    assert "coordcheck:" not in text(run(one("coordcheck('ok')"), "-q"))


def test_a_run_without_checks_says_nothing(run):
    assert "coordcheck:" not in text(run("def test_other(): pass"))


def test_the_fixture_and_the_marker_are_described(run):
    shown = text(run("def test_other(): pass", "--fixtures", "-q"))
    assert "fails the test unless the model keeps its scale as it gets wider" in shown
    assert "@pytest.mark.coordcheck(widths=..., seeds=..., " in text(run("def test_other(): pass", "--markers"))


# settings


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, {}),
        ({"ini": "coordcheck_widths = 8, 16,32"}, {"widths": [8, 16, 32]}),
        ({"ini": "coordcheck_widths = 8 16 32", "marker": "widths=(1, 2, 4)"}, {"widths": [1, 2, 4]}),
        ({"marker": "widths=(1, 2, 4)", "call": "widths=(3, 6, 12)"}, {"widths": (3, 6, 12)}),
        ({"call": "widths=(3, 6, 12)", "line": ["--coordcheck-widths", "64,128 256"]}, {"widths": [64, 128, 256]}),
        ({"ini": "coordcheck_seeds = 2"}, {"seeds": 2}),
        ({"ini": "coordcheck_seeds = 0,5"}, {"seeds": [0, 5]}),
        ({"ini": "coordcheck_seeds = 2", "marker": "seeds=(1, 7)"}, {"seeds": (1, 7)}),
        ({"marker": "seeds=3", "line": ["--coordcheck-seeds=0,1,7"]}, {"seeds": [0, 1, 7]}),
        ({"call": "seeds=3", "line": ["--coordcheck-seeds=1"]}, {"seeds": 1}),
        ({"ini": "coordcheck_steps = 2"}, {"steps": 2}),
        ({"ini": "coordcheck_steps = 2", "marker": "steps=3"}, {"steps": 3}),
        ({"marker": "steps=3", "call": "steps=1"}, {"steps": 1}),
        ({"ini": "coordcheck_tolerance = 0.3", "call": "steps=1"}, {"tolerance": 0.3, "steps": 1}),
        ({"ini": "coordcheck_tolerance = 0.3", "marker": "tolerance=0.1"}, {"tolerance": 0.1}),
        ({"ini": "coordcheck_jobs = 2"}, {"jobs": 2}),
        ({"marker": "expect='µP'.replace('µP', 'mean-field')"}, {"expect": "mean-field"}),
        ({"marker": "expect={'*.router': 0.5}"}, {"expect": {"*.router": 0.5}}),
        (
            {"ini": "coordcheck_widths = 8,16,32", "line": ["--coordcheck-widths=1,2,4"], "call": "axis='depth'"},
            {"axis": "depth"},
        ),
        ({"marker": "widths=(2, 4, 8)", "call": "axis='depth'"}, {"axis": "depth", "widths": [2, 4, 8]}),
    ],
)
def test_command_line_then_call_then_marker_then_ini_file(run, calls, pytester, given, seen):
    pytester.makeini(f"[pytest]\n{given.get('ini', '')}\n")
    mark = f"@pytest.mark.coordcheck({given['marker']})" if "marker" in given else ""
    run(one(f"coordcheck('ok', {given.get('call', '')})", mark), *given.get("line", [])).assert_outcomes(passed=1)
    assert calls == [seen]


def test_the_closest_marker_wins_keyword_by_keyword(run, calls):
    source = """
        import pytest
        pytestmark = pytest.mark.coordcheck(widths=(1, 2, 4), seeds=5, steps=1)
        @pytest.mark.coordcheck(widths=(8, 16, 32), seeds=4)
        class TestModel:
            @pytest.mark.coordcheck(widths=(64, 128, 256))
            def test_model(self, coordcheck):
                coordcheck("ok")
    """
    run(source).assert_outcomes(passed=1)
    assert calls == [{"widths": [64, 128, 256], "seeds": 4, "steps": 1}]


def test_settings_in_pyproject(run, calls, pytester):
    (pytester.path / "pytest.ini").unlink(missing_ok=True)
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\ncoordcheck_widths = '8,16,32'\ncoordcheck_seeds = 2\n")
    (pytester.path / "tox.ini").unlink(missing_ok=True)
    run(one("coordcheck('ok')")).assert_outcomes(passed=1)
    assert calls == [{"widths": [8, 16, 32], "seeds": 2}]


@pytest.mark.parametrize(
    ("ini", "options", "why"),
    [
        ("", ["--coordcheck-widths=64,x"], "--coordcheck-widths: must be at least 3 *such as 64,128,256; got '64,x'."),
        ("", ["--coordcheck-widths=64,128"], "--coordcheck-widths: must be at least 3 distinct*"),
        ("", ["--coordcheck-widths=64,64,64"], "--coordcheck-widths: must be at least 3 distinct*"),
        ("", ["--coordcheck-widths=-1,2,3"], "--coordcheck-widths: must be*"),
        ("", ["--coordcheck-widths="], "--coordcheck-widths: must be*"),
        ("", ["--coordcheck-seeds=0"], "--coordcheck-seeds: must be how many (such as 2) or which*"),
        ("", ["--coordcheck-seeds=1.5"], "--coordcheck-seeds: must be how many*"),
        ("", ["--coordcheck-report="], "--coordcheck-report must be a folder*"),
        ("", ["--coordcheck-report-all"], "--coordcheck-report-all needs --coordcheck-report=DIR*"),
        ("", ["--coordcheck-only", "--coordcheck-skip"], "--coordcheck-only and --coordcheck-skip*"),
        ("coordcheck_widths = 64", [], "coordcheck_widths of the ini file: must be at least 3*"),
        ("coordcheck_seeds = none", [], "coordcheck_seeds of the ini file: must be how many*"),
        ("coordcheck_steps = -1", [], "coordcheck_steps of the ini file: must be an integer of 0 or more; got '-1'."),
        ("coordcheck_tolerance = wide", [], "coordcheck_tolerance of the ini file: must be a number above 0*"),
        ("coordcheck_tolerance = nan", [], "coordcheck_tolerance of the ini file: must be a number above 0*"),
        ("coordcheck_jobs = 0", [], "coordcheck_jobs of the ini file: must be an integer of 1 or more*"),
    ],
)
def test_options_that_are_not_accepted_are_usage_errors(run, pytester, ini, options, why):
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = run("def test_other(): pass", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {why}"])


@pytest.mark.parametrize(
    ("marker", "why"),
    [
        ("width=64", "takes widths, seeds, steps, tolerance, jobs, expect as keywords; got width."),
        ("(64, 128, 256)", "takes widths, seeds, * as keywords; got (64, 128, 256)."),
        ("widths=(64, 128)", "*(widths=...): must be at least 3 distinct*"),
        ("widths=None", "*(widths=...): must be at least 3 distinct*"),
        ("seeds=0", "*(seeds=...): must be how many*"),
        ("steps=1.5", "*(steps=...): must be an integer*"),
        ("tolerance=-1", "*(tolerance=...): must be a number above 0*"),
        ("jobs=True", "*(jobs=...): must be an integer of 1*"),
        ("expect='muP2'", "*(expect=...): must be mup, sp, ntk, mean-field, or a mapping*"),
    ],
)
def test_a_marker_that_is_not_accepted_is_the_error_of_its_test(run, marker, why):
    result = run(one("pass", f"@pytest.mark.coordcheck({marker})"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=1)
    told = f"test_model.py::test_model: @pytest.mark.coordcheck*{why.lstrip('*')}"
    result.stdout.fnmatch_lines([f"E *UsageError: {told}"])


ONE_WRONG = """
import pytest

@pytest.fixture
def costly():
    raise RuntimeError("this fixture is made in vain")

@pytest.mark.coordcheck(width=64)
def test_wrong(coordcheck, costly): pass
@pytest.mark.skip(reason="on purpose")
@pytest.mark.coordcheck(width=64)
def test_skipped(coordcheck): pass
@pytest.mark.coordcheck(widths=(1, 2, 4))
def test_right(coordcheck): pass
def test_other(): pass
"""
TOLD = "E *UsageError: *::test_wrong: @pytest.mark.coordcheck takes widths*got width."


def test_one_wrong_marker_leaves_all_other_tests_alone(run):
    result = run(ONE_WRONG)
    result.assert_outcomes(passed=2, errors=1, skipped=1)
    result.stdout.fnmatch_lines([TOLD])
    result.stdout.no_fnmatch_line("*in vain*")


def test_as_many_widths_are_asked_for_as_a_slope_needs():
    assert LEAST_WIDTHS == MIN_WIDTHS


# which tests run

SEVERAL = """
import pytest
def test_fixture(coordcheck): coordcheck("ok")
@pytest.mark.coordcheck
def test_marker(): pass
def test_other(): pass
"""


def test_only_the_checks(run, calls):
    run(SEVERAL, "--coordcheck-only").assert_outcomes(passed=2, deselected=1)


def test_all_but_the_checks(run, calls):
    result = run(SEVERAL, "--coordcheck-skip", "-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*--coordcheck-skip"])
    assert calls == []


# the command that runs a test again


@pytest.mark.parametrize(
    "source",
    [
        """import pytest
@pytest.mark.parametrize("x", ["a b", "it's $HOME", "µ/..\\\\x", "[;]"])
def test_p(coordcheck, x): coordcheck("violated")""",
        """class TestA:
    class TestB:
        def test_c(self, coordcheck): coordcheck("violated")""",
    ],
)
def test_the_command_selects_the_test_again(run, calls, pytester, source):
    result = run(source, "--coordcheck-widths=8,16,32", "--coordcheck-seeds=1")
    commands = re.findall(r"^E +rerun: pytest (.*)$", text(result), flags=re.M)
    assert commands
    for command in commands:
        assert command.endswith("--coordcheck-widths 8,16,32 --coordcheck-seeds 1")
        again = pytester.runpytest_inprocess(*shlex.split(command), *QUICK[len(LOADING) :])
        again.assert_outcomes(failed=1)


def test_the_command_is_for_the_folder_where_pytest_was_started(run, calls, pytester, monkeypatch):
    pytester.makepyfile(**{"deep/test_deep": "def test_d(coordcheck): coordcheck('violated')"})
    monkeypatch.chdir(pytester.path / "deep")
    result = pytester.runpytest_inprocess(*QUICK, f"--rootdir={pytester.path}")
    result.stdout.fnmatch_lines([f"E *rerun: pytest test_deep.py::test_d{RERUN}"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/site-packages/pytest/__main__.py"], "{python} -m pytest"),
        (["/somewhere/else/bin/pytest"], "/somewhere/else/bin/pytest"),
        (["/work in/µ/bin/pytest"], "'/work in/µ/bin/pytest'"),
        (["/an/ide/runner.py"], "pytest"),
        ([""], "pytest"),
    ],
)
def test_the_command_starts_pytest_as_it_was_started(run, calls, monkeypatch, argv, words):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python3", "-m", "pytest"])
    told = text(run("def test_s(coordcheck): coordcheck('violated')"))
    (command,) = re.findall(r"^E +rerun: (.*) \S+::test_s", told, flags=re.M)
    assert command == words.format(python=".venv/bin/python3")


@pytest.mark.parametrize(
    ("workerinput", "words"),
    [
        ({"mainargv": ["/site-packages/pytest/__main__.py", "-n2"]}, ["python", "-m", "pytest"]),
        ({"mainargv": ["pytest", "-n2"]}, ["pytest"]),
        ({}, ["pytest"]),
    ],
)
def test_a_worker_of_xdist_tells_how_the_whole_was_started(workerinput, words):
    assert started_by(SimpleNamespace(workerinput=workerinput)) == words


# files


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


FILES = ["divergence.png", "report.html", "report.json"]


def test_a_check_that_fails_leaves_its_report(run, calls, pytester):
    result = run(one("coordcheck('violated')"), "--coordcheck-report=out")
    (folder,) = (pytester.path / "out").iterdir()
    assert written(folder) == sorted(FILES)
    assert (folder / "divergence.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["exit_code"] == 1
    names = re.findall(r"^E +files: out/(.*)/{(.*)}$", text(result), flags=re.M)
    assert [(name, sorted(files.split(","))) for name, files in names] == [(folder.name, sorted(FILES))]
    result.stdout.fnmatch_lines([f"  files: out/{folder.name}/{{divergence.png,*}}"])  # and in the summary


def test_a_check_that_passes_leaves_a_report_when_all_shall(run, calls, pytester):
    run(one("coordcheck('ok')"), "--coordcheck-report=out")
    assert not (pytester.path / "out").exists()
    run(one("coordcheck('ok')"), "--coordcheck-report=out", "--coordcheck-report-all").assert_outcomes(passed=1)
    assert len(written(pytester.path / "out")) == len(FILES)


def test_the_ini_file_names_the_folder_from_where_it_stands(run, calls, pytester, monkeypatch):
    pytester.makeini("[pytest]\ncoordcheck_report = reports\n")
    pytester.makepyfile(**{"deep/test_deep": "def test_d(coordcheck): coordcheck('violated')"})
    monkeypatch.chdir(pytester.path / "deep")
    pytester.runpytest_inprocess(*QUICK)
    assert len(written(pytester.path / "reports")) == len(FILES)


def test_a_test_that_changes_the_folder_does_not_move_its_report(run, calls, pytester, tmp_path):
    run(one(f"import os; os.chdir({str(tmp_path)!r}); coordcheck('violated')"), "--coordcheck-report=out")
    assert len(written(pytester.path / "out")) == len(FILES)


def test_every_test_and_check_has_a_folder_of_its_own(run, calls, pytester, monkeypatch):
    monkeypatch.setattr(Report, "figure", lambda report, kind, path: Path(path).touch())
    source = """
        import pytest
        @pytest.mark.parametrize("x", ["a/b", "a-b", "../../etc", "µ" * 9, "x" * 300, "CON"])
        def test_p(coordcheck, x):
            for _ in range(2):
                with pytest.raises(AssertionError):
                    coordcheck("violated")
    """
    run(source, "--coordcheck-report=out").assert_outcomes(passed=6)
    names = [path.name for path in (pytester.path / "out").iterdir()]
    assert len(names) == 12
    assert all(re.fullmatch(r"test_p-[A-Za-z0-9_-]{0,33}-[0-9a-f]{10}(-2)?", name) for name in names), names


@pytest.mark.parametrize("test", ["t.py::test_a[\ud800]", "t.py", "t.py::[]", "µ.py::test[/../]", "t.py::" + "x" * 999])
def test_folder_names_are_short_and_ascii(test):
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}-[0-9a-f]{10}", folder_name(test))
    assert folder_name(test) != folder_name(f"{test}\N{COMBINING DIAERESIS}")


def test_a_folder_that_cannot_be_written_is_told_beside_the_failure(run, calls, pytester):
    (pytester.path / "out").touch()
    result = run(one("coordcheck('violated')"), "--coordcheck-report=out")
    result.stdout.fnmatch_lines(["E *NotWidthInvariant*", "E *files: divergence.png could not be written: *"])
    run(one("coordcheck('ok')"), "--coordcheck-report=out", "--coordcheck-report-all").assert_outcomes(passed=1)


def test_a_figure_that_cannot_be_drawn_is_told_and_the_rest_is_written(run, calls, pytester, monkeypatch):
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(Report, "figure", broken)
    result = run(one("coordcheck('violated')"), "--coordcheck-report=out")
    result.stdout.fnmatch_lines(["E *files: out/*report.json*}; divergence.png could not be written: no fonts"])


# baselines

BASELINE = one("coordcheck('ok', baseline='gpt')")
WHERE = "coordcheck_baselines/test_model/gpt.json"


def stored(pytester: pytest.Pytester) -> Path:
    return pytester.path / WHERE


@pytest.fixture
def kept(run, calls, pytester) -> Path:
    """A test whose baseline has been stored."""
    run(BASELINE, "--coordcheck-update").assert_outcomes(passed=1)
    calls.clear()
    return stored(pytester)


def test_without_a_baseline_the_test_fails_before_it_trains(run, calls):
    result = run(BASELINE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"E *BaselineChanged: there is no baseline 'gpt' yet ({WHERE}).",
            f"E *: pytest test_model.py::test_model{RERUN} --coordcheck-update",
            "test_model.py::test_model: not checked, baseline missing",
        ]
    )
    assert calls == []


def test_an_update_writes_the_baseline_and_says_so(run, calls, pytester):
    result = run(BASELINE, "--coordcheck-update", "-q")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"coordcheck: baseline written: {WHERE}; review it, and commit it"])
    assert json.loads(stored(pytester).read_text(encoding="utf-8"))["settings"]["widths"] == [64, 128, 256]


def test_the_same_exponents_pass(run, kept):
    run(BASELINE).assert_outcomes(passed=1)


def test_an_update_without_a_change_leaves_the_file_alone(run, kept):
    edited = kept.read_text(encoding="utf-8").replace("[0.0, 0.0]", "[0.01, 0.0]")
    kept.write_text(edited, encoding="utf-8")
    result = run(BASELINE, "--coordcheck-update")
    assert kept.read_text(encoding="utf-8") == edited
    assert "baseline written" not in text(result)


CHANGED = """\
>       coordcheck("moved", baseline="gpt")
E       coordcheck.common.errors.BaselineChanged: baseline 'gpt' (coordcheck_baselines/test_model/gpt.json): \
1 of 1 exponents changed, 1 new, 1 missing
E         exponent     measured         baseline            now                 allowed
E         model: fc    change at t=1    +0.00 ± 0.00, ok    +0.20 ± 0.00, ok    ± 0.10
E         new: model: fresh
E         missing: model: head
E       rule: an exponent may move by 0.1, or by the 95 % interval of the difference
E       To write what changed, and then to review and commit it: pytest test_model.py::test_model{rerun} \
--coordcheck-update
E       files: none; --coordcheck-report=DIR writes the figures and the whole report
E       rerun: pytest test_model.py::test_model{rerun}

test_model.py:4: BaselineChanged
"""


def test_the_message_of_exponents_that_changed(run, kept):
    before = kept.read_bytes()
    result = run(one('coordcheck("moved", baseline="gpt")'))
    result.assert_outcomes(failed=1)
    assert shown_failure(result) == CHANGED.format(rerun=RERUN)
    result.stdout.fnmatch_lines(
        ["test_model.py::test_model: ok, baseline changed", "*1 check: 1 ok; 1 baseline changed"]
    )
    assert kept.read_bytes() == before


def test_an_update_writes_what_changed(run, kept):
    source = one("coordcheck('moved', baseline='gpt')")
    run(source, "--coordcheck-update").assert_outcomes(passed=1)
    run(source).assert_outcomes(passed=1)


def test_the_tolerance_of_a_baseline(run, kept):
    kept.write_text(kept.read_text(encoding="utf-8").replace("[0.0, 0.0]", "[0.2, 0.0]"), encoding="utf-8")
    run(BASELINE).assert_outcomes(failed=1)
    run(one("coordcheck('ok', baseline='gpt', baseline_tolerance=0.3)")).assert_outcomes(passed=1)


def test_other_settings_are_named(run, kept):
    result = run(one("coordcheck('too few', baseline='gpt', invariant=False)"))
    result.stdout.fnmatch_lines(["E *CoordCheckError: model: a verdict needs*"])
    kept.write_text(kept.read_text(encoding="utf-8").replace("[64, 128, 256]", "[32, 64, 128]"), encoding="utf-8")
    result = run(BASELINE)
    result.stdout.fnmatch_lines(["E *made with other settings: widths was (32, 64, 128), is (64, 128, 256)"])


@pytest.mark.parametrize("damage", ["<<<<<<< HEAD\n", "", '{"format": "coordcheck baseline", "schema": 1}'])
def test_a_damaged_baseline_is_told_and_written_anew(run, kept, calls, damage):
    kept.write_text(damage, encoding="utf-8")
    result = run(BASELINE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *RunFileError: the baseline *gpt.json*", "E *write anew*--coordcheck-update"])
    assert calls == []
    run(BASELINE, "--coordcheck-update").assert_outcomes(passed=1)
    run(BASELINE).assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [[], ["--coordcheck-update"]])
def test_a_newer_baseline_is_never_written_over(run, kept, options):
    newer = kept.read_text(encoding="utf-8").replace('"schema": 1', '"schema": 2')
    kept.write_text(newer, encoding="utf-8")
    result = run(BASELINE, *options)
    result.stdout.fnmatch_lines(["E *has schema 2; this version reads up to 1. Upgrade coordcheck."])
    assert kept.read_text(encoding="utf-8") == newer


@pytest.mark.parametrize("name", ["''", "'../x'", "'a/b'", "'µP'", "'.hidden'", "'x' * 81", "3", "'a\\n'"])
def test_names_that_are_no_file_names_are_refused(run, calls, name):
    result = run(one(f"coordcheck('ok', baseline={name})"), "--coordcheck-update")
    result.stdout.fnmatch_lines(["E *CoordCheckError: baseline must be a name of 1 to 80 letters*"])
    assert calls == []


def test_a_bad_tolerance_of_a_baseline(run, calls):
    result = run(one("coordcheck('ok', baseline='gpt', baseline_tolerance=-1)"))
    result.stdout.fnmatch_lines(["E *CoordCheckError: baseline_tolerance must be above 0*"])


def test_a_model_with_a_baseline_must_be_width_invariant_too(run, calls, pytester):
    result = run(one("coordcheck('violated', baseline='gpt')"), "--coordcheck-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *NotWidthInvariant*"])
    assert not stored(pytester).exists()


def test_known_faults_are_held_to_their_baseline(run, calls):
    source = one("coordcheck('violated', baseline='gpt', invariant=False)")
    run(source, "--coordcheck-update").assert_outcomes(passed=1)
    result = run(source)
    result.assert_outcomes(passed=1)
    assert "coordcheck: 1 check: 1 violated as the test expects" in result.outlines
    run(one("coordcheck('ok', baseline='gpt', invariant=False)")).assert_outcomes(failed=1)


def test_runs_that_are_missing_make_no_baseline(run, calls, pytester):
    result = run(one("coordcheck('incomplete', baseline='gpt', invariant=False)"), "--coordcheck-update")
    result.stdout.fnmatch_lines(["E *IncompleteCheck*"])
    assert not stored(pytester).exists()


def test_two_checks_that_write_one_baseline(run, calls):
    source = """
        import pytest
        @pytest.mark.parametrize("report", ["ok", "moved"])
        def test_p(coordcheck, report):
            coordcheck(report, baseline="gpt")
    """
    result = run(source, "--coordcheck-update")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *was written a moment ago by test_model.py::test_p?ok?, with other exponents. *"])


def test_two_tests_may_share_a_baseline(run, calls):
    source = """
        import pytest
        @pytest.mark.parametrize("mode", ["eager", "compiled"])
        def test_p(coordcheck, mode):
            coordcheck("ok", baseline="gpt")
    """
    run(source, "--coordcheck-update").assert_outcomes(passed=2)
    run(source).assert_outcomes(passed=2)


# negative controls


@pytest.mark.parametrize(("control", "outcome"), [("violated", "passed"), ("ok", "failed"), ("undecided", "failed")])
def test_a_control_must_fail(run, calls, control, outcome):
    result = run(one(f"coordcheck('ok', control={control}, steps=1, save_to='runs')", f"def {control}(width): ..."))
    result.assert_outcomes(**{outcome: 1})
    assert calls == [{"steps": 1, "save_to": "runs"}, {"steps": 1, "save_to": None}]
    if outcome == "failed":
        result.stdout.fnmatch_lines([f"E *the check is too weak: the negative control, which must fail, is {control}*"])


def test_a_control_is_not_tried_on_a_model_that_fails(run, calls):
    run(one("coordcheck('violated', control=test_model)")).assert_outcomes(failed=1)
    assert len(calls) == 1


def test_a_control_is_looked_at_before_any_time_is_spent(run, calls):
    result = run(one("coordcheck('ok', control='violated')"))
    result.stdout.fnmatch_lines(["E *CoordCheckError: control must be a function of the width*"])
    assert calls == []


# JUnit files


def properties(path: Path) -> dict[str, str]:
    return {str(p.get("name")): str(p.get("value")) for p in ElementTree.parse(path).iter("property")}


def test_properties_reach_the_junit_file(run, calls, pytester):
    run(one("coordcheck('ok'); coordcheck('violated')"), "--junitxml=j.xml", "--coordcheck-report=out")
    found = properties(pytester.path / "j.xml")
    assert {name: found[name] for name in sorted(found) if "files" not in name} == {
        "coordcheck.status": "ok",
        "coordcheck.worst_layer": "fc",
        "coordcheck.worst_slope": "0.0",
        "coordcheck.layers": "fc  ok  +0.00 ± 0.00  change at t=1",
        "coordcheck.2.status": "violated",
        "coordcheck.2.worst_layer": "fc",
        "coordcheck.2.worst_slope": "0.5",
        "coordcheck.2.layers": found["coordcheck.2.layers"],
    }
    assert found["coordcheck.2.files"].startswith("out/test_model-")


def test_hostile_names_do_not_break_the_junit_file(run, calls, pytester):
    result = run(one("coordcheck('hostile')"), "--junitxml=j.xml")
    result.assert_outcomes(failed=1)
    found = properties(pytester.path / "j.xml")
    assert found["coordcheck.worst_layer"].startswith("</property>\\x00\\x1b[31m\\n\\ud800<![CDATA[ ]]> &")
    assert "\x1b" not in text(result)


def test_names_are_cut_in_properties(run, monkeypatch, pytester):
    report = Report(power_law_records({"x" * 999: GROWING}))
    monkeypatch.setattr("coordcheck.checks.check.check", lambda *a, **o: report)
    run(one("coordcheck(None)"), "--junitxml=j.xml")
    assert properties(pytester.path / "j.xml")["coordcheck.worst_layer"] == "x" * 59 + "…"


# real checks

REAL = """
import pytest, torch
import torch.nn.functional as F
from coordcheck.models import mlp

pytestmark = pytest.mark.coordcheck(widths=(64, 128, 256), seeds=2)
batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10

def check(fixture, build, **options):
    return fixture(build, batch, loss=F.cross_entropy, **options)

def fails_at_128(width):
    if width == 128:
        raise ValueError("128 is not supported")
    return mlp("µP", lr=3e-3)(width)
"""


def test_real_models_pass_and_fail(run, pytester):
    source = f"""{REAL}
def test_mup(coordcheck):
    report = check(coordcheck, mlp("µP", lr=3e-3), control=mlp("SP", lr=3e-3), baseline="mup")
    assert report.widths == [64, 128, 256]

def test_sp(coordcheck):
    check(coordcheck, mlp("SP", lr=3e-3))
"""
    result = run(source, "--coordcheck-update", "--coordcheck-report=out", "--junitxml=j.xml")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E *VIOLATED*", "E *to blame*", "E *readout.weight*init*", "test_model.py::test_sp: violated"]
    )
    assert properties(pytester.path / "j.xml")["coordcheck.culprits"] == "hidden.{0,1}.weight, readout.weight"
    (folder,) = (pytester.path / "out").iterdir()
    assert written(folder) == sorted([*FILES, "exponents.png"])
    run(source).assert_outcomes(passed=1, failed=1)  # with the baseline


def test_real_runs_that_fail_and_real_bad_input(run):
    result = run(
        f"""{REAL}
def test_incomplete(coordcheck):
    check(coordcheck, fails_at_128)

def test_loss(coordcheck):
    coordcheck(mlp("µP"), batch, loss=3)
"""
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E *ValueError: 128 is not supported*", "E *CoordCheckError: loss must be*"])
    result.stdout.fnmatch_lines(["test_model.py::test_incomplete: incomplete", "test_model.py::test_loss: bad input"])


def test_the_fixture_disturbs_nothing(run):
    """Neither the random states, nor threads, nor matplotlib: looked at from inside the test."""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)

    def state() -> tuple[Any, ...]:
        drawn = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        return (
            *drawn,
            torch.get_num_threads(),
            mpl.get_backend(),
            dict(mpl.rcParams),
            torch.is_grad_enabled(),
            Path.cwd(),
        )

    pytest.state_of_coordcheck = state
    source = f"""{REAL}
def test_sp(coordcheck):
    before = pytest.state_of_coordcheck()
    with pytest.raises(AssertionError):
        check(coordcheck, mlp("SP", lr=3e-3), steps=1)
    assert pytest.state_of_coordcheck() == before
"""
    try:
        run(source, "--coordcheck-report=out").assert_outcomes(passed=1)
    finally:
        del pytest.state_of_coordcheck


@pytest.fixture
def subprocesses(monkeypatch) -> None:
    """The package is found in processes of their own, whether it is installed or not."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))


def test_checks_in_workers_reach_the_controller(pytester, subprocesses):
    pytest.importorskip("xdist")
    pytester.makepyfile(
        f"""{REAL}
def test_mup(coordcheck):
    check(coordcheck, mlp("µP", lr=3e-3), steps=1, baseline="mup")

def test_sp(coordcheck):
    check(coordcheck, mlp("SP", lr=3e-3), steps=1)
"""
    )
    options = "-n1", "--coordcheck-update", "--junitxml=j.xml", "--coordcheck-seeds=2"
    result = pytester.runpytest_subprocess(*QUICK, *options)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_sp: violated",
            "  hidden*",
            "coordcheck: 2 checks: 1 ok, 1 violated",
            "coordcheck: baseline written: *mup.json*",
        ]
    )
    assert "hidden.{0,1}.weight" in properties(pytester.path / "j.xml")["coordcheck.culprits"]


def test_one_wrong_marker_leaves_all_other_tests_of_workers_alone(pytester, subprocesses):
    pytest.importorskip("xdist")
    pytester.makepyfile(ONE_WRONG)
    result = pytester.runpytest_subprocess(*QUICK, "-n1")
    result.assert_outcomes(passed=2, errors=1, skipped=1)
    result.stdout.fnmatch_lines([TOLD])


# a suite without a check starts as fast as without the plugin

HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "rich",
    "matplotlib",
    "seaborn",
    "jinja2",
    "coordcheck.reporting.report",
    "coordcheck.checks.check",
)
LOADED = f"""
import sys
def pytest_sessionfinish():
    print("loaded:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


def loaded(pytester: pytest.Pytester, source: str) -> str:
    pytester.makeconftest(LOADED)
    pytester.makepyfile(source)
    result = pytester.runpytest_subprocess(*QUICK, "-s", "--coordcheck-widths=1,2,3")
    return next(line.partition("loaded:")[2] for line in result.outlines if "loaded:" in line)


def test_a_run_without_checks_loads_nothing_heavy(pytester, subprocesses):
    source = "def test_other(): pass\ndef test_unused(coordcheck): pass"
    assert loaded(pytester, source).strip() == ""


def test_the_entry_point_loads_the_plugin(pytester, subprocesses, monkeypatch):
    """As after an installation; a baseline that is missing fails before anything heavy is loaded."""
    folder = pytester.mkdir("site")
    information = folder / "pretended-1.dist-info"
    information.mkdir()
    (information / "entry_points.txt").write_text(f"[pytest11]\ncoordcheck = {NAME}\n", encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: pretended\nVersion: 1\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]))
    pytester.makepyfile(test_model=one("coordcheck(None, baseline='gpt')"))
    result = pytester.runpytest_subprocess(*QUICK[len(LOADING) :])
    result.stdout.fnmatch_lines(["E *: * -m pytest test_model.py::test_model --coordcheck-update"])


def test_the_test_of_what_is_loaded_can_fail(pytester, subprocesses):
    assert "numpy" in loaded(pytester, "import numpy\ndef test_other(): pass")


def test_the_plugin_module_itself_is_light():
    code = f"import {NAME}, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_not_a_number_is_no_worst_slope(run, monkeypatch, pytester):
    lost = Report(power_law_records({"fc": FLAT}, noise=lambda width, seed, layer: math.nan))
    monkeypatch.setattr("coordcheck.checks.check.check", lambda *a, **o: lost)
    run(one("coordcheck(None)"), "--junitxml=j.xml").assert_outcomes(failed=1)
    found = properties(pytester.path / "j.xml")
    assert found["coordcheck.worst_layer"] == "fc"
    assert "coordcheck.worst_slope" not in found
