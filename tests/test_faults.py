"""Whatever user code, the system or another process does, a check ends as gallery/guide/faults.md says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import nn

import coordcheck
from coordcheck.cli.main import main
from coordcheck.common.errors import CoordCheckError, IncompleteCheck
from coordcheck.common.interrupts import Stopped, deferred, look, stoppable
from coordcheck.common.isolation import Exited, kept_alive, user_code
from coordcheck.models import mlp
from coordcheck.reporting.ci import github, junit
from coordcheck.runs.agreement import largest_difference
from coordcheck.runs.claims import Claims
from coordcheck.runs.files import RunFolder
from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Outcome, Status
from coordcheck.training.keeper import FolderKeeper
from coordcheck.training.surroundings import numeric_state

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


def interrupted() -> None:
    raise KeyboardInterrupt


HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks"),
    *("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks"),
)


def hooks_on(*objects: Any) -> int:
    """How many hooks there are on modules, parameters and optimizers."""
    return sum(len(getattr(one, name, None) or ()) for one in objects for name in HOOKS)


@contextmanager
def nothing_left(build: Callable[[int], Any]) -> Iterator[Callable[[int], Any]]:
    """A build whose models have no more hooks at the end than it put there, with every global as it was."""
    made: list[tuple[list[Any], int]] = []

    def watched(width: int) -> Any:
        model, optimizer = build(width)
        objects = [optimizer, *model.modules(), *model.parameters()]
        made.append((objects, hooks_on(*objects)))
        return model, optimizer

    modules = vars(torch.nn.modules.module)
    everywhere = {name: len(value) for name, value in modules.items() if name.startswith("_global_") and value}
    before, random_state, filters = numeric_state(), torch.get_rng_state(), list(warnings.filters)
    yield watched
    assert made
    assert [hooks_on(*objects) for objects, _ in made] == [count for _, count in made]
    assert everywhere == {n: len(value) for n, value in modules.items() if n.startswith("_global_") and value}
    assert numeric_state() == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert warnings.filters == filters
    assert torch.is_grad_enabled()


@pytest.mark.fault(21)
@pytest.mark.fault(22)
@pytest.mark.fault(23)
@pytest.mark.parametrize("probe", ["auto", None], ids=["diagnosed", "not diagnosed"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_fault_leaves_a_hook_or_a_global_behind(place: Callable[..., Any], probe: Any):
    for leave in (LEAVING["sys.exit"], LEAVING["an error"], interrupted):
        options = place(leave)
        with nothing_left(options["build"]) as build, suppress(KeyboardInterrupt):
            check(**{**options, "build": build, "probe": probe, "widths": (16, 32, 64)})


def test_a_hook_or_a_global_that_is_left_behind_would_be_seen():
    models = []

    def build(width: int) -> Any:
        models.append(mlp("µP")(width))
        return models[-1]

    def checked(watched: Any, leave: Callable[[], Any]) -> None:
        check(watched, widths=(16, 32, 64))
        leave()

    with pytest.raises(AssertionError), nothing_left(build) as watched:
        checked(watched, lambda: models[0][0].register_forward_hook(lambda *arguments: None))
    with pytest.raises(AssertionError), nothing_left(build) as watched:
        checked(watched, lambda: torch.rand(1))
    with nothing_left(build) as watched:
        checked(watched, lambda: None)


@pytest.mark.fault(39)
def test_a_hook_of_the_users_own_that_raises_is_told_as_such_and_ours_raise_nothing():
    def in_a_hook(width: int) -> Any:
        model, optimizer = mlp("µP")(width)

        def hook_of_mine(module: nn.Module, inputs: Any, output: Any) -> None:
            raise LookupError("in my hook")

        if width == BAD:
            next(model.children()).register_forward_hook(hook_of_mine)
        return model, optimizer

    reason = check(in_a_hook).missing[0].reason
    assert reason.endswith("LookupError: in my hook")
    assert "in hook_of_mine" in reason


@pytest.mark.fault(39)
def test_a_hook_of_the_users_own_that_changes_an_output_is_seen():
    def doubled(width: int) -> Any:
        model, optimizer = mlp("µP")(width)
        model.readout.register_forward_hook(lambda module, inputs, output: 2 * output)
        return model, optimizer

    def initial(build: Any) -> list[float]:
        rows = check(build, steps=0).measurements
        return rows.loc[(rows["layer"] == "readout") & (rows["quantity"] == "activation"), "value"].tolist()

    assert initial(doubled) == pytest.approx([2 * value for value in initial(mlp("µP"))])


@pytest.mark.fault(35)
@pytest.mark.parametrize("probe", ["auto", None])
def test_a_model_on_the_meta_device_is_refused(probe: Any):
    def on_meta(width: int) -> Any:
        with torch.device("meta"):
            return mlp("µP")(width)

    with pytest.raises(CoordCheckError, match=r"is on the meta device.*model.to_empty\(device=\"cpu\"\)"):
        check(on_meta, probe=probe)


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
OPTIONS = ["--batch", "users.py:batch", "--loss", "torch.nn.functional:cross_entropy", "--seeds", "1", "--steps", "1"]
PARALLEL = ["--save-to", "runs", "--jobs", "2"]
TINY = [*OPTIONS, "--widths", "16", "32", "64", "--tolerance", "100", "--probe", "none"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds lines to a user's file in the current folder, which is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "users.py"
    sys.modules.pop("users", None)
    yield lambda lines: file.write_text(SCRIPT + lines, encoding="utf-8") and None
    sys.modules.pop("users", None)


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
    found = main(["run", "users.py:build", *TINY])
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
    done = program("run", "users.py:build", *options, python=["-W", "error"])
    assert done.returncode == json.loads(done.stdout)["exit_code"] != 0
    assert b"threads that were started by the code under check still ran: left behind" in done.stderr


# ---- signals


@pytest.mark.fault(7)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_even_what_swallows_it(name: str, request: pytest.FixtureRequest):
    number = getattr(signal, name)
    request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(number, before := signal.default_int_handler)  # under `nohup` it would be ignored, and stay so

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
    from coordcheck.runs.files import RunFolder

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


# ---- workers that hang, die or print

TROUBLE = """
def build(width):
    print("noise"); os.write(1, b"raw noise"); subprocess.run(["echo", "noise of a child"])
    print("more", file=sys.__stdout__); warnings.warn("a warning")
    if width == 128:
        threading.Thread(target=time.sleep, args=(600,)).start()
    if width == 32 and not os.path.exists("once"):
        open("once", "w").close()
        os._exit(0)
    if width == 16:
        time.sleep(600)
    return good(width)
