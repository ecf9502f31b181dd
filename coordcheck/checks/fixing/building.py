"""A `build(width)` that gives the user's model with rules applied; picklable where the user's own is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coordcheck.checks.fixing.applying import apply_rules
from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.rules import RuleBook
from coordcheck.training.trials import Build, Trial


class FixedBuild:
    """The user's `build`, after which the rules are applied; further arguments are handed on.

    Args:
        build: gives `(model, optimizer)` or a `Trial`.
        book: the rules.
    """

    def __init__(self, build: Callable[..., Any], book: RuleBook) -> None:
        self.build, self.book = build, book
        self.__name__ = f"{getattr(build, '__name__', 'model')}, fixed"

    def __call__(self, width: int, *args: Any, **kwargs: Any) -> Any:
        made = self.build(width, *args, **kwargs)
        model, optimizer = model_and_optimizer(made, width)
        apply_rules(self.book, model, optimizer, width)
        return made


class AtRate:
    """`build(width, lr)` of a `build(width)`: its first group's learning rate becomes lr, and others go with it."""

    def __init__(self, build: Build) -> None:
        self.build = build

    def __call__(self, width: int, lr: float) -> Any:
        made = self.build(width)
        _, optimizer = model_and_optimizer(made, width)
        optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        first = optimizers[0].param_groups[0]["lr"]
        for group in (group for one in optimizers for group in one.param_groups):
            group["lr"] = group["lr"] * (lr / first)
        return made


def model_and_optimizer(made: Any, width: int) -> tuple[Any, Any]:
    """Both, of what a `build` gave.

    Raises:
        CoordCheckError: it gave something else.
    """
    if isinstance(made, Trial):
        return made.model, made.optimizer
    if isinstance(made, tuple) and len(made) == 2:
        return made
    raise CoordCheckError(
        f"build({width}) returned {type(made).__name__}; it must return (model, optimizer) or a Trial."
    )
