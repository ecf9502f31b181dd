"""The global state of the process: what a build sets is gone after its run, and each run starts from the same."""

from __future__ import annotations

import locale
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.modules.module as modules
import torch.optim.optimizer as optimizers
from conftest import pair_batch
from torch.overrides import TorchFunctionMode, _pop_mode

import coordcheck
from coordcheck import CoordCheckError
from coordcheck.models import mlp
from coordcheck.training.surroundings import (
    _other,
    _read,
    _write,
    numeric,
    numeric_state,
    preserved_state,
    state_settings,
)


class Mode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def hook(*_: Any) -> None: ...


def set_hooks() -> None:
    modules.register_module_forward_hook(hook, always_call=True)
    modules.register_module_forward_pre_hook(hook)
    modules.register_module_full_backward_hook(hook)


def set_optimizer_hook() -> None:
    optimizers.register_optimizer_step_pre_hook(hook)


def set_backends() -> None:
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]


def set_attention() -> None:
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.mha.set_fastpath_enabled(False)


def set_autocast() -> None:
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.set_autocast_cache_enabled(False)


def set_random_states() -> None:
    torch.manual_seed(17)
    np.random.seed(17)
    random.seed(17)


SETTERS: dict[str, Callable[[], object]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "uninitialised memory": lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "tf32 of cuDNN": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "reduced precision": lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    "backends": set_backends,
    "attention": set_attention,
    "autocast": set_autocast,
    "threads": lambda: torch.set_num_threads(2),
    "gradients": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: torch.inference_mode().__enter__(),
    "anomaly detection": lambda: torch.set_anomaly_enabled(True, False),
    "denormals": lambda: torch.set_flush_denormal(True),
    "checks of sparse tensors": torch.sparse.check_sparse_tensor_invariants.enable,
    "function mode": lambda: Mode().__enter__(),
    "module hooks": set_hooks,
    "optimizer hooks": set_optimizer_hook,
    "printing of torch": lambda: torch.set_printoptions(precision=2),
    "printing of numpy": lambda: np.set_printoptions(precision=2),
    "errors of numpy": lambda: np.seterr(all="raise"),
    "random states": set_random_states,
    "environment": lambda: os.environ.update(SET_BY_A_BUILD="1"),
    "environment, less": lambda: os.environ.pop("PATH"),
    "current folder": lambda: os.chdir("/"),
    "import path": lambda: sys.path.insert(0, "/set/by/a/build"),
    "warning filters": lambda: warnings.simplefilter("ignore"),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
    "recursion limit": lambda: sys.setrecursionlimit(4321),
    "start of processes": lambda: multiprocessing.set_start_method("spawn", force=True),
    "sharing of tensors": lambda: torch.multiprocessing.set_sharing_strategy("file_system"),
}


