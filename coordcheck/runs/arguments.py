"""What a caller may hand in: every argument is looked at before any time is spent, and refused in words."""

from __future__ import annotations

import logging
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.folds import Fold
from coordcheck.runs.names import same_label
from coordcheck.runs.reading import LARGEST, WIDEST
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


def distinct_widths(widths: object) -> list[int]:
    """The widths as sorted, distinct integers.

    Raises:
        CoordCheckError: none, or one that is not a positive integer.

    >>> distinct_widths([128, "64", 64])
    [64, 128]
    """
    found: list[int] = []
    for width in (
        _bounded("widths", widths) if isinstance(widths, Iterable) and not isinstance(widths, str) else [widths]
    ):
        number = _integer(
            int(width) if isinstance(width, str) and width.strip().isdecimal() and len(width) < 20 else width
        )
        if number is None or not 1 <= number <= WIDEST:
            raise CoordCheckError(f"widths must be positive integers, got {width!r}. Pass widths=(64, 128, 256, ...).")
        found.append(number)
    if not found:
        raise CoordCheckError("there are no widths. Pass widths=(64, 128, 256, ...).")
    twice = sorted({width for width in found if found.count(width) > 1})
    if twice:
        logging.getLogger("coordcheck").warning("widths given twice are checked once: %s", ", ".join(map(str, twice)))
    return sorted(set(found))


def words_of(texts: str | Iterable[str]) -> list[str]:
    """The words of a list as one types it, with commas, blanks or both: `64,128`, `64 128`, `"64, 128"`.

    >>> words_of(["64,128", "256 , 512"])
    ['64', '128', '256', '512']
    """
    given = [texts] if isinstance(texts, str) else texts
    return [word for text in given for word in re.split(r"[\s,]+", text) if word]


def seeds_of(texts: str | Iterable[str]) -> int | list[int]:
    """Seeds as one types them: `3` is how many; `0,3` and `0 3` are which, and so is `0,`.

    Raises:
        CoordCheckError: a word that is no integer, or no seeds.

    >>> seeds_of("3"), seeds_of(["0", "3"]), seeds_of("0,")
    (3, [0, 3], [0])
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    words = words_of(given)
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        raise CoordCheckError(f"seeds must be {SEEDS_ARE}, got {' '.join(given)!r}.") from None
    chosen = numbers[0] if len(numbers) == 1 and not any("," in text for text in given) else numbers
    seed_numbers(chosen)
    return chosen


SEEDS_ARE = "how many (1 or more, such as 3) or which (integers from 0, such as (0, 3) or (0,))"


def seed_numbers(seeds: object) -> list[int]:
    """Which seeds to run: 0, 1, ... for a count, or those given.

    Raises:
        CoordCheckError: a count below 1, no seeds, or one that is not an integer from 0.
    """
    count = _integer(seeds)
    if count is not None and count > MOST_RUNS:
        raise CoordCheckError(f"seeds={count} is more than a check may have runs ({MOST_RUNS}). Pass seeds=3, say.")
    numbers = list(range(count)) if count is not None else None
    if numbers is None and isinstance(seeds, Iterable) and not isinstance(seeds, str):
        given = [_integer(seed) for seed in _bounded("seeds", seeds)]
        if all(seed is not None and 0 <= seed <= LARGEST for seed in given):
            numbers = [seed for seed in dict.fromkeys(given) if seed is not None]
    if not numbers:
        raise CoordCheckError(f"seeds must be {SEEDS_ARE}, got {seeds!r}.")
    return numbers


MOST_RUNS = 100_000  # of one check; what is typed by mistake must not fill the memory before anything is said
MOST = {"steps": 1_000_000, "jobs": 1024, "width": WIDEST, "seed": LARGEST}


def _bounded(name: str, values: Iterable[Any]) -> list[Any]:
    """The values of an iterable, which may be endless."""
    found = list(islice(values, MOST_RUNS + 1))
    if len(found) > MOST_RUNS:
        raise CoordCheckError(f"{name} has more values than a check may have runs ({MOST_RUNS}). Give fewer.")
    return found


def bounded_grid(**counts: int) -> None:
    """Refuse a grid with more runs than anybody could mean.

    Raises:
        CoordCheckError: the product of the counts is above `MOST_RUNS`.

    >>> bounded_grid(labels=2, widths=4, seeds=3)
    """
    if math.prod(counts.values()) > MOST_RUNS:
        told = " × ".join(f"{count} {name}" for name, count in counts.items())
        raise CoordCheckError(f"{told} are {math.prod(counts.values())} runs, more than {MOST_RUNS}. Give fewer.")


def whole_number(name: str, value: object, minimum: int) -> int:
    """An integer argument.

    Raises:
        CoordCheckError: anything else, one below `minimum`, or one that is absurdly large.
    """
    number, most = _integer(value), MOST.get(name)
    if number is None or number < minimum:
        raise CoordCheckError(f"{name} must be an integer of {minimum} or more, got {value!r}.")
    if most is not None and number > most:
        raise CoordCheckError(f"{name} must be an integer from {minimum} to {most}, got {value!r}.")
    return number


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


def _integer(value: Any) -> int | None:
    """The integer that `value` is, of whichever library; None for anything else, booleans included."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def finite(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        CoordCheckError: anything else.
    """
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise CoordCheckError(f"{name} must be a finite number, got {value!r:.60}.")
    return number


def positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        CoordCheckError: anything else.
    """
    if finite(name, value) <= 0:
        raise CoordCheckError(f"{name} must be above 0, got {value!r}.")
    return float(value)


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
