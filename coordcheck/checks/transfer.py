"""The learning-rate sweep: does the best learning rate of a narrow model serve a wide one?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from coordcheck.analysis.optima import DIVERGED, FINISHED, Optima, find_optima
from coordcheck.checks.check import check
from coordcheck.checks.grid import Grid, grid_of, train
from coordcheck.common.docstrings import as_for
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import user_code
from coordcheck.recording.batches import Batches, cached_batches
from coordcheck.runs.arguments import labelled, loss_function, means
from coordcheck.runs.numbers import positive, whole_number
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.training.fingerprints.fingerprint import fingerprint, settings_of
from coordcheck.training.losses import as_loss
from coordcheck.training.surroundings import numeric_state, preserved_state, state_settings
from coordcheck.training.trials import Curve, Run, run_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BuildAt = Callable[[int, float], Any]
WIDTHS = (64, 128, 256)
SEEDS = 3
STEPS = 100
MIN_RATES = 3


@as_for(check)
def transfer_sweep(
    build: BuildAt | Mapping[str, BuildAt],
    batches: Any = None,
    *,
    lrs: Sequence[float],
    widths: Sequence[int] = WIDTHS,
    seeds: int | Sequence[int] = SEEDS,
    steps: int = STEPS,
    loss: Callable[..., Tensor] | None = None,
    evaluate: Any = None,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
    timeout: float | None = None,
    save_to: str | PathLike[str] | None = None,
) -> Transfer:
    """Train `build(width, lr)` at every width, learning rate and seed, and find the learning rate of least loss.

    This is the experiment that a coordinate check stands in for, at a small part of its cost. Nothing is recorded but
    the losses; runs of one seed see the same batches.

    Args:
        build: `build(width, lr) -> (model, optimizer)` or a `Trial`; or several by label: {"SP": ..., "µP": ...}.
        batches: as the batch of `check`: a function of the seed that gives an iterable of batches is usual, since it
            is cheap to send to another process.
        lrs: at least 3 learning rates, powers of two as a rule; the best one must lie inside.
        widths: at least 2.
        seeds: how many, or which; what they do differently is the noise of the optima.
        steps: optimizer updates, at least 1.
        loss: as for `check`.
        evaluate: a held-out batch, or several (in a list): the final loss is their mean, in evaluation mode. None
            takes the batch that would come next.
        device: as for `check`.
        executor: as for `check`.
        jobs: as for `check`.
        timeout: as for `check`.
        save_to: as for `check`. The label of a run's file holds its learning rate.

    Returns:
        A `Transfer`: print it, `.optima`, `.shift`, `.figure()`.

    Raises:
        CoordCheckError: input that cannot be swept, or no run that finished.
        SweepInterrupted: (a KeyboardInterrupt) Ctrl-C, with what is finished in its `report`.

    Source: the experiment is figure 1 of Yang et al. 2022, arXiv:2203.03466.
    """
    builds: dict[str, Any] = dict(labelled(build))
    rates, training = _rates(lrs), _Training(batches, loss, whole_number("steps", steps, 1), evaluate, device)
    how = means(executor, jobs, timeout)
    loss_function(loss)
    grid = grid_of(len(builds), widths=widths, seeds=seeds, means=how, save_to=save_to, lrs=len(rates))
    with preserved_state():
        with user_code("build, batches or loss"):
            runs = training.runs(builds, rates, grid)
        names = {run.key: (label, lr) for (label, lr), run in runs}
        return train([run for _, run in runs], grid, lambda records: _transfer(records, names))


def _transfer(records: Sequence[RunRecord], names: Mapping[RunKey, tuple[str, float]]) -> Transfer:
    return Transfer(pd.concat([_curve(record, *names[record.key]) for record in records], ignore_index=True))


@dataclass(frozen=True)
class _Training:
    """What the runs of a sweep have in common."""

    batches: Any
    loss: Any
    steps: int
    evaluate: Any
    device: str | None

    def runs(
        self, builds: Mapping[str, BuildAt], rates: Sequence[float], grid: Grid
    ) -> list[tuple[tuple[str, float], Run]]:
        """The runs of a grid, seed by seed, each with the label and the learning rate that it is of."""
        batches, held_out = cached_batches(self.batches, self.steps), _held_out(self.evaluate)
        given = batches.values if isinstance(batches, Batches) else self.batches
        on = fingerprint(held_out.values) if held_out else "the next batch"
        common = {
            "passes": f"training, evaluated on {on}",
            **run_settings(given, self.loss, steps=self.steps, device=self.device, threads=grid.threads),
        }
        described = {label: settings_of(build=build) for label, build in builds.items()}
        process = state_settings()  # last: with what was imported for the builds, and set by that
        state, shared = numeric_state(), (batches, as_loss(self.loss), self.steps, self.device, grid.threads)
        found = []
        for seed, label, width, lr in product(grid.seeds, builds, grid.widths, rates):
            key = RunKey(f"{label}, lr {lr!r}", width, seed)  # what is under test is part of a run's name
            settings = common | described[label] | process | {"lr": repr(lr)}
            run = Run(key, _AtRate(builds[label], lr), *shared, settings)
            found.append(((label, lr), replace(run, figure=False, curve=Curve(held_out), state=state)))
        return found


class _AtRate:
    """`build(width)` at one learning rate."""

    def __init__(self, build: BuildAt, lr: float) -> None:
        self.build, self.lr = build, lr

    def __call__(self, width: int) -> Any:
        return self.build(width, self.lr)


def _rates(lrs: Any) -> list[float]:
    """The learning rates, ascending."""
    given = list(lrs) if isinstance(lrs, Iterable) and not isinstance(lrs, str) else [lrs]
    rates = sorted({positive("a learning rate", lr) for lr in given})
    if len(rates) < MIN_RATES:
        raise CoordCheckError(
            f"need at least {MIN_RATES} distinct learning rates to find the best, got {len(rates)}. "
            "Pass powers of two: lrs=[2.0**k for k in range(-10, -4)]."
        )
    return rates


def _held_out(evaluate: Any) -> Batches | None:
    if evaluate is None:
        return None
    several = isinstance(evaluate, list) and evaluate and not isinstance(evaluate[0], (int, float))
    return Batches(evaluate if several else [evaluate])


def _curve(record: RunRecord, label: str, lr: float) -> pd.DataFrame:
    """One row per loss of a run; a run that did not finish is one row without a loss."""
    losses = np.array(record.losses or [None], dtype=float)
    status = record.outcome.value if not record.finished else FINISHED if np.isfinite(losses[-1]) else DIVERGED
    key = {"label": label, "width": record.key.width, "lr": lr, "seed": record.key.seed}
    return pd.DataFrame({**key, "step": range(len(losses)), "loss": losses, "status": status})


class Transfer:
    """What a learning-rate sweep found; all of it follows from the table of losses.

    Attributes:
        curves: one row per run and step: `label, width, lr, seed, step, loss, status`; the loss before each update,
            and at the last step the final one.
        losses: the final losses alone. `status` is "ok", "diverged" (a loss that is no number) or why a run failed.
        optima: the best learning rate per label and width: the one tried, and the fitted one with its error: see
            `optima.find_optima`.
        shift: octaves by which it moves per doubling of the width, per label: see `optima.find_optima`.
    """

    def __init__(self, curves: pd.DataFrame) -> None:
        self.curves = curves

    @cached_property
    def losses(self) -> pd.DataFrame:
        last = self.curves.groupby(["label", "width", "lr", "seed"], sort=False).tail(1)
        return last.drop(columns="step").reset_index(drop=True)

    @cached_property
    def _found(self) -> Optima:
        return find_optima(self.losses)

    @property
    def optima(self) -> pd.DataFrame:
        return self._found.optima

    @property
    def shift(self) -> pd.DataFrame:
        return self._found.shift

    def figure(self, *, path: str | PathLike[str] | None = None) -> Figure:
        """Final loss against the learning rate, a panel per label and a line per width, its optimum marked.

        Returns:
            The figure, which no window shows by itself.

        Raises:
            CoordCheckError: a path that cannot be written.
        """
        from coordcheck.reporting.figures.style import save_figure
        from coordcheck.reporting.figures.transfer import draw_transfer

        drawn = draw_transfer(self.losses, self.optima, self.shift)
        if path is not None:
            save_figure(drawn, path)
        return drawn

    def __str__(self) -> str:
        """Per label how the best learning rate moves, and under it what was measured at each width, and what fitted."""
        return "\n".join(f"{_headline(shift)}\n{self._table(str(shift.label))}" for shift in self.shift.itertuples())

    def _table(self, label: str) -> str:
        """What was tried and measured, and beside it the minimum that was fitted to it."""
        rows: list[tuple[str, ...]] = [
            ("width", "best lr tried", "its loss", "fitted log2 lr", "95 % interval", "runs", "diverged", "status")
        ]
        for found in self.optima[self.optima["label"] == label].itertuples():
            row: Any = found
            tried = ("", "") if np.isnan(row.best) else (_power(row.best), f"{row.best_loss:.4g}")
            fitted = "" if np.isnan(row.log2_lr) else f"{row.log2_lr:.2f}"
            interval = f"{row.low:.2f} to {row.high:.2f}" if np.isfinite(row.low) else ""
            rows.append((str(row.width), *tried, fitted, interval, str(row.runs), str(row.diverged), row.status))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  " + "  ".join([*map(str.rjust, row[:-1], sizes[:-1]), row[-1]]).rstrip() for row in rows)


def _power(lr: float) -> str:
    """A learning rate as a power of two."""
    return f"2^{np.log2(lr):.3g}"


def _headline(shift: Any) -> str:
    if not np.isfinite(shift.shift):
        return f"{shift.label}: {shift.status}: {shift.widths} widths with an optimum, and 2 are needed"
    known = np.isfinite(shift.low)
    interval = f"95 % interval {shift.low:+.2f} to {shift.high:+.2f}" if known else "too few runs for an error"
    moved = f"{shift.shift:+.2f} octaves per doubling of the width ({interval})"
    return f"{shift.label}: the best learning rate {TELLS[shift.status]}: {moved}"


TELLS = {"stays": "stays", "moves": "moves", "not resolved": "is not resolved"}
