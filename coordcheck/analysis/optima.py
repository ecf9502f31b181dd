"""Losses over learning rates -> the learning rate of least loss, and how it moves with the width; all with errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.special import stdtrit

from coordcheck.analysis.slopes import CONFIDENCE

TOLERANCE = 0.25  # octaves of learning rate per doubling of the width; theory's exponents are multiples of 1/2
REACH = 2  # learning rates on each side of the best one that are fitted, where there are as many
FINISHED, DIVERGED = "ok", "diverged"  # of a run: how it ended, where it did not fail
LEAST_ERROR = 1e-6  # octaves: of optima that fit without any residual
OPTIMA = [
    *("label", "width", "best", "best_loss"),
    *("log2_lr", "stderr", "low", "high", "fitted_loss", "freedom"),
    *("runs", "diverged", "status"),
]
SHIFTS = ["label", "shift", "stderr", "low", "high", "widths", "status"]

Array = NDArray[np.float64]


class Optimum(str, Enum):
    """What is known of the best learning rate at one width."""

    FOUND = "found"
    EDGE = "at the edge: widen lrs"
    BESIDE_DIVERGENCE = "beside runs that diverged: take lrs closer together"
    FLAT = "flat within the noise: add seeds or steps"
    MISSING = "no learning rate has all its runs"


class Shift(str, Enum):
    """Whether the best learning rate moves with the width."""

    STAYS = "stays"
    MOVES = "moves"
    UNRESOLVED = "not resolved"


class Valley(NamedTuple):
    """The losses of one width round the best learning rate."""

    octaves: Array
    """(n,) log2 of the learning rates over the best one."""
    losses: Array
    """(seeds, n)"""


class Minima(NamedTuple):
    """The lowest points of several valleys, fitted together; arrays are (valley,), NaN where one has no minimum."""

    octaves: Array
    losses: Array
    """The curve's own least loss, mean over the seeds."""
    covariance: Array
    """(valley, valley) of `octaves`, in octaves squared."""
    freedom: int
    """Degrees of freedom that the noise was estimated with; 0 when there was nothing to estimate it from."""


def fit_minima(valleys: Sequence[Valley]) -> Minima:
    """The least loss of every valley, by least squares.

    Model: loss = offset[valley, seed] + b[valley] x + a[valley] x**2 + c x**3 + noise, x in octaves of the learning
    rate. Loss rises faster on one side of the optimum than on the other: the skew c is one number for all valleys (left
    out where there are too few learning rates for it). Errors are those of the linearised minimum.

    >>> x = np.array([-1.0, 0.0, 1.0])
    >>> fit_minima([Valley(x, (x - 0.25) ** 2 + np.array([[1.0], [2.0]]))]).octaves
    array([0.25])
    """
    skewed = sum(valley.octaves.size - 3 for valley in valleys) >= 2
    blocks = []
    for x, losses in valleys:
        terms = np.stack([x, x**2, x**3][: 2 + skewed], axis=1)
        blocks.append(np.tile(terms - terms.mean(axis=0), (len(losses), 1)))  # centred: one offset per seed
    design = block_diag(*(block[:, :2] for block in blocks))
    if skewed:
        design = np.hstack([design, np.concatenate([block[:, 2:] for block in blocks])])
    y = np.concatenate([(losses - losses.mean(axis=1, keepdims=True)).ravel() for _, losses in valleys])
    inverse = np.linalg.inv(design.T @ design)
    values = inverse @ (design.T @ y)
    freedom = y.size - sum(len(losses) for _, losses in valleys) - values.size
    variance = float(((y - design @ values) ** 2).sum()) / freedom if freedom > 0 else math.nan
    return _minima(valleys, values, inverse * variance, max(freedom, 0))


