"""Whatever user code, the system or another process does, a check ends as gallery/guide/faults.md says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import nn

import coordcheck
from coordcheck.cli import main
from coordcheck.errors import CoordCheckError, IncompleteCheck
from coordcheck.interrupts import Stopped, deferred, look, stoppable
from coordcheck.isolation import Exited, kept_alive, user_code
from coordcheck.models import mlp

WIDTHS = (16, 32, 64, 128)
BAD = 32  # the width at which something happens


def check(build: Any, **options: Any) -> coordcheck.Report:
    """A tiny check of a model that passes."""
    given = {"batch": pair_batch(), "loss": F.cross_entropy, "widths": WIDTHS, "seeds": 1, "steps": 1, "probe": None}
    return coordcheck.check({"net": build}, **{**given, "tolerance": 100.0, **options})


def outcomes(report: coordcheck.Report) -> dict[int, str]:
    return {record.key.width: record.outcome.value for record in report.records}


# ---- what user code raises


class Odd(BaseException):
    """An exception that `except Exception` does not see."""


LEAVING = {
    "sys.exit": lambda: sys.exit(0),
    "sys.exit with a text": lambda: sys.exit("done"),
    "quit": lambda: (_ for _ in ()).throw(SystemExit(None)),
    "GeneratorExit": lambda: (_ for _ in ()).throw(GeneratorExit()),
    "its own": lambda: (_ for _ in ()).throw(Odd("odd")),
    "an error": lambda: 1 / 0,
}


def width_of(model: nn.Module) -> int:
    return next(model.parameters()).shape[0]


def in_build(leave: Callable[[], Any]) -> dict[str, Any]:
    return {"build": lambda width: leave() if width == BAD else mlp("µP")(width)}


def in_forward(leave: Callable[[], Any]) -> dict[str, Any]:
    def build(width: int) -> Any:
        model, optimizer = mlp("µP")(width)
        if width == BAD:
            model.register_forward_pre_hook(lambda module, inputs: leave())
        return model, optimizer

    return {"build": build}


def in_backward(leave: Callable[[], Any]) -> dict[str, Any]:
    def build(width: int) -> Any:
        model, optimizer = mlp("µP")(width)
        if width == BAD:
            next(model.parameters()).register_hook(lambda gradient: leave())
        return model, optimizer

    return {"build": build}


def in_step(leave: Callable[[], Any]) -> dict[str, Any]:
    def build(width: int) -> Any:
        model, optimizer = mlp("µP")(width)
        if width == BAD:
            optimizer.register_step_pre_hook(lambda *arguments: leave())
        return model, optimizer

    return {"build": build}


def in_loss(leave: Callable[[], Any]) -> dict[str, Any]:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return leave() if width_of(model) == BAD else F.cross_entropy(model(batch[0]), batch[1])

    return {"build": mlp("µP"), "loss": loss}


def in_batch_of_seed(leave: Callable[[], Any]) -> dict[str, Any]:
    return {"build": mlp("µP"), "batch": lambda seed: leave() if seed else pair_batch(), "seeds": 2}


PLACES = [in_build, in_forward, in_backward, in_step, in_loss, in_batch_of_seed]


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.parametrize("leaving", LEAVING)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_whatever_user_code_raises_is_a_failed_run(place: Callable[..., Any], leaving: str):
    report = check(**place(LEAVING[leaving]))
    bad = [record for record in report.records if record.outcome.value == "failed"]
    assert {record.outcome.value for record in report.records} == {"finished", "failed"}
    assert {record.key.width for record in bad} == ({BAD} if place is not in_batch_of_seed else set(WIDTHS))
    assert report.exit_code == 3
    with pytest.raises(IncompleteCheck, match=r"failed"):
        report.raise_for_status()


def test_a_failed_run_says_how_it_was_left():
    assert check(**in_build(LEAVING["sys.exit"])).missing[0].reason.endswith("SystemExit: 0 (sys.exit was called)")
    assert "in <lambda>" in check(**in_build(LEAVING["sys.exit"])).missing[0].reason
    assert check(**in_build(LEAVING["its own"])).missing[0].reason.endswith("Odd: odd")


def test_ctrl_c_and_the_outcomes_of_pytest_are_no_failures_of_a_run():
    with pytest.raises(KeyboardInterrupt), user_code("it"):
        raise KeyboardInterrupt
    with pytest.raises(pytest.skip.Exception), user_code("it"):
        pytest.skip("the test's own affair")
    with pytest.raises(Exited, match=r"it left by SystemExit: 0 \(sys.exit was called\)"), user_code("it"):
        sys.exit(0)


def test_a_diagnosis_that_is_left_costs_itself_alone():
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return sys.exit(0) if len(batch[0]) < 8 else F.cross_entropy(model(batch[0]), batch[1])

    report = check(mlp("µP"), loss=loss, probe=(pair_batch()[0][:2], pair_batch()[1][:2]))
    assert set(outcomes(report).values()) == {"finished"}
    assert any("the diagnosis failed: SystemExit: 0" in note for note in report.notes)
    larger = check(mlp("µP"), loss=loss, probe="auto")  # fewer examples are not accepted: the whole batch is
    assert not any("the diagnosis failed" in note for note in larger.notes)


def broken_loader() -> Iterator[Any]:
    sys.exit(0)
    yield


@pytest.mark.parametrize(
    "call",
    [
        lambda: check(mlp("µP"), batch=broken_loader()),
        lambda: coordcheck.diagnose(mlp("µP"), broken_loader(), loss=F.cross_entropy),
        lambda: coordcheck.assert_width_invariant(mlp("µP"), broken_loader(), loss=F.cross_entropy, steps=1),
        lambda: coordcheck.transfer_sweep(
            lambda width, lr: mlp("µP", lr=lr)(width), broken_loader(), lrs=(0.1, 0.2, 0.4), loss=F.cross_entropy
        ),
    ],
    ids=["check", "diagnose", "assert_width_invariant", "transfer_sweep"],
)
def test_a_loader_that_leaves_is_refused(call: Callable[[], Any]):
    with pytest.raises(CoordCheckError, match="left by SystemExit: 0") as refused:
        call()
    assert refused.value.exit_code == 2


def test_no_verb_takes_an_exit_for_an_answer():
    build = in_build(LEAVING["sys.exit"])["build"]
    options = {"loss": F.cross_entropy, "widths": WIDTHS, "seeds": 1}
    assert coordcheck.diagnose(build, pair_batch(), **options).exit_code == 3
    assert coordcheck.plan(build, widths=WIDTHS, seeds=1).exit_code == 3
    with pytest.raises(IncompleteCheck, match="SystemExit: 0"):
        coordcheck.assert_width_invariant(build, pair_batch(), steps=1, tolerance=100.0, probe=None, **options)
    swept = coordcheck.transfer_sweep(lambda w, lr: build(w), pair_batch(), lrs=(0.1, 0.2, 0.4), steps=1, **options)
    assert set(swept.losses.loc[swept.losses["width"] == BAD, "status"]) == {"failed"}


# ---- the command line's exit code

SCRIPT = """
import atexit, os, sys, threading, time, warnings, subprocess
import torch
from coordcheck.models import mlp

batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10

def good(width):
    return mlp("µP")(width)
"""
OPTIONS = ["--batch", "code.py:batch", "--loss", "torch.nn.functional:cross_entropy", "--seeds", "1", "--steps", "1"]
TINY = [*OPTIONS, "--widths", "16", "32", "64", "--tolerance", "100", "--probe", "none"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds lines to a user's file in the current folder, which is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "code.py"
    sys.modules.pop("code", None)
    yield lambda lines: file.write_text(SCRIPT + lines, encoding="utf-8") and None
    sys.modules.pop("code", None)


EXITS = {
    "in a build": ("def build(width):\n    return sys.exit(0) if width == 32 else good(width)\n", 3),
    "in every build": ("def build(width):\n    sys.exit(0)\n", 2),
    "os._exit in a build": ("def build(width):\n    return os._exit(0) if width == 32 else good(width)\n", 3),
    "in an import": ("build = good\nsys.exit(0)\n", 2),
    "os._exit in an import": ("build = good\nos._exit(0)\n", 2),
    "in a property": ("class C:\n    @property\n    def build(self):\n        sys.exit(0)\nbuild = C().build", 2),
    "of a module's attribute": ("def __getattr__(name):\n    sys.exit(0)\n", 2),
    "in a batch": ("build = good\ndef batch(seed):\n    sys.exit(0)\n", 2),
    "in a pickle": (
        "class C:\n __call__ = good\n def __reduce__(self):\n  sys.exit(0)\nbuild = C()\n",
        None,
    ),
    "nowhere": ("build = good\n", 0),
}


@pytest.mark.fault(61)
@pytest.mark.parametrize("where", EXITS)
def test_the_command_line_exits_0_for_a_judged_report_alone(script, capsys, where: str):
    lines, code = EXITS[where]
    script(lines)
    found = main(["run", "code.py:build", *TINY])
    printed = capsys.readouterr()
    judged = "OK" in printed.out
    assert found == (code if code is not None else found)
    assert (found == 0) == judged, printed
    if where == "in an import":
        assert 'Let what a script does when it is started stand under `if __name__ == "__main__":`' in printed.err


def test_os_exit_is_itself_again_and_other_threads_may_use_it():
    leave = os._exit
    with kept_alive():
        assert os._exit is not leave
        with pytest.raises(SystemExit, match=r"os._exit\(3\)"):
            os._exit(3)
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert os._exit is leave


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, *options.pop("python", []), "-m", "coordcheck", *arguments],
        **{"capture_output": True, "timeout": 240, "check": False, "env": environment, **options},
    )


def test_what_user_code_leaves_behind_neither_delays_nor_changes_the_end(script):
    script(
        "atexit.register(os._exit, 0)\natexit.register(print, 'bye')\n"
        "threading.Thread(target=time.sleep, args=(600,), name='left behind').start()\n"
        "build = mlp('SP', lr=1e-2)\n"
    )
    options = [*OPTIONS, "--widths", "16", "64", "256", "--format", "json", "--probe", "none"]
    done = program("run", "code.py:build", *options, python=["-W", "error"])
    assert done.returncode == json.loads(done.stdout)["exit_code"] != 0
    assert b"threads that were started by the code under check still ran: left behind" in done.stderr


# ---- signals


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_even_what_swallows_it(name: str):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def careless() -> None:
        with suppress(BaseException):  # as `try: ... except:` in a training loop
            signal.raise_signal(number)
        look()

    with pytest.raises(Stopped) as stop, stoppable():
        careless()
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    look()  # it is over


@pytest.mark.fault(6)
def test_a_signal_waits_for_what_must_not_be_interrupted():
    done = []

    def save(signals: int) -> None:
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        done.append(signals)

    with pytest.raises(KeyboardInterrupt), deferred():
        save(1)
    with pytest.raises(KeyboardInterrupt), deferred():
        save(2)  # twice: at once
    assert done == [1]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stoppable(), deferred():
            signal.raise_signal(signal.SIGHUP)
            look()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault(6)
@pytest.mark.parametrize("when", ["saved", "swallowed"])
def test_a_run_that_has_ended_keeps_its_file_whenever_the_signal_comes(tmp_path: Path, monkeypatch, when: str):
    from coordcheck.runfiles import RunFolder

    save, build = RunFolder.save, mlp("µP")

    def interrupted(folder: RunFolder, record: Any) -> None:
        if when == "saved" and record.key.width == BAD:
            signal.raise_signal(signal.SIGINT)
        save(folder, record)

    def swallowing(width: int) -> Any:
        if when == "swallowed" and width == BAD:
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                return build(width)
        return build(width)

    monkeypatch.setattr(RunFolder, "save", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop, stoppable():
        check(swallowing, save_to=tmp_path)
    assert "2 of 4 runs are done" in str(stop.value)
    assert sorted(path.stem for path in tmp_path.rglob("*-0.json")) == ["16-0", "32-0"]
