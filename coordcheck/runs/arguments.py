"""What a caller may hand in: every argument is looked at before any time is spent, and refused in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from difflib import get_close_matches
from typing import Any, NamedTuple

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.folds import Fold
from coordcheck.runs.names import same_label
from coordcheck.runs.numbers import finite, positive, whole_number
from coordcheck.runs.words import Role


def labelled(build: object) -> dict[str, Callable[[int], Any]]:
    """The factories by label: a mapping as it is, a single callable under its own name.

    Raises:
        CoordCheckError: nothing to check, labels that are no texts or not distinct, values that are not callable.
    """
    builds: dict[Any, Any] = dict(build) if isinstance(build, Mapping) else {getattr(build, "__name__", "model"): build}
    if not builds:
        raise CoordCheckError("there is nothing to check: build is an empty mapping.")
    seen: dict[str, str] = {}
    for label, function in builds.items():
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise CoordCheckError(f"labels must be printable texts, got {label!r}.")
        if not callable(function):
            raise CoordCheckError(f"build of {label!r} must be a function of the width, got {type(function).__name__}.")
        other = seen.setdefault(same_label(label), label)
        if other != label:
            raise CoordCheckError(f"labels {other!r} and {label!r} are the same after Unicode NFKC.")
    return builds


class Means(NamedTuple):
    """How runs are executed."""

    executor: Executor | None
    jobs: int
    timeout: float | None


def means(executor: Any, jobs: object, timeout: Any) -> Means:
    """How to execute runs: here, in processes of our own, or through the caller's executor.

    Raises:
        CoordCheckError: no executor of processes, no number of jobs or seconds, or an executor's runs with a limit of
            time, which only the owner of its processes could hold.
    """
    process_executor(executor)
    if timeout is not None and executor is not None:
        raise CoordCheckError("timeout= ends processes of our own; an executor's are its own. Pass jobs=N instead.")
    limit = None if timeout is None else positive("timeout", timeout)
    return Means(executor, whole_number("jobs", jobs, 1), limit)


PARAMETRIZATIONS = ("mup", "sp", "ntk", "mean-field")


def expectation(expect: object) -> dict[str, float] | str | None:
    """The name of a parametrization, or layer glob -> exponent.

    Raises:
        CoordCheckError: anything but a known name or a mapping of texts to finite numbers.
    """
    if expect is None:
        return None
    if isinstance(expect, str):
        name = same_label(expect).lower().replace("\u03bc", "mu")
        if name not in PARAMETRIZATIONS:
            raise CoordCheckError(
                f"expect must be one of {', '.join(PARAMETRIZATIONS)}, or map layer globs to exponents, got {expect!r}."
            )
        return name
    if not isinstance(expect, Mapping) or not all(isinstance(glob, str) for glob in expect):
        raise CoordCheckError(f'expect must map layer globs to exponents, such as {{"*.router": 0.5}}, got {expect!r}.')
    return {glob: finite(f"expect[{glob!r}]", exponent) for glob, exponent in expect.items()}


def role_overrides(roles: object) -> dict[str, str] | None:
    """Parameter glob -> role.

    Raises:
        CoordCheckError: anything but a mapping of texts to roles.
    """
    if roles is None:
        return None
    known = [role.value for role in Role if role not in (Role.ATTENTION, Role.FUNCTION)]
    if not isinstance(roles, Mapping) or not all(isinstance(g, str) and r in known for g, r in roles.items()):
        raise CoordCheckError(f"roles must map globs of parameter names to one of {', '.join(known)}, got {roles!r}.")
    return {glob: str(getattr(role, "value", role)) for glob, role in roles.items()}


def fold_names(fold: object) -> dict[str, str] | None:
    """Path of a container of repeated blocks -> how they become one layer.

    Raises:
        CoordCheckError: anything but a mapping of texts to "first", "last" or "mean".
    """
    if fold is None:
        return None
    known = [how.value for how in Fold]
    if not isinstance(fold, Mapping) or not all(isinstance(path, str) and how in known for path, how in fold.items()):
        raise CoordCheckError(
            f'fold must map paths of containers to {", ".join(known)}, such as {{"blocks": "last"}}, got {fold!r}.'
        )
    return {path: str(getattr(how, "value", how)) for path, how in fold.items()}


def optional_callable(name: str, value: object, what: str) -> None:
    """Refuse a value that is neither None nor callable.

    Raises:
        CoordCheckError: it is something else; `what` says what is accepted.
    """
    if value is not None and not callable(value):
        raise CoordCheckError(f"{name} must be {what}, got {value!r}.")


def loss_function(loss: object) -> None:
    """Refuse a loss that is neither None nor callable.

    Raises:
        CoordCheckError: it is something else.
    """
    optional_callable("loss", loss, "a function of (model, batch), or a criterion of torch.nn.functional or torch.nn")


def process_executor(executor: Any) -> None:
    """Refuse what is no executor, and executors whose runs would share, or copy, this process's torch.

    Raises:
        CoordCheckError: not an executor; one of threads (random state is global); one that forks (after a
            threaded torch operation a forked child deadlocks).
    """
    if executor is None:
        return
    # submitters of cluster jobs have submit as well, and give jobs that nothing waits for as for futures
    lacking = [name for name in ("submit", "map", "shutdown") if not callable(getattr(executor, name, None))]
    if lacking:
        raise CoordCheckError(
            f"executor must have submit, map and shutdown, and give futures (PEP 3148); {executor!r} has no "
            f"{' and no '.join(lacking)}. Pass jobs=N, or let each job of a cluster make a run of its own: a "
            "Recorder, or `coordcheck run` with one width and one seed and --save-to."
        )
    if isinstance(executor, ThreadPoolExecutor):
        raise CoordCheckError("executor runs threads, which share one random state. Use jobs=N or a pool of processes.")
    context = getattr(executor, "_mp_context", None) or getattr(executor, "_context", None)
    if context is not None and getattr(context, "get_start_method", str)() == "fork":
        raise CoordCheckError(
            "executor forks its workers, which deadlocks once torch has used threads. Use jobs=N, "
            "loky.ProcessPoolExecutor(), or ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))."
        )


def folder_path(name: str, value: object) -> None:
    """Refuse what cannot be a folder's path.

    Raises:
        CoordCheckError: not a text or path, or one with a NUL.
    """
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise CoordCheckError(f"{name} must be the path of a folder, got {value!r}.")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The known name nearest to one that is not known, as a question to append; empty when none is near.

    >>> suggestion("biuld", ["batch", "build"])
    " (did you mean 'build'?)"
    """
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