def _minima(valleys: Sequence[Valley], values: Array, covariance: Array, freedom: int) -> Minima:
    """The minimum of each fitted curve, the derivative of where it lies, and from it the errors."""
    count, places = len(valleys), np.arange(len(valleys))
    b, a = values[: 2 * count].reshape(count, 2).T
    c = float(values[2 * count]) if values.size > 2 * count else 0.0
    # derivatives by (b, a) of each valley and c: of the place of the minimum, and of the curvature there
    moves, bends = np.zeros((count, values.size)), np.zeros((count, values.size))
    with np.errstate(invalid="ignore", divide="ignore"):  # what has no minimum becomes NaN
        x = -2 * b / (2 * a + np.sqrt(4 * a**2 - 12 * c * b))  # where b + 2ax + 3cx**2 = 0, also for c = 0
        curvature = 2 * a + 6 * c * x
        moves[places, 2 * places], moves[places, 2 * places + 1] = -1 / curvature, -2 * x / curvature
        bends[places, 2 * places + 1] = 2
        if values.size > 2 * count:
            moves[:, -1], bends[:, -1] = -3 * x**2 / curvature, 6 * x
    noise = np.sqrt(np.einsum("ij,jk,ik->i", bends, covariance, bends))
    inside = np.array([v.octaves[0] <= at <= v.octaves[-1] for v, at in zip(valleys, x, strict=True)])
    there = inside & (curvature > np.nan_to_num(noise * _quantile(freedom)))  # curved beyond the noise
    least = [_height(*terms, c) for terms in zip(valleys, x, b, a, strict=True)]
    return Minima(np.where(there, x, np.nan), np.array(least), moves @ covariance @ moves.T, freedom)


def _height(valley: Valley, x: float, b: float, a: float, c: float) -> float:
    """The fitted curve at x, mean over the seeds."""
    curve = np.poly1d([c, a, b, 0])
    return float(valley.losses.mean() + curve(x) - curve(valley.octaves).mean())