"""


@pytest.mark.fault(5)
@pytest.mark.fault(9)
def test_workers_that_hang_die_or_print_cost_their_own_run_alone(script, tmp_path: Path):
    script(TROUBLE)
    options = [*OPTIONS, "--widths", "16 32 128 256", "--jobs", "2", "--timeout", "10", "--probe", "none"]
    options += ["--format", "json", "--tolerance", "100", "--save-to", "runs"]
    done = program("run", "users.py:build", *options)
    found = json.loads(done.stdout)  # nothing else stands there
    assert {run["width"]: run["outcome"] for run in found["runs"]} == {
        16: "timed out",
        32: "finished",  # at the second attempt, alone in a new worker
        128: "finished",
        256: "finished",
    }
    assert done.returncode == 3
    assert any("it took longer than 10 s, and its process was killed" in note for note in found["notes"])
    assert b"noise of a child" in done.stderr
    assert len(coordcheck.load(tmp_path / "runs").missing) == 1


@pytest.mark.fault(8)
def test_after_kill_9_the_workers_go_and_nothing_that_is_finished_is_lost(script, tmp_path: Path, monkeypatch):
    script(
        "def build(width):\n    open(f'{width}.{os.getpid()}', 'w').close()\n"
        "    if width < 64:\n        time.sleep(600)\n    return good(width)\n"
    )
    options = [*OPTIONS, "--widths", "16", "32", "64", "--tolerance", "100", "--probe", "none"]
    command = [sys.executable, "-m", "coordcheck", "run", "users.py:build", *options, *PARALLEL]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as running:
        try:
            wait_for(lambda: all(list(tmp_path.glob(one)) for one in ("16.*", "32.*", "runs/**/64-0.json")))
        finally:
            running.kill()
        running.communicate(timeout=30)  # the workers no longer hold its standard error
    workers = [int(path.suffix[1:]) for width in (16, 32) for path in tmp_path.glob(f"{width}.*")]
    wait_for(lambda: not any(map(alive, workers)), seconds=20)
    kept = (tmp_path / "runs/runs/build/64-0.json").read_bytes()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert main(["run", "users.py:build", *options, "--save-to", "runs"]) == 0
    assert kept == (tmp_path / "runs/runs/build/64-0.json").read_bytes()
    assert main(["run", "users.py:build", *options, "--save-to", "whole"]) == 0
    resumed, whole = (coordcheck.load(tmp_path / name).records for name in ("runs", "whole"))
    assert [replace(record, seconds=0.0) for record in resumed] == [replace(record, seconds=0.0) for record in whole]


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed by its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"timeout": 0}, "timeout must be above 0"),
        ({"timeout": "1 h"}, "timeout must be a finite number"),
        ({"jobs": 10**9}, "jobs must be an integer from 1 to 1024"),
        ({"steps": 10**12}, "steps must be an integer from 0 to 1000000"),
        ({"seeds": 10**9}, r"seeds=1000000000 is more than a check may have runs \(100000\)"),
        ({"seeds": range(10**9)}, "seeds has more values than a check may have runs"),
        ({"widths": range(1, 10**9)}, "widths has more values than a check may have runs"),
        ({"seeds": 90_000}, "1 labels × 4 widths × 90000 seeds are 360000 runs, more than 100000"),
    ],
)
def test_what_nobody_could_mean_is_refused_at_once(options: dict[str, Any], match: str):
    with pytest.raises(CoordCheckError, match=match):
        check(mlp("µP"), **options)


def test_a_limit_of_time_is_held_by_processes_of_our_own():
    class Remote(Executor):
        def submit(self, *arguments: Any) -> Any: ...

    with pytest.raises(CoordCheckError, match=r"an executor's are its own. Pass jobs=N instead"):
        check(mlp("µP"), timeout=5, executor=Remote())


# ---- two writers

HOLD = """
import sys, time
from pathlib import Path
from coordcheck.runs.claims import Claims
Path(sys.argv[1]).mkdir(exist_ok=True)
with Claims(Path(sys.argv[1])).claimed({"net": {"batch": sys.argv[2], "steps": "1"}}):
    print("at work", flush=True)
    time.sleep(600 if sys.argv[3] == "long" else 1)
