"""The main verb: `check`, and the form of it that raises."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, is_dataclass
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from coordcheck.errors import CoordCheckError, SweepInterrupted
from coordcheck.records import RunKey, RunRecord, same_label
from coordcheck.report import Criteria, Report
from coordcheck.runfiles import RunFolder, versions
from coordcheck.sweep import sweep, worker_threads
from coordcheck.training import Build, Run, as_loss, cached_batches
from coordcheck.verdicts import TOLERANCE, Expectation

WIDTHS = (64, 128, 256, 512)
SEEDS = 3
STEPS = 4


def check(
    build: Build | Mapping[str, Build],
    batch: Any = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    widths: Sequence[int] = WIDTHS,
    seeds: int | Sequence[int] = SEEDS,
    steps: int = STEPS,
    expect: Expectation | None = None,
    tolerance: float = TOLERANCE,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    save_to: str | PathLike[str] | None = None,
    axis: str = "width",
) -> Report:
    """Train `build(width)` at every width and seed for t = 0..steps, and judge how its scales depend on the width.

    Args:
        build: `build(width) -> (model, optimizer)` or a `Trial`; or several by label: {"SP": ..., "µP": ...}.
        batch: one fixed batch (a tensor, a mapping, or a tuple such as (x, y)), an iterable of batches (step t
            uses the t-th), or a function of the seed that gives either.
        loss: a function of (model, batch), a criterion of `torch.nn.functional` or `torch.nn` for pairs (x, y),
            or None for mapping batches whose model returns its own loss.
        widths: at least 3 distinct positive integers; a range of 8 or more times says most.
        seeds: how many, or which.
        steps: optimizer updates; t = 0 is initialisation.
        expect: layer glob -> exponent for layers that should scale with the width; all others: 0.
        tolerance: slopes within this of the expected exponent are that exponent.
        device: where to train; None leaves the model where `build` put it.
        executor: any PEP 3148 executor of processes; or `jobs` > 1 for a pool of our own.
        save_to: folder for run files; finished runs found there are not run again.
        axis: the name of what `widths` counts, for text and figures (depth, heads, ...).

    Returns:
        A `Report`: print it, `report.figure()`, `report.verdicts`, `report.raise_for_status()`.

    Raises:
        CoordCheckError: input that cannot be checked; the message says what is accepted.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with the report so far.
    """
    builds = _labelled(build)
    widths = distinct_widths(widths)
    seed_list = _seeds(seeds)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise CoordCheckError(f"steps must be a whole number of updates, 0 or more, got {steps!r}.")
    if jobs < 1:
        raise CoordCheckError(f"jobs must be 1 or more, got {jobs}.")
    batches = cached_batches(batch, steps)
    threads = worker_threads(executor, jobs)
    settings = {
        "steps": str(steps),
        "batch": fingerprint(batches),
        "loss": describe_callable(loss),
        "device": device or "as built",
        "threads": str(threads),
        "dtype": str(torch.get_default_dtype()),
        "torch": versions()["torch"],
    }
    runs = [
        Run(
            RunKey(label, width, seed),
            function,
            batches,
            as_loss(loss),
            steps,
            device,
            threads,
            {**settings, "build": describe_callable(function)},
        )
        for seed in seed_list
        for label, function in builds.items()
        for width in widths
    ]
    folder = None if save_to is None else RunFolder(save_to)
    criteria = Criteria(expect, tolerance, axis)
    try:
        if folder is not None:
            folder.save_experiment({**settings, "widths": widths, "seeds": seed_list, "labels": list(builds)})
        watch = _WidthWatch() if axis == "width" else None
        records = sweep(runs, executor=executor, jobs=jobs, folder=folder, watch=watch)
    except SweepInterrupted as stop:
        done: Any = stop.report
        raise SweepInterrupted(str(stop), Report(done, criteria) if done else None) from None
    if not any(record.finished for record in records):
        raise CoordCheckError(f"every run failed; the first one, {records[0].key}:\n{records[0].reason}")
    return Report(records, criteria)


def assert_width_invariant(build: Build | Mapping[str, Build], batch: Any = None, **options: Any) -> Report:
    """Check, and raise an AssertionError with the report's text when a layer's scale depends on the width.

    Takes the arguments of `check`; returns its report when it passes.

    Raises:
        NotWidthInvariant: (an AssertionError) a layer is violated.
        IncompleteCheck: runs are missing, or the evidence does not decide.
        CoordCheckError: input that cannot be checked.
    """
    report = check(build, batch, **options)
    report.raise_for_status()
    return report


class _WidthWatch:
    """Refuses a factory that ignores its width, as soon as two widths of one label have been built."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, list[tuple[str, tuple[int, ...]]]]] = {}

    def __call__(self, record: RunRecord) -> None:
        if not record.finished:
            return
        shapes = [(info.name, info.shape) for info in record.parameters]
        width, other = self._seen.setdefault(record.key.label, (record.key.width, shapes))
        if width != record.key.width and shapes == other:
            raise CoordCheckError(
                f"build of {record.key.label!r} made models with equal parameter shapes at widths {width} and "
                f"{record.key.width}: does the factory use its width argument? If another axis is checked, "
                'name it: axis="depth".'
            )


