"""`fix`: from a model in some parametrization to the same model in µP, diagnosed before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

import pandas as pd
from torch import nn

from coordcheck.analysis.verdicts import Verdict
from coordcheck.checks.check import check
from coordcheck.checks.fixing.applying import apply_rules
from coordcheck.checks.fixing.building import AtRate, FixedBuild
from coordcheck.checks.fixing.code import code_of
from coordcheck.checks.transfer import Transfer, transfer_sweep
from coordcheck.common.errors import CoordCheckError, IncompleteCheck
from coordcheck.common.escaping import json_text
from coordcheck.common.version import __version__
from coordcheck.reporting.fixes import frame, plain, render
from coordcheck.reporting.report import Report
from coordcheck.runs.rules import RuleBook, load_rules, save_rules
from coordcheck.training.trials import Build

BEFORE, AFTER = "before", "after"
SCHEMA = 1
STEPS = 4  # of the check that a figure is drawn from


class Fix:
    """What `fix` found: print it, apply it, save it, check it. `Fix.load` reads the rules of a saved one.

    Attributes:
        before: the diagnosis of the model as it is; None of a fix that was loaded.
        after: that of the model with the rules applied.
        base_width: the width at which nothing is changed: where the learning rate was tuned.
        obstacles: what no rule mends, each with what stands in the way.
        unjudged: the parameters that no measurement decides, which stay as they are, each with the reason.
    """

    def __init__(
        self,
        book: RuleBook,
        *,
        before: Report | None = None,
        after: Report | None = None,
        build: Build | None = None,
        how: dict[str, Any] | None = None,
    ) -> None:
        self._book, self._build, self._how = book, build, how or {}
        self.before, self.after = before, after

    @property
    def base_width(self) -> int:
        return self._book.base_width

    @property
    def obstacles(self) -> tuple[str, ...]:
        return self._book.obstacles

    @property
    def unjudged(self) -> tuple[str, ...]:
        return self._book.unjudged

    @property
    def rules(self) -> pd.DataFrame:
        """One row per rule: what to multiply, and by which power of m = width / base width.

        The columns: `parameter, glob, role, init, lr, multiplier, eps, where, cause, round`. `glob` stands for repeats
        of it in other blocks that are changed alike; `where` is the module on whose input or output a multiplier is
        put, empty where initial values and learning rate stand for it.
        """
        return frame(self._book)

    @property
    def status(self) -> tuple[Verdict | None, Verdict | None]:
        """The verdicts before and after; None of a fix that was loaded."""
        verdicts = [None if r is None else next(iter(r.status.values())) for r in (self.before, self.after)]
        return verdicts[0], verdicts[1]

    @property
    def exit_code(self) -> int:
        """0 when the model with the rules applied passes, else as of its report; 3 of a fix that was loaded."""
        return IncompleteCheck.exit_code if self.after is None else self.after.exit_code

    @property
    def build(self) -> Build:
        """A `build(width)` to check, sweep or train: the user's own, with the rules applied to what it gives.

        Raises:
            CoordCheckError: the fix was loaded; `apply` takes any model.
        """
        return FixedBuild(self._builder("build"), self._book)

    def apply(self, model: nn.Module, optimizer: Any, *, width: int) -> None:
        """Apply the rules to a model of any width, from outside of its code.

        Call it once: after the initialisation (and after `fully_shard`, `DistributedDataParallel` or
        `model.to_empty`), before the first step, before a checkpoint is loaded, and before any scheduler is made.
        Initial values are multiplied in place, groups of the optimizer are split, and a module of which one use alone
        needs a multiplier gets a hook.

        Args:
            model: as it was initialised.
            optimizer: its optimizer, or several.
            width: the model's.

        Raises:
            CoordCheckError: what stands in the way; then nothing was changed.
        """
        apply_rules(self._book, model, optimizer, width)

    @cached_property
    def report(self) -> Report:
        """A check of the model before and after, by these two labels: its figure shows both, side by side.

        It is made when it is first asked for, by training as `check` does.

        Raises:
            CoordCheckError: the fix was loaded.
        """
        builds = {BEFORE: self._builder("report"), AFTER: self.build}
        return check(builds, **self._how, steps=STEPS)

    def transfer(self, batches: Any = None, *, lrs: Sequence[float], **options: Any) -> Transfer:
        """The learning-rate sweep of `transfer_sweep`, before and after.

        Args:
            batches: as for `transfer_sweep`; None takes those of the fix.
            lrs: learning rates of the optimizer's first group at the base width; those of others go with it.
            options: all others of `transfer_sweep`.

        Returns:
            The `Transfer` with the labels "before" and "after".

        Raises:
            CoordCheckError: as `transfer_sweep`; or the fix was loaded.
        """
        given = {"widths": self._how.get("widths"), "loss": self._how.get("loss"), "device": self._how.get("device")}
        builds: dict[str, Callable[..., Any]] = {
            BEFORE: AtRate(self._builder("transfer")),
            AFTER: FixedBuild(AtRate(self._builder("transfer")), self._book),
        }
        batches = self._how.get("batch") if batches is None else batches
        return transfer_sweep(builds, batches, lrs=lrs, **{**given, **options})

    def save(self, path: str | PathLike[str]) -> None:
        """Write the rules to a file, from which `Fix.load` reads them: numbers and names, and no code.

        Raises:
            CoordCheckError: a path that cannot be written.
        """
        save_rules(path, self._book)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Fix:
        """The rules that `save` wrote, to `apply` them.

        Raises:
            RunFileError: a file that is damaged, truncated, foreign or newer.
        """
        return cls(load_rules(path))

    def to_json(self) -> str:
        """The rules and the verdicts as strict JSON."""
        verdicts = [None if verdict is None else verdict.value for verdict in self.status]
        return json_text(
            {
                **{
                    "format": "coordcheck fix",
                    "schema": SCHEMA,
                    "coordcheck": __version__,
                    "exit_code": self.exit_code,
                },
                "status": dict(zip((BEFORE, AFTER), verdicts, strict=True)),
                **{"base_width": self.base_width, "weight_decay": self._book.weight_decay},
                "rules": self.rules.to_dict("records"),
                **{"obstacles": list(self.obstacles), "unjudged": list(self.unjudged)},
            }
        )

    def to_code(self, name: str = "apply_mup") -> str:
        """A Python function that does what `apply` does, and needs nothing but torch.

        Args:
            name: the function's.

        Returns:
            Its source: `def apply_mup(model, optimizer, width): ...`.
        """
        return code_of(self._book, name)

    def __str__(self) -> str:
        return plain(self._book, self.before, self.after)

    def __rich__(self) -> Any:
        """The fix as rich renders it."""
        return render(self._book, self.before, self.after)

    def _builder(self, what: str) -> Build:
        if self._build is None:
            raise CoordCheckError(
                f"a fix that was loaded holds rules, and no model: {what} needs the one that `fix` returned. "
                "`fix.apply(model, optimizer, width=...)` takes any model."
            )
        return self._build