"""


def holder(folder: Path, batch: str, how: str = "long") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLD, str(folder), batch, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextmanager
def killed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A block at whose end the process does not go on, also when the test fails."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.fault(17)
@pytest.mark.fault(18)
def test_another_process_with_other_settings_is_refused_while_it_is_at_work(tmp_path: Path):
    mine = {"net": {"batch": "mine", "steps": "1"}}
    with holder(tmp_path, "theirs") as other, killed(other):
        assert other.stdout is not None
        assert other.stdout.readline() == b"at work\n"
        told = rf"is being written by process {other.pid} on .* other settings for 'net': batch was theirs, is mine"
        with pytest.raises(CoordCheckError, match=told), Claims(tmp_path).claimed(mine):
            raise AssertionError("not reached")
        with Claims(tmp_path).claimed({"net": {"batch": "theirs", "steps": "1"}, "more": {"batch": "mine"}}):
            pass  # the same settings, and another label
        other.kill()
        other.wait()
    with Claims(tmp_path).claimed(mine):  # a crash has released it
        assert len(list((tmp_path / ".writers").glob("*.json"))) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(17)
def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_the_lock(tmp_path: Path):
    """The last one to leave removes it: who waits for it must not be in the block beside who comes next."""
    first, waiting, inside = Claims(tmp_path), Event(), []
    with ThreadPoolExecutor(1) as pool:
        with first.locked():

            def second() -> None:
                waiting.set()
                with Claims(tmp_path).locked():
                    inside.append(bool(os.stat(tmp_path / ".writers/lock").st_nlink))

            done = pool.submit(second)
            waiting.wait(60)
            time.sleep(0.2)
            (tmp_path / ".writers/lock").unlink()
        done.result(60)
    assert inside == [True]


@pytest.mark.fault(17)
def test_of_two_that_start_at_once_in_a_new_folder_one_is_refused(tmp_path: Path):
    both = [holder(tmp_path / "runs", batch, "short") for batch in ("one", "other")]
    told = [process.communicate(timeout=60) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    refused = next(err for process, (_, err) in zip(both, told, strict=True) if process.returncode)
    assert b"with other settings for 'net'" in refused


@pytest.mark.fault(18)
def test_a_file_system_without_locks_is_told_once_and_used_all_the_same(tmp_path: Path, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    report = check(mlp("µP"), save_to=tmp_path)
    assert report.exit_code == 0
    (note,) = (note for note in report.notes if "has no locks" in note)
    assert note.endswith("into this folder (No locks available)")


def test_a_lock_that_nobody_gives_back_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("coordcheck.runs.claims.PATIENCE", 0.1)
    with Claims(tmp_path).locked(), pytest.raises(CoordCheckError, match=r"is locked for 0.1 s by another process"):
        check(mlp("µP"), save_to=tmp_path)


@pytest.mark.fault(20)
def test_a_run_that_another_process_has_made_stays_and_other_values_are_told(tmp_path: Path):
    folder = RunFolder(tmp_path)
    keeper, theirs = FolderKeeper(folder, Claims(tmp_path)), check(mlp("µP")).records[0]
    keeper.save(theirs)
    kept = folder.run_path(theirs.key).read_bytes()
    same = check(mlp("µP")).records[0]
    keeper.save(same)
    other = check(mlp("µP", lr=0.1)).records[0]
    keeper.save(other)
    keeper.save(RunRecord(theirs.key, outcome=Outcome.FAILED))
    assert folder.run_path(theirs.key).read_bytes() == kept
    assert same.notes == []
    (note,) = other.notes
    assert re.match(
        r"width 16, seed 0 was made by another process as well: values differ by up to .*deterministic", note
    )


@pytest.mark.fault(20)
def test_a_failed_or_damaged_file_is_replaced_by_a_finished_run(tmp_path: Path):
    folder, record = RunFolder(tmp_path), check(mlp("µP")).records[0]
    keeper, path = FolderKeeper(folder, Claims(tmp_path)), folder.run_path(record.key)
    keeper.save(RunRecord(record.key, outcome=Outcome.FAILED))
    keeper.save(record)
    assert folder.find(record.key) == record
    path.write_bytes(path.read_bytes()[:-9])
    keeper.save(record)
    assert folder.find(record.key) == record


@pytest.mark.fault(57)
def test_two_records_of_a_run_are_compared_value_by_value():
    one, same = (check(mlp("µP")).records[0] for _ in range(2))
    assert largest_difference(one, same).relative == 0
    assert str(largest_difference(one, same)) == f"all {len(one.rows) + 2} values are identical"
    same.rows[3] = same.rows[3]._replace(value=same.rows[3].value * 1.5)
    found = largest_difference(one, same)
    assert found.relative == pytest.approx(1 / 3)
    assert re.match(r"values differ by up to 0.33, relative, in \w+ of [\w.]+ at t=\d", str(found))
    same.rows[3] = same.rows[3]._replace(value=None, status=Status.NAN)
    assert "as one is no number" in str(largest_difference(one, same))


# ---- disks that are full


def full_disk(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path], bool]) -> list[Path]:
    """Writing to these paths fails with ENOSPC; what is returned lists every attempt."""
    tried: list[Path] = []
    rename = os.replace

    def replace(source: Any, target: Any) -> None:
        tried.append(Path(target))
        if fails(Path(target)):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return tried


@pytest.mark.fault(10)
def test_a_passing_check_whose_runs_could_not_be_saved_does_not_exit_0(script, tmp_path: Path, monkeypatch, capsys):
    script("build = good\n")
    assert main(["run", "users.py:build", *TINY]) == 0
    capsys.readouterr()
    tried = full_disk(monkeypatch, lambda path: path.name == "32-0.json")
    assert main(["run", "users.py:build", *TINY, "--save-to", "runs"]) == 3
    printed = capsys.readouterr().out
    assert "build: OK" in printed  # the table is there
    assert "1 of 3 runs could not be saved: cannot write" in " ".join(printed.split())
    assert [path.name for path in tried].count("32-0.json") == 2  # once more at the end
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["run", "users.py:build", *TINY, "--save-to", "runs"]) == 0
    assert "2 of 3 runs were found in the folder" in " ".join(capsys.readouterr().out.split())


@pytest.mark.fault(10)
def test_a_disk_with_room_again_at_the_end_is_no_fault(tmp_path: Path, monkeypatch):
    failures = iter([True])
    full_disk(monkeypatch, lambda path: path.name == "32-0.json" and next(failures, False))
    report = check(mlp("µP"), save_to=tmp_path)
    assert report.exit_code == 0
    assert len(list(tmp_path.rglob("*-0.json"))) == len(WIDTHS)


@pytest.mark.fault(10)
def test_what_could_not_be_saved_is_an_error_in_every_form(tmp_path: Path, monkeypatch, caplog):
    full_disk(monkeypatch, lambda path: path.name == "32-0.json")
    report = check(mlp("µP"), save_to=tmp_path)
    assert "1 of 4 runs could not be saved" in caplog.text  # a sweep of learning rates says it nowhere else
    with pytest.raises(IncompleteCheck, match="1 of 4 runs could not be saved"):
        report.raise_for_status()
    assert 'message="not saved"' in junit(report)
    assert "::warning title=coordcheck%3A net::net, width 32, seed 0 not saved: cannot write" in github(report)


@pytest.mark.fault(11)
@pytest.mark.parametrize(("target", "code"), [("users.py:build", 3), ("users.py:bad", 1)])
def test_a_figure_that_could_not_be_written_leaves_the_old_one_and_the_verdict(
    script, tmp_path: Path, monkeypatch, capsys, target: str, code: int
):
    script("build = good\nbad = mlp('SP', lr=0.1)\n")
    for name in ("check.svg", "check.html"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    full_disk(monkeypatch, lambda path: path.name == "check.svg")
    options = [*OPTIONS, "--widths", "16", "128", "512", "--figure", "check.svg", "--html", "check.html"]
    tolerance = ["--tolerance", "100"] if code == 3 else []
    assert main(["run", target, *options, *tolerance]) == code
    printed = capsys.readouterr()
    assert "check.svg was not written: cannot write check.svg: No space left on device" in printed.err
    assert "wrote check.html" in printed.out
    assert (tmp_path / "check.svg").read_text(encoding="utf-8") == "old"


@pytest.mark.fault(12)
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_run(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    built: list[int] = []

    def build(width: int) -> Any:
        built.append(width)
        return mlp("µP")(width)

    with pytest.raises(CoordCheckError, match=r"cannot write .* Give a folder that can be written"):
        check(build, save_to=tmp_path / "file" / "runs")
    assert built == []
    check(build, save_to=tmp_path / "new" / "runs")  # one that is missing is made


def test_a_report_that_could_not_be_printed_is_no_success(script, tmp_path: Path):
    script("build = good\n")
    check(mlp("µP"), save_to="kept")
    with open("/dev/full", "wb") as full:
        done = program("show", "kept", "--tolerance", "100", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 3
    assert b"the report could not be written: [Errno 28]" in done.stderr
    report = coordcheck.load("kept", tolerance=1e-6)
    command = f"{sys.executable} -m coordcheck show kept --tolerance 1e-6 | true; exit ${{PIPESTATUS[0]}}"
    early = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False)
    assert (early.returncode, early.stderr) == (report.exit_code, b"")  # a reader that has left changes no verdict
    assert report.exit_code != 0


@pytest.mark.fault(57)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_run_is_repeated_on_demand_and_told_to_differ_or_not(script, capsys, form: str):
    script(
        "build = good\nseen = []\n"
        "def drifting(width):\n    seen.append(width)\n    model, optimizer = good(width)\n"
        "    with torch.no_grad():\n        model.readout.weight.add_(1e-3 * len(seen))\n    return model, optimizer\n"
    )
    options = ["--verify-repeat", "--format", form]
    assert main(["run", "users.py:build", *TINY, *options]) == 0
    printed = capsys.readouterr()
    told = printed.out if form == "text" else printed.err
    assert re.search(r"repeated build, width 16, seed 0: all \d+ values are identical", told)
    assert main(["run", "users.py:drifting", *TINY, *options]) == 0
    printed = capsys.readouterr()
    told = printed.out if form == "text" else printed.err
    assert re.search(r"repeated drifting, width 16, seed 0: values differ by up to [\d.e-]+, relative, in", told)
    if form == "json":
        json.loads(printed.out)


@pytest.mark.fault(29)
def test_calls_that_are_made_at_some_widths_only_are_told_and_not_compared():
    class Unrolled(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.input, self.cell, self.readout = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)
            self.times = width // 32

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.input(x)
            for _ in range(self.times):
                x = self.cell(x)
            return self.readout(x)

    def build(width: int) -> Any:
        model = Unrolled(width)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3)

    report = check(build, widths=(32, 64, 128))
    verdicts = report.layers.set_index("layer")["verdict"]
    assert verdicts["cell#2"] == verdicts["cell#3"] == "not compared"
    assert any("seen only at 64, 128: cell#2" in note for note in report.notes)
