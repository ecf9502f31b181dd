"""Global state that a user's build can set, and that would change later runs: what it is, saved and put back.

Each run starts from the state in which the check was called, in this process and in others, so that neither the order
of runs nor the process that one gets changes a number. Monkeypatches and imported modules stay: a module that is
imported once, by the first run, must be there for the second.
"""

from __future__ import annotations

import locale
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.modules.module as modules
import torch.optim.optimizer as optimizers
from torch.overrides import _get_current_function_mode_stack, _pop_mode

from coordcheck.recording.hooks.randomness import kept_randomness


class Global(NamedTuple):
    """One piece of global state."""

    read: Callable[[], Any]
    """A copy of it, which can be compared and, where it changes numbers, be pickled."""
    write: Callable[[Any], object]
    usual: Any = None
    """What it is when nobody set it; only another value is told in a run's settings."""
    numbers: bool = True
    """Whether it changes a run's numbers, and so belongs to its settings and goes along to other processes."""


def _attribute(path: str, usual: Any) -> Global:
    """A property of a module of torch."""

    def parent() -> Any:
        found: Any = torch
        for name in places:
            found = getattr(found, name)
        return found

    def write(value: Any) -> None:
        if hasattr(parent(), last):  # of an older torch: a name that nothing reads must not be made
            setattr(parent(), last, value)

    *places, last = path.split(".")
    return Global(lambda: getattr(parent(), last), write, usual)


def _autocast(device: str) -> dict[str, Global]:
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    return {
        f"autocast on {device}": Global(
            partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device), False
        ),
        f"autocast dtype on {device}": Global(
            partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device), dtype
        ),
    }


_ATTRIBUTES = {  # as torch 2.4 and later set them; those that a version does not have are left out
    "backends.cuda.matmul.allow_tf32": False,
    "backends.cudnn.allow_tf32": True,
    "backends.fp32_precision": "none",
    "backends.cuda.matmul.fp32_precision": "none",
    "backends.cudnn.fp32_precision": "none",
    "backends.cudnn.conv.fp32_precision": "tf32",
    "backends.cudnn.rnn.fp32_precision": "tf32",
    "backends.mkldnn.fp32_precision": "none",
    "backends.mkldnn.matmul.fp32_precision": "none",
    "backends.mkldnn.conv.fp32_precision": "none",
    "backends.mkldnn.rnn.fp32_precision": "none",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction": True,
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction": True,
    "backends.cuda.matmul.allow_fp16_accumulation": False,
    "backends.cudnn.enabled": True,
    "backends.cudnn.benchmark": False,
    "backends.cudnn.deterministic": False,
    "backends.mkldnn.enabled": True,
    "backends.mkldnn.deterministic": False,
    "backends.opt_einsum.enabled": None,  # whether the package is installed
    "backends.opt_einsum.strategy": None,
    "utils.deterministic.fill_uninitialized_memory": True,
}


