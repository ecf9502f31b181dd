"""Sweeps: the same numbers however they are run, resumed or interrupted; one bad run does not cost the others."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import loky
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import nn

import coordcheck
from coordcheck.common.errors import CoordCheckError, RunFileError, SweepInterrupted
from coordcheck.models import mlp
from coordcheck.runs.agreement import differences
from coordcheck.training.payloads import unpacked
from coordcheck.training.sweep import worker_threads
from coordcheck.training.workers import execute_pickled

WIDTHS = (16, 32, 64)

built: list[int] = []
"""The widths that `counted` was called with in this process."""


class Broken:
    """What `counted` raises, by width: a world outside, whose state is no setting, since it cannot be read."""

    def __init__(self) -> None:
        self.errors: dict[int, BaseException] = {}

    def __reduce_ex__(self, version: Any) -> Any:
        raise TypeError("the world cannot be pickled")


broken = Broken()


@pytest.fixture(autouse=True)
def _fresh_counts() -> Iterator[None]:
    built.clear()
    broken.errors.clear()
    yield
    broken.errors.clear()


def counted(width: int) -> Any:
    built.append(width)
    if width in broken.errors:
        raise broken.errors[width]
    return mlp("SP")(width)


def check(build: Any = counted, **options: Any) -> coordcheck.Report:
    """A tiny check: widths 16 to 64, one seed, two steps."""
    options = {"batch": pair_batch(), "loss": F.cross_entropy, "widths": WIDTHS, "seeds": 1, "steps": 2} | options
    if build is counted:
        options = {"probe": None} | options  # the diagnosis builds models of its own
    return coordcheck.check({"net": build}, **options)


def closure(rate: float) -> Callable[[int], Any]:
    """A build that no other process can import, and that draws more random numbers the wider it is."""

    def build(width: int) -> Any:
        torch.randn(width)
        return mlp("SP", lr=rate)(width)

    return build


def outcomes(report: coordcheck.Report) -> dict[int, str]:
    return {record.key.width: record.outcome.value for record in report.records}


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs").glob("*/*"))


def assert_same_rows(one: coordcheck.Report, other: coordcheck.Report) -> None:
    """Equal to the last bit, in whichever order the runs are listed."""
    keys = ["label", "seed", "width", "step", "order", "layer", "quantity"]
    frames = [report.measurements.sort_values(keys, ignore_index=True) for report in (one, other)]
    assert len(frames[0]) > 0
    pd.testing.assert_frame_equal(*frames, check_exact=True)


# ---- the same numbers


@pytest.fixture(scope="module")
def serial() -> coordcheck.Report:
    torch.set_num_threads(1)
    return check(closure(0.01), seeds=2)


def test_the_comparison_of_rows_can_fail(serial: coordcheck.Report):
    with pytest.raises(AssertionError):
        assert_same_rows(serial, check(closure(0.011), seeds=2))


def test_a_repeated_sweep_gives_the_same_rows(serial: coordcheck.Report):
    assert_same_rows(serial, check(closure(0.01), seeds=2))


@pytest.mark.thorough
def test_two_jobs_give_the_same_rows_from_a_closure(serial: coordcheck.Report):
    parallel = check(closure(0.01), seeds=2, jobs=2)
    pd.testing.assert_frame_equal(parallel.measurements, serial.measurements, check_exact=True)


def test_a_spawning_executor_gives_the_same_rows_from_a_closure(serial: coordcheck.Report):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        spawned = check(closure(0.01), seeds=2, executor=executor)
        assert executor.submit(abs, -1).result() == 1  # it is the caller's, and still open
    pd.testing.assert_frame_equal(spawned.measurements, serial.measurements, check_exact=True)


def test_a_resumed_sweep_gives_the_same_rows(serial: coordcheck.Report, tmp_path: Path):
    build = closure(0.01)
    check(build, seeds=1, widths=(16, 64), save_to=tmp_path)
    resumed = check(build, seeds=2, save_to=tmp_path)
    pd.testing.assert_frame_equal(resumed.measurements, serial.measurements, check_exact=True)
    assert_same_rows(coordcheck.load(tmp_path), serial)


def test_the_order_of_widths_and_seeds_changes_no_number(serial: coordcheck.Report):
    assert_same_rows(serial, check(closure(0.01), widths=(64, 16, 32, 16), seeds=[1, 0]))


@pytest.mark.parametrize(("widths", "seeds"), [((32,), [1]), ((16, 64), [0]), ((64,), [0, 1])])
def test_a_subset_of_widths_and_seeds_has_the_numbers_of_the_whole(serial: coordcheck.Report, widths, seeds):
    part = coordcheck.Report([r for r in serial.records if r.key.width in widths and r.key.seed in seeds])
    assert_same_rows(part, check(closure(0.01), widths=widths, seeds=seeds))


def test_another_label_beside_it_changes_no_number(serial: coordcheck.Report):
    options = {"loss": F.cross_entropy, "widths": WIDTHS, "seeds": 2, "steps": 2}
    both = coordcheck.check({"other": mlp("µP"), "net": closure(0.01)}, pair_batch(), **options)
    assert_same_rows(coordcheck.Report([r for r in both.records if r.key.label == "net"]), serial)


# ---- resuming


def test_resuming_trains_only_what_is_missing(tmp_path: Path):
    check(widths=(16, 64), save_to=tmp_path)
    assert built == [16, 64]
    check(seeds=2, save_to=tmp_path)
    assert built == [16, 64, 32, 16, 32, 64]
    check(seeds=2, save_to=tmp_path)
    assert len(built) == 6


def test_a_removed_run_file_is_run_again(tmp_path: Path):
    check(save_to=tmp_path)
    (tmp_path / "runs" / "net" / "32-0.json").unlink()
    check(save_to=tmp_path)
    assert built == [16, 32, 64, 32]


def test_without_a_folder_nothing_is_remembered():
    check()
    check()
    assert built == [16, 32, 64] * 2


def test_the_run_files_of_a_sweep_are_those_of_its_runs(tmp_path: Path):
    report = check(save_to=tmp_path)
    assert saved(tmp_path) == ["16-0.json", "32-0.json", "64-0.json"]
    assert list(coordcheck.load(tmp_path).records) == report.records


def test_a_damaged_run_file_ends_the_sweep_before_it_trains(tmp_path: Path):
    check(save_to=tmp_path)
    built.clear()
    path = tmp_path / "runs" / "net" / "64-0.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFileError, match="truncated") as refused:
        check(save_to=tmp_path)
    assert refused.value.exit_code == 4
    assert built == []


def other(width: int) -> Any:
    return mlp("µP")(width)


def valued(rate: float) -> Callable[[int], Any]:
    """A build whose learning rate is bound as a default value."""

    def build(width: int, rate: float = rate) -> Any:
        return mlp("SP", lr=rate)(width)

    return build


class Factory:
    """A build whose learning rate is bound to an object."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, width: int) -> Any:
        return mlp("SP", lr=self.rate)(width)

    def build(self, width: int) -> Any:
        return self(width)


