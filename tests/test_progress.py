"""What is said of a sweep while it runs: a bar, lines, the log, or nothing; and never more than is wanted."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from concurrent.futures import Executor, Future
from contextvars import Context
from itertools import count

import pytest
import torch.nn.functional as F
from conftest import pair_batch

import coordcheck
from coordcheck.cli.main import main
from coordcheck.models import mlp
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.words import Outcome
from coordcheck.training import progress
from coordcheck.training.progress import Lines, Progress, silent

KEYS = [RunKey("SP", width, seed) for seed in (0, 1) for width in (64, 128, 256)]


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ended(key: RunKey, seconds: float, outcome: Outcome = Outcome.FINISHED) -> RunRecord:
    return RunRecord(key, seconds=seconds, outcome=outcome)


def check(**options):
    given = {"widths": (8, 16, 32), "seeds": 1, "loss": F.cross_entropy, "probe": None, "steps": 2}
    return coordcheck.check({"SP": mlp("SP")}, pair_batch(), **(given | options))


@pytest.fixture
def talkative(monkeypatch):
    """A line for everything that happens."""
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    monkeypatch.setattr(progress, "BLINK", 0.0)


def test_a_line_says_run_width_seed_step_and_times():
    clock = Clock()
    told: list[str] = []
    state = Progress(KEYS, lambda state: told.append(str(state)), clock)
    state.started(KEYS[0])
    clock.now += 10
    state.stepped(1, 4)
    state.ended(ended(KEYS[0], 10.0))
    clock.now += 40
    state.ended(ended(KEYS[1], 40.0))
    assert told == [
        "0 of 6 runs, 0 s so far: SP, width 64, seed 0",
        "0 of 6 runs, 10 s so far: SP, width 64, seed 0, step 1 of 4",
        "1 of 6 runs, 10 s so far, about 2 min 10 s to go: SP, width 64, seed 0",
        "2 of 6 runs, 50 s so far, about 6 min 10 s to go: SP, width 128, seed 0",  # 10 + 40 + 2 * 160
    ]


def test_runs_side_by_side_shorten_what_remains():
    clock = Clock()
    state = Progress([RunKey("SP", 64, seed) for seed in range(8)], lambda state: None, clock)
    clock.now += 10
    for seed in range(4):
        state.ended(ended(RunKey("SP", 64, seed), 10.0))
    assert state.remaining == pytest.approx(10)


def test_failed_runs_are_done_and_tell_nothing_of_the_time():
    state = Progress(KEYS, lambda state: None, Clock())
    state.ended(ended(KEYS[0], 0.1, Outcome.FAILED))
    assert (state.done, state.remaining) == (1, None)


def test_steps_move_what_is_completed_within_a_run():
    state = Progress(KEYS, lambda state: None, Clock())
    state.started(KEYS[0])
    found = []
    for step in range(4):
        state.stepped(step, 3)
        found.append(state.completed)
    assert found == [0, 0.25, 0.5, 0.75]
    state.ended(ended(KEYS[0], 1.0))
    assert state.completed == 1


def test_lines_are_ten_seconds_apart_and_the_last_run_needs_none():
    clock, told = Clock(), []
    state = Progress(KEYS, Lines(told.append), clock)
    for key in KEYS:
        for step in range(5):
            clock.now += 1
            state.stepped(step, 4)
        state.ended(ended(key, 5.0))
    assert [re.search(r"(\d+) s so far", line)[1] for line in told] == ["10", "20", "30"]
    state.ended(ended(KEYS[-1], 5.0))
    clock.now += 60
    state.stepped(1, 4)
    assert len(told) == 3  # all runs have ended, and the report follows


def test_a_short_check_says_nothing(capsys):
    check()
    assert capsys.readouterr().err == ""


class Elsewhere(Executor):
    """An executor whose workers know nothing of the sweep, as other processes do."""

    def submit(self, function, *arguments) -> Future:
        done: Future = Future()
        done.set_result(Context().run(function, *arguments))
        return done


@pytest.mark.parametrize("executor", [None, Elsewhere()])
def test_lines_reach_standard_error_where_there_is_no_terminal(talkative, capsys, executor):
    check(executor=executor)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.fullmatch(r"coordcheck: \d of 3 runs, \d+ s so far.*: SP, width \d+, seed 0.*", one) for one in lines)
    assert any("step 2 of 2" in line for line in lines) is (
        executor is None
    )  # other processes tell when a run has ended
    assert any("2 of 3 runs" in line and "to go" in line for line in lines)


def test_diagnoses_and_sweeps_of_learning_rates_tell_it_too(talkative, capsys):
    coordcheck.diagnose({"SP": mlp("SP")}, pair_batch(), loss=F.cross_entropy, widths=(8, 16, 32), seeds=1)
    assert "coordcheck: 1 of 3 runs" in capsys.readouterr().err

    def at_rate(width, lr):
        return mlp("SP", lr=lr)(width)

    rates = {"lrs": [2.0**-9, 2.0**-8, 2.0**-7], "widths": (8, 16), "seeds": 1, "steps": 2}
    coordcheck.transfer_sweep(at_rate, pair_batch(), loss=F.cross_entropy, **rates)
    assert ": at_rate, lr 0.001953125, width 8, seed 0, step 1 of 2" in capsys.readouterr().err


def test_a_program_with_a_log_finds_the_lines_there(talkative, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="coordcheck"):
        check()
    assert any("1 of 3 runs" in record.getMessage() for record in caplog.records)
    assert {record.name for record in caplog.records} == {"coordcheck"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["level", "silent"])
def test_quiet(talkative, capsys, monkeypatch, how):
    if how == "level":
        monkeypatch.setattr(progress.LOGGER, "level", logging.WARNING)
        check()
    else:
        with silent():
            check()
    assert capsys.readouterr().err == ""
    check()
    assert (capsys.readouterr().err == "") is (how == "level")


def test_quiet_on_the_command_line(talkative, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = (
        "import torch\nfrom coordcheck.models import mlp\nbuild, batch = mlp(), (torch.ones(4, 64), torch.arange(4))\n"
    )
    (tmp_path / "quiet_train.py").write_text(text, encoding="utf-8")
    options = ["--batch", "quiet_train.py:batch", "--loss", "torch.nn.functional:cross_entropy", "--widths", "8,16,32"]
    for command in ("run", "diagnose"):
        main([command, "quiet_train.py:build", *options, "--seeds", "1"])
        assert "coordcheck: 1 of 3 runs" in capsys.readouterr().err
        main([command, "quiet_train.py:build", *options, "--seeds", "1", "-q"])
        assert capsys.readouterr().err == ""
    sys.modules.pop("quiet_train")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_that_moves_within_a_run(talkative, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("rich.progress.Progress.update", spy := Updates())
    check()
    assert ("SP, width 8, seed 0, step 1 of 2", 1 / 3) in spy.seen
    assert spy.seen[-1] == ("SP, width 32, seed 0", 3)
    assert "coordcheck: " not in sys.stderr.getvalue()


class Updates:
    """In place of the bar's own: what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def __call__(self, task, *, completed, description, rest) -> None:
        self.seen.append((description, pytest.approx(completed)))


def test_a_dumb_terminal_has_lines(talkative, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Terminal())
    check()
    assert sys.stderr.getvalue().startswith("coordcheck: 0 of 3 runs")


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_a_standard_error_that_is_gone_ends_nothing(talkative, monkeypatch, stderr):
    gone = io.StringIO()
    gone.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None if stderr is None else gone)
        found = check() if stderr is None else None
        Lines(progress._write)(Progress(KEYS, lambda state: None, count(100).__next__))
    assert found is None or found.records


def test_the_log_is_never_configured():
    code = (
        "import logging; before = logging.root.handlers[:], logging.root.level\n"
        "from coordcheck.training import progress\n"
        "with progress.progress([]): pass\n"
        "log = progress.LOGGER\n"
        "assert (logging.root.handlers, logging.root.level) == before\n"
        "assert (log.handlers, log.level, log.propagate) == ([], 0, True)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_lengths_of_time_have_the_units_that_fit():
    assert [progress.duration(s) for s in (0.2, 59.6, 3599, 3600, 90000)] == [
        *("0 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 00 min")
    ]