def _labelled(build: Build | Mapping[str, Build]) -> dict[str, Build]:
    builds = dict(build) if isinstance(build, Mapping) else {getattr(build, "__name__", "model"): build}
    if not builds:
        raise CoordCheckError("there is nothing to check: build is an empty mapping.")
    seen: dict[str, str] = {}
    for label, function in builds.items():
        if not isinstance(label, str) or not label.strip():
            raise CoordCheckError(f"labels must be texts, got {label!r}.")
        if not callable(function):
            raise CoordCheckError(f"build of {label!r} must be a function of the width, got {type(function).__name__}.")
        if same_label(label) in seen:
            raise CoordCheckError(f"labels {seen[same_label(label)]!r} and {label!r} are the same after Unicode NFKC.")
        seen[same_label(label)] = label
    return builds


def distinct_widths(widths: Iterable[Any]) -> list[int]:
    """The widths as sorted, distinct integers.

    Raises:
        CoordCheckError: none, or one that is not a positive integer.

    >>> distinct_widths([128, "64", 64])
    [64, 128]
    """
    found = set()
    for width in widths if isinstance(widths, Iterable) and not isinstance(widths, str) else [widths]:
        number = int(width) if isinstance(width, str) and width.strip().isdigit() else width
        if hasattr(number, "__index__") and not isinstance(number, bool) and int(number) > 0:
            found.add(int(number))
        else:
            raise CoordCheckError(f"widths must be positive integers, got {width!r}. Pass widths=(64, 128, 256, ...).")
    if not found:
        raise CoordCheckError("there are no widths. Pass widths=(64, 128, 256, ...).")
    return sorted(found)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not numbers or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in numbers):
        raise CoordCheckError(f"seeds must be how many (1 or more) or which (integers from 0), got {seeds!r}.")
    return numbers


def fingerprint(value: Any) -> str:
    """A short hash of a batch: equal data have equal fingerprints, on every machine.

    A function of the seed is described by its source, and objects of unknown types by their type alone.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            digest.update(repr(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, (tuple, list)):
        digest.update(f"{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    elif value is None or isinstance(value, (str, bytes, int, float)):
        digest.update(repr(value).encode())
    else:
        digest.update((describe_callable(value) if callable(value) else type(value).__qualname__).encode())


def describe_callable(function: Any) -> str:
    """A function in one line that changes when its source or the values bound to it do.

    What it calls is not followed: editing another module does not change the description.
    """
    if function is None:
        return "default"
    if isinstance(function, partial):
        bound = [*map(_describe_value, function.args)]
        bound += [f"{name}={_describe_value(value)}" for name, value in function.keywords.items()]
        return f"{describe_callable(function.func)}({', '.join(bound)})"
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        source = inspect.getsource(function if hasattr(function, "__qualname__") else type(function))
    except (OSError, TypeError):
        source = ""
    cells = [_describe_value(cell.cell_contents) for cell in getattr(function, "__closure__", None) or ()]
    state = f" [{', '.join(cells)}]" if cells else ""
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:12]}{state}"


def _describe_value(value: Any) -> str:
    """A bound value: its text when it has a stable one, else its fingerprint."""
    if callable(value):
        return describe_callable(value)
    text = repr(value)
    return text if len(text) < 500 and " at 0x" not in text else fingerprint(value)