def tensor_loss(weights: torch.Tensor) -> Callable[[nn.Module, Any], torch.Tensor]:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0]).flatten()[0] * weights).mean()

    return loss


def mean_output(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch.float()).mean()


middle = torch.zeros(2000).index_fill(0, torch.tensor(1000), 1.0)

CHANGED = {
    "steps": ({}, {"steps": 3}, "steps was 2, is 3"),
    "batch": ({}, {"batch": pair_batch(seed=1)}, "batch was"),
    "batch dtype": (
        {"batch": pair_batch()[0], "loss": mean_output},
        {"batch": pair_batch()[0].double(), "loss": mean_output},
        "batch was",
    ),
    "batch of a function": ({"batch": lambda seed: pair_batch(seed)}, {"batch": pair_batch}, "batch was"),
    "loss": ({}, {"loss": F.multi_margin_loss}, "loss was"),
    "loss options": (
        {"loss": nn.CrossEntropyLoss()},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.5)},
        "loss was",
    ),
    "loss tensor": ({"loss": tensor_loss(torch.zeros(2000))}, {"loss": tensor_loss(middle)}, "loss was"),
    "build source": ({}, {"build": other}, "build was"),
    "build closure": ({"build": closure(0.01)}, {"build": closure(0.02)}, "build was"),
    "build partial": ({"build": mlp("SP", lr=0.01)}, {"build": mlp("SP", lr=0.02)}, "build was"),
    "build default": ({"build": valued(0.01)}, {"build": valued(0.02)}, "build was"),
    "build object": ({"build": Factory(0.01)}, {"build": Factory(0.02)}, "build was"),
    "build method": ({"build": Factory(0.01).build}, {"build": Factory(0.02).build}, "build was"),
    "device": ({}, {"device": "cpu"}, "device was as built, is cpu"),
}