def everything() -> dict[str, Any]:
    """All global state, read without the help of what is tested wherever that is a word or two."""
    return {
        **_read(numeric()),
        **_read(_other()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "random of torch": torch.get_rng_state().tolist(),
        "random of numpy": [str(part) for part in np.random.get_state()],
        "random of Python": random.getstate(),
        "dtype": torch.ones(1).dtype,
        "device": torch.ones(1).device,
        "folder": os.getcwd(),
        "environment, itself": dict(os.environ),
        "path": [*sys.path],
        "hooks": len(modules._global_forward_hooks),
    }


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """A test that fails leaves nothing behind either."""
    numbers, other, threads = _read(numeric()), _read(_other()), torch.get_num_threads()
    yield
    _write(_other(), other)
    _write(numeric(), numbers)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.mark.fault(23)
@pytest.mark.parametrize("what", SETTERS)
def test_what_a_build_sets_is_as_it_was_after_its_run(what: str):
    before = everything()
    with preserved_state():
        SETTERS[what]()
    assert everything() == before


NOT_SEEN_WHEN_SET = {"gradients", "inference mode"}  # read through a guard below


@pytest.mark.parametrize("what", sorted(SETTERS.keys() - NOT_SEEN_WHEN_SET))
def test_each_of_these_would_be_seen_if_it_stayed(what: str):
    with preserved_state():
        before = everything()
        SETTERS[what]()
        after = everything()
    assert before != after


def set_everything_and_fail() -> None:
    for setter in SETTERS.values():
        setter()
    raise ZeroDivisionError


@pytest.mark.fault(23)
def test_it_is_as_it_was_after_a_run_that_fails_and_after_all_of_them_at_once():
    before = everything()
    with pytest.raises(ZeroDivisionError), preserved_state():
        set_everything_and_fail()
    assert everything() == before


def unusual(name: str) -> None:
    SETTERS[name]()


@pytest.mark.parametrize("name", ["tf32", "matmul precision", "attention", "backends", "environment", "module hooks"])
def test_an_unusual_state_is_found_again(name: str):
    unusual(name)
    before = everything()
    with preserved_state():
        _write(numeric(), {n: one.usual for n, one in numeric().items() if one.usual is not None})
        modules._global_forward_hooks.clear()
        os.environ.pop("SET_BY_A_BUILD", None)
    assert everything() == before


def test_a_default_device_that_was_set_to_none_is_no_device(monkeypatch: pytest.MonkeyPatch):
    """As torch 2.4 has it, where `get_default_device` then raises."""

    def raising() -> Any:
        raise AttributeError("'NoneType' object has no attribute 'device'")

    torch.set_default_device("cpu")
    torch.set_default_device(None)
    monkeypatch.setattr(torch, "get_default_device", raising)
    report = check(mlp("SP"))
    assert not report.missing
    assert torch._GLOBAL_DEVICE_CONTEXT.device_context is None


# ---- each run starts from the same state


def check(build: Any, **options: Any) -> coordcheck.Report:
    options = {"loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": 1, "steps": 1, "probe": None} | options
    return coordcheck.check({"net": build}, pair_batch(), **options)


def leaking(width: int) -> Any:
    """A build that starts from what it sees, and leaves something else behind."""
    seen = "LEAKED" in os.environ, np.geterr()["over"] == "raise", torch.get_float32_matmul_precision() == "high"
    os.environ["LEAKED"] = "1"
    np.seterr(over="raise")
    torch.set_float32_matmul_precision("high")
    return mlp("SP", lr=0.01 * (1 + sum(seen)))(width)


def test_the_order_and_the_number_of_runs_change_nothing():
    def losses(**options: Any) -> dict[int, Any]:
        return {record.key.width: record.losses for record in check(leaking, **options).records}

    one, other = losses(widths=(16, 32, 64)), losses(widths=(32, 64, 128))
    assert one[32] == other[32]
    assert one[64] == other[64]


def seen_state(width: int) -> Any:
    """A build whose learning rate tells the state that it was called in."""
    told = [torch.get_float32_matmul_precision() == "high", torch.is_autocast_enabled("cpu"), torch.ones(1).is_meta]
    told += [torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype() == torch.float64]
    return mlp("SP", lr=0.001 * (1 + sum(2**place * flag for place, flag in enumerate(told))))(width)


def test_another_process_starts_from_the_state_of_this_one():
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        here, there = check(seen_state), check(seen_state, executor=executor)
    rates = [{info.learning_rate for info in report.records[0].parameters} for report in (here, there)]
    assert rates == [{0.01}, {0.01}]
    assert [record.losses for record in here.records] == [record.losses for record in there.records]


# ---- it is part of the settings


def test_nothing_is_told_of_a_usual_state():
    assert state_settings() == {}


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("deterministic", {"deterministic algorithms": "(True, True)"}),
        (
            "attention",
            {"flash attention": "False", "attention by its formula": "False", "fast path of attention": "False"},
        ),
        ("autocast", {"autocast on cpu": "True", "autocast dtype on cpu": "torch.float16", "autocast cache": "False"}),
        ("denormals", {"flush denormal": "True"}),
    ],
)
def test_an_unusual_state_is_told_in_the_settings(what: str, told: dict[str, str]):
    with preserved_state():
        SETTERS[what]()
        found = state_settings()
    assert found == told


@pytest.mark.parametrize("what", ["matmul precision", "tf32", "autocast", "deterministic"])
def test_resuming_under_another_precision_is_refused(what: str, tmp_path: Path):
    check(mlp("SP"), save_to=tmp_path)
    with preserved_state():
        SETTERS[what]()
        with pytest.raises(CoordCheckError, match=r"was not set, is .*Give another folder"):
            check(mlp("SP"), save_to=tmp_path)


def test_a_state_can_be_sent_and_started_from():
    with preserved_state():
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        state = numeric_state()
    with preserved_state(state=state):
        assert torch.ones(1).dtype is torch.float64
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.ones(1).dtype is torch.float32


def test_a_build_that_changes_the_folder_does_not_move_the_run_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def moving(width: int) -> Any:
        os.chdir(elsewhere)
        return mlp("SP")(width)

    check(moving, save_to="runs")
    assert len(list((tmp_path / "runs").rglob("*-0.json"))) == 3
    assert list(elsewhere.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_keeping_the_state_costs_far_less_than_a_tiny_run():
    def cost(call: Callable[[], object], times: int) -> float:
        began = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - began) / times

    def kept() -> None:
        with preserved_state():
            pass

    kept()
    check(mlp("SP"))
    assert cost(kept, 20) < 0.2 * cost(lambda: check(mlp("SP")), 2) / 3


@pytest.mark.fault(23)
@pytest.mark.parametrize("popped", [False, True], ids=["as set", "its mode is gone"])
def test_a_default_device_that_a_build_leaves_is_taken_back(popped):
    """Torch 2.4 raises where the mode is gone, as it is when whatever a build left on the stack was dropped."""
    try:
        with preserved_state():
            torch.set_default_device("meta")
            if popped:
                _pop_mode()
        assert torch.zeros(1).device.type == "cpu"
        for device in ("meta", None, None):
            torch.set_default_device(device)
        assert torch.zeros(1).device.type == "cpu"
    finally:
        torch._GLOBAL_DEVICE_CONTEXT.device_context = None