@lru_cache(maxsize=1)
def numeric() -> dict[str, Global]:
    """The state that changes numbers, by its name in a run's settings."""
    sdp = torch.backends.cuda
    return {
        "default dtype": Global(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        "default device": Global(_default_device, _set_default_device),
        "deterministic algorithms": Global(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
            (False, False),
        ),
        "float32 matmul precision": Global(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
        ),
        **{path: _attribute(path, usual) for path, usual in _ATTRIBUTES.items()},
        **_autocast("cpu"),
        **_autocast("cuda"),
        "autocast cache": Global(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, True),
        "flash attention": Global(sdp.flash_sdp_enabled, sdp.enable_flash_sdp, True),
        "memory-efficient attention": Global(sdp.mem_efficient_sdp_enabled, sdp.enable_mem_efficient_sdp, True),
        "attention by its formula": Global(sdp.math_sdp_enabled, sdp.enable_math_sdp, True),
        "attention of cuDNN": Global(
            sdp.cudnn_sdp_enabled, sdp.enable_cudnn_sdp, not torch.__version__.startswith("2.4.")
        ),
        "fast path of attention": Global(
            torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, True
        ),
        "flush denormal": Global(lambda: sys.float_info.min * 0.5 == 0, torch.set_flush_denormal, False),
        "numpy's errors": Global(np.geterr, lambda value: np.seterr(**value), _NUMPY_ERRORS),
    }


_NUMPY_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


@lru_cache(maxsize=1)
def _other() -> dict[str, Global]:
    """State that leads a later run elsewhere, or makes it fail, without being a setting of its numbers."""
    sparse: Any = torch.sparse.check_sparse_tensor_invariants
    found = {
        "function modes": Global(lambda: len(_get_current_function_mode_stack()), _drop_function_modes),
        "anomaly detection": Global(
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.set_anomaly_enabled(*value),
        ),
        "checks of sparse tensors": Global(
            sparse.is_enabled,
            lambda value: (sparse.enable if value else sparse.disable)(),
        ),
        "sharing of tensors": Global(
            torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy
        ),
        "start of processes": Global(
            partial(multiprocessing.get_start_method, allow_none=True),
            partial(multiprocessing.set_start_method, force=True),
        ),
        "how torch prints": Global(lambda: replace(torch._tensor_str.PRINT_OPTS), _write_print_options),
        "how numpy prints": Global(np.get_printoptions, lambda value: np.set_printoptions(**value)),
        "current folder": Global(_current_folder, os.chdir),
        "environment": Global(lambda: dict(os.environ), _write_environment),
        "import path": Global(lambda: [*sys.path], lambda value: sys.path.__setitem__(slice(None), value)),
        "warning filters": Global(lambda: [*warnings.filters], _write_filters),
        "locale": Global(partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
        "recursion limit": Global(sys.getrecursionlimit, sys.setrecursionlimit),
    }
    for module in (modules, optimizers):
        for name, hooks in vars(module).items():
            if name.startswith("_global_") and isinstance(hooks, dict):
                found[name] = Global(hooks.copy, partial(_refill, hooks))
    return {name: one._replace(numbers=False) for name, one in found.items()}


def numeric_state() -> dict[str, Any]:
    """The state of this process that changes numbers, as `preserved_state` takes it in another."""
    return _read(numeric())


def state_settings() -> dict[str, str]:
    """What of it is not as torch and numpy set it, as settings of a run."""
    return {
        name: str(value)
        for name, value in numeric_state().items()
        if name not in _TOLD_ELSEWHERE and value != numeric()[name].usual and (name, value) not in _THE_SAME
    }


_TOLD_ELSEWHERE = ("default dtype", "backends.opt_einsum.enabled")
_THE_SAME = [(f"backends.{which}.matmul.fp32_precision", "ieee") for which in ("cuda", "mkldnn")]  # as "none" is


@contextmanager
def preserved_state(threads: int | None = None, state: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Leave the global state as it was found, random states included; gradients are on inside.

    Args:
        threads: how many threads torch uses inside; None leaves them.
        state: the `numeric_state` to start from; None leaves it as found.
    """
    found, found_other, found_threads = _read(numeric()), _read(_other()), torch.get_num_threads()
    with kept_randomness(), torch.inference_mode(False), torch.enable_grad():
        try:
            _write(numeric(), state or {})
            if threads is not None and threads != found_threads:
                torch.set_num_threads(threads)
            yield
        finally:
            _write(_other(), found_other)
            _write(numeric(), found)
            torch.set_num_threads(found_threads)


def _read(what: Mapping[str, Global]) -> dict[str, Any]:
    found = {}
    for name, one in what.items():
        with suppress(Exception):  # a version of torch that does not have it, or refuses a mix of old and new ways
            found[name] = one.read()
    return found


def _write(what: Mapping[str, Global], wanted: Mapping[str, Any]) -> None:
    """Set what is not as wanted; reading it is cheap, and setting it need not be.

    Some of torch's names set others along: in the order of the table, old names before new and general before special
    ones, twice.
    """
    for _ in range(2 if wanted else 0):
        found = _read(what)
        if all(name in found and found[name] == value for name, value in wanted.items()):
            return
        for name, value in wanted.items():
            if _read({name: what[name]}) != {name: value}:
                with suppress(Exception):  # the platform's own refusal must not cost the run
                    what[name].write(value)


def _default_device() -> str | None:
    """The device that was set, by its name; None where none is, which another process, or CPU, may differ in."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else str(context.device)


def _set_default_device(device: str | None) -> None:
    """`torch.set_default_device`, also where the mode that is the present one's is no longer among the modes."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    if context is not None and all(mode is not context for mode in _get_current_function_mode_stack()):
        torch._GLOBAL_DEVICE_CONTEXT.device_context = None  # torch 2.4 would leave it once more, and raise
        torch.utils._device.CURRENT_DEVICE = None
    torch.set_default_device(device)


def _drop_function_modes(count: int) -> None:
    while len(_get_current_function_mode_stack()) > count:
        _pop_mode()


def _write_print_options(options: Any) -> None:
    vars(torch._tensor_str.PRINT_OPTS).update(vars(options))


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _write_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _write_filters(filters: list[Any]) -> None:
    warnings.simplefilter("ignore", append=True)  # so that Python forgets what it has shown under other filters
    warnings.filters[:] = filters  # type: ignore[index]  # a list, though it is declared a sequence


def _refill(hooks: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    hooks.clear()
    hooks.update(wanted)