@pytest.mark.fault(19)
@pytest.mark.parametrize("what", CHANGED)
def test_resuming_with_another_setting_is_refused_with_what_differs(tmp_path: Path, what: str):
    before, after, match = CHANGED[what]
    check(**before, save_to=tmp_path)
    with pytest.raises(CoordCheckError, match=f"holds a run of net, width 16, seed 0 made with .*{match}") as refused:
        check(**after, save_to=tmp_path)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("what", CHANGED)
def test_resuming_with_the_same_setting_is_accepted(tmp_path: Path, what: str):
    before, _, _ = CHANGED[what]
    check(**before, widths=(16, 32), save_to=tmp_path)
    check(**before, save_to=tmp_path)
    assert saved(tmp_path) == ["16-0.json", "32-0.json", "64-0.json"]


@pytest.mark.parametrize(
    ("change", "restore", "match"),
    [
        (partial(torch.set_num_threads, 2), partial(torch.set_num_threads, 1), "threads was 1, is 2"),
        (
            partial(torch.set_default_dtype, torch.float64),
            partial(torch.set_default_dtype, torch.float32),
            r"dtype was torch\.float32, is torch\.float64",
        ),
    ],
    ids=["threads", "dtype"],
)
def test_resuming_under_another_global_setting_is_refused(tmp_path: Path, change: Any, restore: Any, match: str):
    check(save_to=tmp_path)
    change()
    try:
        with pytest.raises(CoordCheckError, match=match):
            check(save_to=tmp_path)
    finally:
        restore()


def test_everything_that_differs_is_listed(tmp_path: Path):
    check(save_to=tmp_path)
    with pytest.raises(
        CoordCheckError, match=r"batch was .*; steps was 2, is 1\. Is the batch random\? .* Give another folder"
    ):
        check(save_to=tmp_path, steps=1, batch=pair_batch(seed=3))


