"""The verb `fix`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from torch import Tensor

from coordcheck.analysis.verdicts import TOLERANCE
from coordcheck.checks.check import DIAGNOSED_SEEDS, DIAGNOSED_WIDTHS, check, diagnose
from coordcheck.checks.fixing.building import FixedBuild
from coordcheck.checks.fixing.fix import AFTER, BEFORE, STEPS, Fix
from coordcheck.checks.fixing.loop import Diagnose, Found, search
from coordcheck.common.docstrings import as_for
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import user_code
from coordcheck.recording.batches import cached_batches
from coordcheck.reporting.report import Report
from coordcheck.runs.grids import distinct_widths, seed_numbers
from coordcheck.runs.numbers import whole_number
from coordcheck.runs.rules import DECAYS, RuleBook
from coordcheck.training.surroundings import preserved_state
from coordcheck.training.trials import Build

ROUNDS = 4
BASE_WIDTH = 64
FURTHER = 6  # seeds, where those of a diagnosis do not decide


@as_for(check)
def fix(
    build: Build,
    batch: Any = None,
    *,
    loss: Callable[..., Tensor] | None = None,
    base_width: int = BASE_WIDTH,
    widths: Sequence[int] = DIAGNOSED_WIDTHS,
    seeds: int | Sequence[int] = DIAGNOSED_SEEDS,
    rounds: int = ROUNDS,
    weight_decay: str = "keep",
    tolerance: float = TOLERANCE,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    timeout: float | None = None,
    probe: Any = "auto",
    roles: Mapping[str, str] | None = None,
) -> Fix:
    """Bring a model to µP from outside of its code: diagnose it, apply what the diagnosis asks for, diagnose it again.

    It ends when nothing is to blame, or nothing improves. Initial values are multiplied in place and learning rates by
    groups of the optimizer; only a multiplier of one use of a shared matrix, or of an attention, needs a hook.

    Args:
        build: `build(width) -> (model, optimizer)` or a `Trial`.
        batch: as for `check`.
        loss: as for `check`.
        base_width: the width at which nothing changes: where the learning rate was tuned.
        widths: at least 3 distinct positive integers, to diagnose at.
        seeds: how many, or which.
        rounds: times that rules are applied and the model is diagnosed again, at most.
        weight_decay: of parameters whose learning rate becomes another: "keep" it, or keep "constant" what AdamW pulls
            by, learning rate times weight decay.
        tolerance: exponents within this of the expected one are that exponent.
        device: as for `check`.
        executor: as for `check`.
        jobs: as for `check`.
        timeout: as for `check`.
        probe: the tiny batch of the diagnosis; "auto" takes it from `batch`.
        roles: as for `check`.

    Returns:
        A `Fix`: print it, `fix.apply(model, optimizer, width=4096)`, `fix.to_code()`, `fix.report.figure()`.

    Raises:
        CoordCheckError: input that cannot be checked, or a model that rules cannot be applied to.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with the report so far.
    """
    most, widths = whole_number("rounds", rounds, 1), distinct_widths(widths)
    plan = _plan(build, base_width, weight_decay, widths)
    how: dict[str, Any] = {
        **{"batch": cached_batches(batch, STEPS), "loss": loss, "widths": widths, "seeds": seeds},
        **{"tolerance": tolerance, "device": device, "executor": executor, "jobs": jobs},
        **{"timeout": timeout, "probe": probe, "roles": roles},
    }
    found = _searched(build, plan, how, most)
    book = RuleBook(*plan[:2], found.rules, _names(found.before), found.obstacles, found.unjudged)
    return Fix(book, before=found.before, after=found.after, build=build, how=how)


def _searched(build: Build, plan: RuleBook, how: dict[str, Any], rounds: int) -> Found:
    """What the loop ends with, of diagnoses, a few with more seeds, and, for biases, of checks before any training."""
    more = {**how, "seeds": _further(seed_numbers(how["seeds"]))}

    def under(verb: Callable[..., Report], how: dict[str, Any]) -> Diagnose:
        return lambda rules: _diagnosed(verb, build, plan._replace(rules=rules), how)

    start = {**more, "steps": 0}
    return search(under(diagnose, how), rounds, look=under(check, start), again=under(diagnose, more))


def _further(seeds: Sequence[int]) -> list[int]:
    """The seeds of a diagnosis first, and others, up to as many as decide what those leave open."""
    first = max(seeds) + 1
    return [*seeds, *range(first, first + FURTHER - len(seeds))]


def _diagnosed(verb: Callable[..., Report], build: Build, book: RuleBook, how: dict[str, Any]) -> Report:
    if not book.rules:
        return verb({BEFORE: build}, **how)
    fixed = FixedBuild(build, book)
    with preserved_state(), user_code("build"):  # what cannot be applied is told once, and not of every run
        fixed(min(how["widths"]))
    return verb({AFTER: fixed}, **how)


def _plan(build: Build, base_width: int, weight_decay: str, widths: Sequence[int]) -> RuleBook:
    """No rules so far; what cannot be fixed is refused before anything is trained."""
    if weight_decay not in DECAYS:
        raise CoordCheckError(f"weight_decay must be one of {', '.join(DECAYS)}, got {weight_decay!r}.")
    if not callable(build):
        raise CoordCheckError("build must be one function of the width: each model is fixed by itself.")
    base = whole_number("base_width", base_width, 1)
    _refuse_base(build, base, widths)
    return RuleBook(base, weight_decay, (), ())


def _refuse_base(build: Build, base: int, widths: Sequence[int]) -> None:
    """Make sure that the model exists at the base width, where it is not one of those that are built anyhow."""
    if base in widths:
        return
    try:
        with preserved_state(), user_code("build"):
            build(base)
    except Exception as error:
        raise CoordCheckError(
            f"there is no model of the base width: build({base}) raised {type(error).__name__}: {error}. Give the "
            f"width at which the learning rate was tuned; {', '.join(map(str, widths))} can be built."
        ) from error


def _names(report: Report) -> tuple[str, ...]:
    """Every parameter that the diagnosis saw."""
    names = (name for record in report.records for name in (*(use.parameter for use in record.uses), *_infos(record)))
    return tuple(dict.fromkeys(name for name in names if name))


def _infos(record: Any) -> list[str]:
    return [info.name for info in record.parameters]
