"""The tidy table -> slopes of log2(scale) against log2(width), with their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from coordcheck.analysis.measurements import judged
from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.words import Status

MIN_WIDTHS = 3
CONFIDENCE = 0.95
POWER_LAW_TOLERANCE = 0.2  # between the slope of the two widest widths and the fit
GROUP = ["label", "layer", "quantity", "step"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SlopeFit:
    """A slope d log2(scale) / d log2(width), dimensionless: 0 is width-invariant, 0.5 grows as sqrt(width)."""

    slope: float
    stderr: float
    low: float
    """Lower end of the 95 % Student t interval."""
    high: float
    """Upper end of it."""
    last_pair: float
    """The slope between the two widest widths alone."""
    seeds: int
    widths: int

    @property
    def power_law(self) -> bool:
        """Whether the two widest widths agree with the fit; if not, the slope is no exponent."""
        return not abs(self.last_pair - self.slope) > POWER_LAW_TOLERANCE


def fit_slope(widths: Sequence[float], scales: Sequence[float] | Sequence[Sequence[float]]) -> SlopeFit:
    """Slope of log2(scale) against log2(width), by least squares with one intercept per seed.

    Model: log2(scale) = intercept[seed] + slope * log2(width) + noise. On complete data the slope is the mean
    of the seeds' own ordinary-least-squares slopes. The noise is drawn anew at every width, also within a
    seed, so its size is estimated from all residuals: degrees of freedom = scales - seeds - 1.

    Args:
        widths: (n,) positive, at least 3, each given once.
        scales: (n,) or (seeds, n), positive and finite, in the tensor's own units.

    Returns:
        The dimensionless slope (0 is width-invariant, 0.5 grows as the root of the width), its standard error and 95 %
        interval.

    Raises:
        CoordCheckError: fewer than 3 distinct widths, a width given twice, shapes that do not match, or a
            scale that has no logarithm (its width is named).

    Source: the quantity is that of Yang et al. 2022, arXiv:2203.03466, appendix D.1; the fit is an analysis of
    covariance (Draper & Smith, Applied Regression Analysis, chapter 14).

    >>> fit_slope([64, 256, 1024], [1.0, 2.0, 4.0]).slope
    0.5
    """
    x, y = np.asarray(widths, dtype=float), np.atleast_2d(np.asarray(scales, dtype=float))
    if y.shape[1] != x.size:
        raise CoordCheckError(f"got {x.size} widths and scales of shape {y.shape}; give one scale per width.")
    distinct = sorted(set(widths))
    if len(distinct) < MIN_WIDTHS:
        raise CoordCheckError(
            f"need at least {MIN_WIDTHS} distinct widths to fit a slope, got {len(distinct)} "
            f"({', '.join(f'{w:g}' for w in distinct)}). Pass widths=(64, 128, 256, ...)."
        )
    if len(distinct) < x.size:
        raise CoordCheckError("a width is given twice; give each width once, and one row of scales per seed.")
    if not (x > 0).all():
        raise CoordCheckError(f"widths must be positive, got {x.min():g}.")
    bad = ~((y > 0) & np.isfinite(y))
    if bad.any():
        seed, index = np.argwhere(bad)[0]
        raise CoordCheckError(
            f"the scale at width {x[index]:g} (seed {seed}) is {y[seed, index]:g}; "
            "only positive, finite scales have a slope."
        )
    order = np.argsort(x)
    fit = fit_logs(np.log2(x[order]), np.log2(y[:, order])[None])
    numbers = {name: float(values[0]) for name, values in fit.items()}
    return SlopeFit(**numbers | {"seeds": len(y), "widths": len(distinct)})  # type: ignore[arg-type]  # the two counts


def exponent_of(values: Mapping[int, float]) -> float:
    """The slope of log2 |value| against log2(width), of numbers that are known exactly; NaN of fewer than two.

    Returns:
        The exponent, without an error: there is no noise in the numbers.

    >>> exponent_of({64: 1.0, 256: 2.0})
    0.5
    """
    widths = [width for width, value in values.items() if value]
    if len(widths) < 2:
        return math.nan
    x, y = np.log2(widths), np.log2([abs(values[width]) for width in widths])
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def fit_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """One slope per (label, layer, quantity, step), from the tidy table of `measurements`.

    Scales that are missing, zero or not finite are left out of the fit, and a group with fewer than 3 widths
    left keeps its row: NaN slope, and the status that stopped it.

    Returns:
        Columns `label, layer, quantity, step, order, slope, stderr, low, high, last_pair, power_law, seeds,
        widths, growth, not_finite, status`. `growth` is the measured ratio of the scale at the widest to that
        at the narrowest width (geometric mean over seeds); `not_finite` counts NaN and Inf, `zeros` exact zeros;
        `status` is "ok", "zero", "nan", "too few widths", ....
    """
    parts = [_fit_label(part) for _, part in judged(table).groupby("label", sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


COLUMNS = [
    *("label", "layer", "quantity", "step", "order", "slope", "stderr", "low", "high", "last_pair", "power_law"),
    *("seeds", "widths", "growth", "not_finite", "zeros", "status"),
]


def _fit_label(table: pd.DataFrame) -> pd.DataFrame:
    """The slopes of one label, whose widths are its own."""
    logs = np.log2(table["value"].where(table["status"] == Status.OK.value))
    indexed = table[["width", "seed", *GROUP]].assign(log=logs).set_index([*GROUP, "seed", "width"])["log"]
    wide = indexed.unstack(["seed", "width"])  # one row per group; (seed, width) columns
    seeds, widths = (wide.columns.unique(level).sort_values() for level in ("seed", "width"))
    wide = wide.reindex(columns=pd.MultiIndex.from_product([seeds, widths]))
    values = wide.to_numpy(dtype=float).reshape(len(wide), len(seeds), len(widths))
    result = wide.index.to_frame(index=False)
    for name, column in fit_logs(np.log2(widths.to_numpy(dtype=float)), values).items():
        result[name] = column
    bend = (result["last_pair"] - result["slope"]).abs()
    result["power_law"] = result["slope"].notna() & ~(bend > POWER_LAW_TOLERANCE)
    result["growth"] = _growth(values)
    groups = [table[name] for name in GROUP]
    for name, statuses in (("not_finite", [Status.NAN.value, Status.INF.value]), ("zeros", [Status.ZERO.value])):
        result[name] = table["status"].isin(statuses).groupby(groups).sum().reindex(wide.index).to_numpy()
    result["status"] = _statuses(table, wide.index, result["slope"])
    order = table.groupby("layer", as_index=False)["order"].first()
    return result.merge(order, on="layer").sort_values(["quantity", "order", "step"])[COLUMNS]


def _growth(values: Array) -> Array:
    """Widest over narrowest scale of (group, seed, width) logs: geometric mean over the seeds that have both."""
    rise = values[:, :, -1] - values[:, :, 0]
    both = np.isfinite(rise)
    with np.errstate(over="ignore", invalid="ignore"):
        growth: Array = np.exp2(np.where(both, rise, 0).sum(axis=1) / both.sum(axis=1))
    return growth


def fit_logs(x: Array, y: Array) -> dict[str, Array]:
    """Least squares with one intercept per seed, for many groups at once.

    Args:
        x: (width,) log2 widths, ascending.
        y: (group, seed, width) log2 scales, NaN where there is none.

    Returns:
        (group,) arrays: the fields of `SlopeFit`; NaN for groups with fewer than 3 widths.
    """
    have: NDArray[np.bool_] = np.isfinite(y)
    have = have & (have.sum(axis=2, keepdims=True) >= 2)  # a seed with one width says nothing about the slope
    count = np.maximum(have.sum(axis=2, keepdims=True), 1)
    # centred within each seed: (group, seed, width), zero where there is nothing
    dx = np.where(have, x - np.where(have, x, 0).sum(axis=2, keepdims=True) / count, 0)
    dy = np.where(have, y - np.where(have, y, 0).sum(axis=2, keepdims=True) / count, 0)
    widths = have.any(axis=1).sum(axis=1)
    seeds = have.any(axis=2).sum(axis=1)
    freedom = have.sum(axis=(1, 2)) - seeds - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (dx**2).sum(axis=(1, 2))
        slope = np.where(widths >= MIN_WIDTHS, (dx * dy).sum(axis=(1, 2)) / spread, np.nan)
        residual = ((dy - slope[:, None, None] * dx) ** 2).sum(axis=(1, 2))
        stderr = np.sqrt(residual / freedom / spread)
        last_pair = np.where(widths >= MIN_WIDTHS, _last_pair(x, y, have), np.nan)
    half = stdtrit(freedom, 0.5 + CONFIDENCE / 2) * stderr
    return {
        "slope": slope,
        "stderr": stderr,
        "low": slope - half,
        "high": slope + half,
        "last_pair": last_pair,
        "seeds": seeds,
        "widths": widths,
    }


def _last_pair(x: Array, y: Array, have: NDArray[np.bool_]) -> Array:
    """The slope between each group's two widest widths, over the seeds that have both: (group,)."""
    present = np.asarray(have.any(axis=1))  # (group, width)
    groups = np.arange(len(y))
    widest = present.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    present[groups, widest] = False
    second = present.shape[1] - 1 - present[:, ::-1].argmax(axis=1)
    both = have[groups, :, widest] & have[groups, :, second]  # (group, seed)
    rise = np.where(both, y[groups, :, widest] - y[groups, :, second], 0).sum(axis=1) / both.sum(axis=1)
    slopes: Array = rise / (x[widest] - x[second])
    return slopes


def _statuses(table: pd.DataFrame, groups: pd.MultiIndex, slopes: pd.Series) -> list[str]:
    """Why a group has no slope: what its scales are instead, most often; "zero" only when they all are."""
    counts = table.groupby([*GROUP, "status"]).size().unstack("status", fill_value=0).reindex(groups)
    others = counts.drop(columns=[Status.OK.value, Status.ZERO.value], errors="ignore")
    zeros = counts.get(Status.ZERO.value, pd.Series(0, counts.index))
    reasons = pd.Series("too few widths", counts.index).where(zeros < counts.sum(axis=1), Status.ZERO.value)
    if len(others.columns):
        reasons = reasons.where(others.sum(axis=1) == 0, others.idxmax(axis=1))
    fitted = slopes.notna().to_numpy()
    return [Status.OK.value if fit else str(reason) for fit, reason in zip(fitted, reasons, strict=True)]