def test_a_refused_sweep_leaves_the_folder_as_it_was(tmp_path: Path):
    check(save_to=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(CoordCheckError, match="steps was 2, is 3"):
        check(save_to=tmp_path, steps=3)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_a_sweep_resumed_with_the_other_mu_sign_has_one_label(tmp_path: Path):
    options = {"loss": F.cross_entropy, "seeds": 1, "steps": 1, "save_to": tmp_path, "probe": None}
    coordcheck.check({"\u00b5P": counted}, pair_batch(), widths=(16, 32), **options)
    resumed = coordcheck.check({"\u03bcP": counted}, pair_batch(), widths=WIDTHS, **options)
    assert built == [16, 32, 64]
    assert resumed.labels == ["\u03bcP"]


def test_differences_name_what_is_missing_on_either_side():
    assert differences({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == [
        "a was 1, is not set",
        "c was not set, is 3",
    ]


# ---- failing runs


def fail_forward(width: int) -> Any:
    model, optimizer = mlp("SP")(width)
    if width == 32:
        model.register_forward_pre_hook(lambda module, inputs: (_ for _ in ()).throw(RuntimeError("forward at 32")))
    return model, optimizer


def fail_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    if next(model.parameters()).shape[0] == 32:
        raise KeyError("loss at 32")
    return F.cross_entropy(model(batch[0]), batch[1])


def fail_build(width: int) -> Any:
    return mlp("SP")(width) if width != 32 else 1 / 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"build": fail_build}, "ZeroDivisionError: division by zero"),
        ({"build": fail_forward}, "RuntimeError: forward at 32"),
        ({"loss": fail_loss}, "KeyError: 'loss at 32'"),
    ],
    ids=["build", "forward", "loss"],
)
def test_a_width_that_fails_is_recorded_and_the_others_finish(options: dict, reason: str, tmp_path: Path):
    report = check(**options, widths=(16, 32, 64, 128), save_to=tmp_path)
    assert outcomes(report) == {16: "finished", 32: "failed", 64: "finished", 128: "finished"}
    (failed,) = report.missing
    assert failed.reason.endswith(reason)
    assert f"net: 1 run failed (width 32): {reason}" in report.notes
    assert f"failed (width 32): {reason}" in str(report)
    assert saved(tmp_path) == ["128-0.json", "16-0.json", "32-0.json", "64-0.json"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory")],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_an_outcome_of_its_own(error: BaseException):
    broken.errors[32] = error
    assert outcomes(check()) == {16: "finished", 32: "out of memory", 64: "finished"}


@pytest.mark.fault(4)
def test_a_tensor_too_large_for_the_machine_is_out_of_memory():
    report = check(lambda width: mlp("SP")(width) if width < 64 else torch.empty(10**15))
    assert outcomes(report) == {16: "finished", 32: "finished", 64: "out of memory"}


@pytest.mark.parametrize(
    ("widths", "failing", "options", "code"),
    [
        ((16, 32, 64, 128), [], {"tolerance": 100.0}, 0),
        ((16, 32, 64, 128), [], {"expect": {"*": 9.0}}, 1),
        ((16, 32), [], {"tolerance": 100.0}, 2),
        ((16, 32, 64, 128), [32], {"tolerance": 100.0}, 3),
        ((16, 32, 64, 128), [32], {"expect": {"*": 9.0}}, 1),
        ((16, 32, 64), [32], {"tolerance": 100.0}, 3),
        ((16, 32, 64), [32], {"expect": {"*": 9.0}}, 3),
    ],
)
def test_the_exit_code_tells_violated_before_incomplete(widths, failing: list[int], options: dict, code: int):
    broken.errors.update({width: ValueError("no such width") for width in failing})
    assert check(widths=widths, **options).exit_code == code


def test_when_every_run_fails_the_first_reason_is_told():
    broken.errors.update({width: ValueError(f"no {width}") for width in WIDTHS})
    with pytest.raises(CoordCheckError, match=r"every run failed; the first one, net, width 16, seed 0:[^$]*no 16"):
        check()


def test_a_failed_run_is_tried_again_at_resume(tmp_path: Path):
    broken.errors[32] = RuntimeError("not yet")
    assert outcomes(check(save_to=tmp_path))[32] == "failed"
    broken.errors.clear()
    built.clear()
    assert outcomes(check(save_to=tmp_path)) == dict.fromkeys(WIDTHS, "finished")
    assert built == [32]


# ---- Ctrl-C


def test_an_interrupt_keeps_and_reports_what_is_finished_and_resumes(tmp_path: Path):
    broken.errors[64] = KeyboardInterrupt()
    with pytest.raises(SweepInterrupted, match=r"interrupted: 2 of 3 runs are done.*the same call resumes") as stop:
        check(save_to=tmp_path)
    assert isinstance(stop.value, KeyboardInterrupt)
    assert stop.value.exit_code == 130
    assert outcomes(stop.value.report) == {16: "finished", 32: "finished"}
    assert saved(tmp_path) == ["16-0.json", "32-0.json"]
    broken.errors.clear()
    built.clear()
    assert_same_rows(check(save_to=tmp_path), check())
    assert built == [64, 16, 32, 64]


def test_an_interrupt_of_the_first_run_has_no_report():
    broken.errors[16] = KeyboardInterrupt()
    with pytest.raises(SweepInterrupted, match=r"interrupted: 0 of 3 runs are done\.$") as stop:
        check()
    assert stop.value.report is None


def test_an_interrupt_leaves_no_hook_on_the_model():
    model, optimizer = mlp("SP")(32)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(model.parameters()).shape[0] == 32:
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(SweepInterrupted):
        check(lambda width: (model, optimizer) if width == 32 else mlp("SP")(width), loss=loss)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- executors


class Inline(Executor):
    """The smallest PEP 3148 executor: it runs at once, in this process; `lose` says which worker is lost, and how."""

    def __init__(self, lose: Callable[[int], BaseException | None] = lambda width: None) -> None:
        self.widths: list[int] = []
        self.lose = lose

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        assert function is execute_pickled
        (payload,) = arguments
        self.widths.append(unpacked(payload)[0].key.width)
        future: Future[Any] = Future()
        lost = self.lose(self.widths[-1])
        if lost is None:
            future.set_result(function(payload))
        else:
            future.set_exception(lost)
        return future


class Refusing(Inline):
    """An executor that is found broken when the run of width 16 is submitted."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        if len(self.widths) == 2:
            raise BrokenExecutor("the pool is gone")
        return super().submit(function, *arguments, **options)


def test_any_executor_gives_the_same_rows_widest_run_first(serial: coordcheck.Report):
    executor = Inline()
    assert_same_rows(check(closure(0.01), seeds=2, executor=executor), serial)
    assert executor.widths == [64, 64, 32, 32, 16, 16]


def test_a_worker_that_is_lost_costs_its_own_run_only(tmp_path: Path):
    executor = Inline(lambda width: ConnectionError("node 7 went away") if width == 32 else None)
    report = check(executor=executor, save_to=tmp_path)
    assert outcomes(report) == {16: "finished", 32: "crashed", 64: "finished"}
    assert report.missing[0].reason == "the executor failed: ConnectionError: node 7 went away"
    assert saved(tmp_path) == ["16-0.json", "32-0.json", "64-0.json"]
    assert report.exit_code == 3


def test_a_pool_that_refuses_more_work_costs_the_runs_it_refused():
    assert outcomes(check(executor=Refusing())) == {16: "crashed", 32: "finished", 64: "finished"}


def test_an_interrupt_while_waiting_for_workers_keeps_the_finished_runs():
    executor = Inline(lambda width: KeyboardInterrupt() if width == 16 else None)
    with pytest.raises(SweepInterrupted) as stop:
        check(executor=executor)
    finished = outcomes(stop.value.report) if stop.value.report else {}
    assert str(stop.value) == f"interrupted: {len(finished)} of 3 runs are done."
    assert finished.items() <= {32: "finished", 64: "finished"}.items()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")),
        lambda: loky.ProcessPoolExecutor(1, context=loky.backend.get_context("fork")),
    ],
    ids=["multiprocessing", "loky"],
)
@pytest.mark.filterwarnings("ignore:`fork` start method should not be used with `loky`:UserWarning")
def test_an_executor_that_forks_is_refused(make: Callable[[], Executor]):
    with make() as executor, pytest.raises(CoordCheckError, match=r"forks its workers.*Use jobs=N") as refused:
        check(executor=executor)
    assert refused.value.exit_code == 2


def test_an_executor_of_threads_is_refused_because_they_share_one_random_state():
    with ThreadPoolExecutor(2) as executor, pytest.raises(CoordCheckError, match="thread"):
        check(executor=executor)


@pytest.mark.parametrize(("jobs", "threads"), [(1, 4), (2, 2), (3, 1), (100, 1)])
def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch, jobs: int, threads: int):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert worker_threads(None, jobs) == threads


# ---- workers that die


def deadly(marks: str) -> Callable[[int], Any]:
    """A build that ends its process at width 16, while the run of width 32 is under way beside it."""

    def build(width: int) -> Any:
        mark = os.path.join(marks, "started")
        if width == 32 and not os.path.exists(mark):
            open(mark, "w").close()
            time.sleep(1)
        if width == 16:
            while not os.path.exists(mark):
                time.sleep(0.01)
            os._exit(13)
        return mlp("SP")(width)

    return build


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def crashed(marks: Path) -> coordcheck.Report:
    torch.set_num_threads(1)
    return check(deadly(str(marks)), jobs=2, save_to=marks / "folder")


def test_a_worker_that_dies_is_a_crashed_run_and_its_neighbour_goes_on(crashed: coordcheck.Report):
    assert outcomes(crashed) == {16: "crashed", 32: "finished", 64: "finished"}
    assert "the worker process ended: TerminatedWorkerError" in crashed.missing[0].reason
    assert crashed.exit_code == 3


def test_what_finished_beside_a_crash_is_saved(crashed: coordcheck.Report, marks: Path):
    assert saved(marks / "folder") == ["16-0.json", "32-0.json", "64-0.json"]
    assert coordcheck.load(marks / "folder").exit_code == crashed.exit_code


def test_resuming_a_crashed_run_alone_does_not_run_it_in_this_process(
    crashed: coordcheck.Report, marks: Path, monkeypatch: pytest.MonkeyPatch
):
    def exit_here(code: int) -> None:
        raise RuntimeError(f"this process would have ended with {code}")

    monkeypatch.setattr(os, "_exit", exit_here)
    assert outcomes(check(deadly(str(marks)), jobs=2, save_to=marks / "folder"))[16] == "crashed"


def test_an_interrupted_folder_is_incomplete_and_says_what_is_missing(tmp_path):
    built = []

    def build(width):
        built.append(width)
        if len(built) > 7:
            raise KeyboardInterrupt
        return mlp("µP")(width)

    options = {"loss": F.cross_entropy, "widths": (16, 32, 64), "steps": 1, "probe": None, "save_to": tmp_path}
    with pytest.raises(SweepInterrupted):
        coordcheck.check(build, pair_batch(), **options)
    report = coordcheck.load(tmp_path)
    assert len(report.missing) == 2
    assert report.exit_code in (1, 3)
    assert any("2 runs not run (width 32, 64)" in note for note in report.notes)
    built.clear()
    again = coordcheck.check(build, pair_batch(), **options)
    assert any("7 of 9 runs were found in the folder, and not run again" in note for note in again.notes)
    assert not coordcheck.load(tmp_path).missing
    assert not any("found in the folder" in note for note in coordcheck.load(tmp_path).notes)


def test_a_check_that_is_refused_leaves_the_folders_plan_as_it_is(tmp_path):
    options = {"loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": 1, "probe": None, "save_to": tmp_path}
    coordcheck.check(mlp("µP"), pair_batch(), steps=1, **options)
    before = (tmp_path / "experiment.json").read_bytes()
    with pytest.raises(CoordCheckError, match="steps was 1, is 2"):
        coordcheck.check(mlp("µP"), pair_batch(), steps=2, **options)
    assert (tmp_path / "experiment.json").read_bytes() == before


# ---- values that code reads, and found runs

scales = {"lr": 0.01}


def configured(width: int) -> Any:
    return mlp("SP", lr=scales["lr"])(width)


def configured_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return scales["lr"] * F.cross_entropy(model(batch[0]), batch[1])


def configured_batch(seed: int) -> Any:
    x, y = pair_batch(seed)
    return scales["lr"] * x, y


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    "options",
    [{"build": configured}, {"loss": configured_loss}, {"batch": configured_batch}],
    ids=lambda options: next(iter(options)),
)
def test_a_value_that_users_code_reads_is_told_when_it_changed(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    check(**options, save_to=tmp_path)
    assert all(record.found for record in check(**options, save_to=tmp_path).records)
    monkeypatch.setitem(scales, "lr", 0.02)
    expected = r"reads test_sweep.scales was dict \w+, is dict \w+\. Give another folder"
    with pytest.raises(CoordCheckError, match=expected):
        check(**options, save_to=tmp_path)


def test_runs_that_were_found_tell_what_could_not_be_compared(tmp_path: Path):
    fresh = check(save_to=tmp_path)
    assert not any("could not be compared" in note for note in fresh.notes)
    told = "they may be out of date: these could not be compared: test_sweep.broken (Broken tells nothing of its state"
    assert any(note.startswith(told) for note in check(save_to=tmp_path).notes)


def test_a_folder_of_an_earlier_version_is_refused_with_the_reason(tmp_path: Path):
    report = check(save_to=tmp_path)
    for record in report.records:
        record.settings = {
            k: v for k, v in record.settings.items() if not k.startswith(("fingerprints", "reads", "not"))
        }
    report.save(tmp_path)
    assert coordcheck.load(tmp_path).exit_code == report.exit_code
    expected = r"fingerprints was not set, is 2; .* Another version of coordcheck wrote it, and noted less, or more"
    with pytest.raises(CoordCheckError, match=expected):
        check(save_to=tmp_path)