def _quantile(freedom: int) -> float:
    """Of Student's t, both sides; NaN without freedom."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) if freedom else math.nan


class Optima(NamedTuple):
    """Optima and shifts of all labels, two tables."""

    optima: pd.DataFrame
    shift: pd.DataFrame


def find_optima(losses: pd.DataFrame) -> Optima:
    """The best learning rate per label and width, and by how many octaves it moves when the width doubles.

    A learning rate counts where every seed finished. The shift is the slope of a line through the optima of at least 2
    widths, by generalised least squares; where they scatter about it more than their errors say, its error is widened
    by as much (the Birge ratio).

    Args:
        losses: columns `label, width, lr, seed, loss, status`.

    Returns:
        optima: columns `label, width, best, best_loss, log2_lr, stderr, low, high, fitted_loss, freedom, runs,
            diverged, status`. Measured: `best` is the learning rate tried with the least mean loss, and `best_loss`
            that mean over the seeds. Fitted: `log2_lr` is where the curve through the losses is least, with its 95 %
            interval, and `fitted_loss` how low the curve is there, which may be lower than any loss can be; NaN
            where `status` is not "found".
        shift: columns `label, shift, stderr, low, high, widths, status`. `status` is "stays" or "moves" where the 95 %
            interval lies within, or beyond, a quarter of an octave per doubling.

    Source: Birge 1932, "The calculation of errors by the method of least squares", Physical Review 40.
    """
    optima, shifts = [], []
    for label, runs in losses.groupby("label", sort=False):
        tables = {int(str(width)): table for width, table in runs.groupby("width", sort=True)}
        seen = {width: _seen(table) for width, table in tables.items()}
        fitted = [width for width, (status, _, _) in seen.items() if status is Optimum.FOUND]
        minima = fit_minima([seen[width][2] for width in fitted]) if fitted else NOTHING
        for width, (status, best, _) in seen.items():
            row = _row(minima, fitted.index(width), math.log2(best)) if width in fitted else {"status": status.value}
            diverged = int((tables[width]["status"] == DIVERGED).sum())
            counts = {"runs": len(tables[width]), "diverged": diverged}
            least = float(tables[width].loc[tables[width]["lr"] == best, "loss"].mean())
            optima.append({"label": label, "width": width, "best": best, "best_loss": least, **counts, **row})
        starts = np.log2([seen[width][1] for width in fitted])
        shifts.append({"label": label, **_shift(fitted, starts + minima.octaves, minima)})
    return Optima(pd.DataFrame(optima).reindex(columns=OPTIMA), pd.DataFrame(shifts, columns=SHIFTS))


def _seen(runs: pd.DataFrame) -> tuple[Optimum, float, Valley]:
    """What the losses of one width show, the best learning rate tried, and the losses near it."""
    grid = runs.pivot(index="lr", columns="seed", values="loss").sort_index()  # NaN where a run did not finish
    complete = np.concatenate([[False], grid.notna().all(axis=1), [False]])  # with the two places beyond the edges
    if not complete.any():
        return Optimum.MISSING, math.nan, EMPTY
    place = int(grid.mean(axis=1).where(complete[1:-1]).argmin())
    best = float(grid.index[place])
    if place in (0, len(grid) - 1):
        return Optimum.EDGE, best, EMPTY
    gaps = np.flatnonzero(~complete) - 1
    first = max(place - REACH, gaps[gaps < place].max() + 1)
    last = min(place + REACH, gaps[gaps > place].min() - 1)
    if place in (first, last):
        return Optimum.BESIDE_DIVERGENCE, best, EMPTY
    near = grid.iloc[first : last + 1]
    return Optimum.FOUND, best, Valley(np.log2(near.index.to_numpy(dtype=float) / best), near.to_numpy().T)


EMPTY = Valley(np.empty(0), np.empty((0, 0)))
NOTHING = Minima(np.empty(0), np.empty(0), np.empty((0, 0)), 0)


def _row(minima: Minima, index: int, start: float) -> dict[str, Any]:
    """A minimum as columns of the table; `start` is log2 of the learning rate that its octaves count from."""
    at = start + float(minima.octaves[index])
    if math.isnan(at):
        return {"status": Optimum.FLAT.value}
    stderr = math.sqrt(minima.covariance[index, index])
    half = _quantile(minima.freedom) * stderr
    interval = {"log2_lr": at, "stderr": stderr, "low": at - half, "high": at + half}
    return {
        **interval,
        "fitted_loss": float(minima.losses[index]),
        "freedom": minima.freedom,
        "status": Optimum.FOUND.value,
    }


def _shift(widths: Sequence[int], optima: Array, minima: Minima) -> dict[str, Any]:
    """The line through the optima of one label."""
    there = np.isfinite(optima)
    count = int(there.sum())
    if count < 2:
        nothing = dict.fromkeys(("shift", "stderr", "low", "high"), math.nan)
        return {**nothing, "widths": count, "status": Shift.UNRESOLVED.value}
    y, line = optima[there], np.stack([np.ones(count), np.log2(np.asarray(widths, dtype=float)[there])], axis=1)
    known = minima.freedom > 0
    errors = minima.covariance[np.ix_(there, there)] if known else np.zeros((count, count))
    weights = np.linalg.inv(errors + LEAST_ERROR**2 * np.eye(count))
    inverse = np.linalg.inv(line.T @ weights @ line)
    values = inverse @ (line.T @ weights @ y)
    residual = y - line @ values
    scatter = float(residual @ weights @ residual) / (count - 2) if count > 2 else 1.0
    shift, stderr = float(values[1]), math.sqrt(max(1.0, scatter) * inverse[1, 1]) if known else math.nan
    half = _quantile(minima.freedom) * stderr
    status = _word(shift - half, shift + half)
    bounds = {"low": shift - half, "high": shift + half}
    return {"shift": shift, "stderr": stderr, **bounds, "widths": count, "status": status.value}


def _word(low: float, high: float) -> Shift:
    if low > -TOLERANCE and high < TOLERANCE:
        return Shift.STAYS
    return Shift.MOVES if low > TOLERANCE or high < -TOLERANCE else Shift.UNRESOLVED
