"""The diagnosis' rows -> exponents local to one parameter: its gain, its response to the optimizer, its alignment.

With x the input of a parameter's operation, h its output, d = dL/dh and k the optimizer's degree in the gradient:

    gain      gamma   = slope of RMS(p's part of h_0) / RMS(x_0)
    response  lambda  = slope of RMS(own update) / RMS(x_0) / (RMS(d) RMS(x_0)) ** k
    growth    u       = slope of RMS(own update) / RMS(x_0)

The same from the parameter's own side, with m the scalars beside it, g = dL/dp and dp its update:

    gain      m sqrt(fan-in) RMS(p_0)                       independent of the input
    response  m fan-in RMS(dp) (m / RMS(g)) ** k            fully aligned with the input
    alignment 1 + lambda - response                         1 when update and input are aligned, 1/2 when independent

The parameter's side has no sampling noise: fans, scalars, learning rates and the RMS of a whole matrix are exact.

Sources: gain and response are the invariants a + b and c + (1 + k) a of abc-parametrizations, Yang & Hu 2021
(arXiv:2011.14522) and Yang et al. 2022 (arXiv:2203.03466), appendix J; the alignment that of Everett et al. 2024
(arXiv:2407.05872); updates whose singular values are alike (Muon) are measured by their spectral norm, after Yang,
Simon & Bernstein 2023, "A Spectral Condition for Feature Learning", arXiv:2310.17813.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordcheck.analysis.clipping import clipping
from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.analysis.slopes import fit_logs
from coordcheck.runs.words import Quantity, Role, Status

Array = NDArray[np.float64]

ROUNDING = 1e-5  # a gradient this small beside that of its output is rounding error
EXACT = 1e-6  # error of a fitted exponent below which it has no noise
FLAT_RANK = 32  # and at least this stable rank, which no gradient of a tiny probe has
FLAT_SPECTRUM = 0.25, 0.55  # shares of its full rank from which on an update's singular values may count as alike
BEYOND_CHANCE = 1.2  # and how far beyond that of independent coordinates, which an update of signs may have


class Exponent(NamedTuple):
    """A fitted exponent with its 95 % interval; NaN where it could not be measured."""

    value: float
    stderr: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return not math.isnan(self.value)

    def shifted(self, by: float) -> Exponent:
        return Exponent(self.value + by, self.stderr, self.low + by, self.high + by)


UNKNOWN = Exponent(math.nan, math.nan, math.nan, math.nan)


class Exponents(NamedTuple):
    """Everything that was fitted for one use."""

    gain: Exponent
    gain_weight: Exponent
    response: Exponent
    response_weight: Exponent
    growth: Exponent
    inherited: Exponent
    output: Exponent
    degree: float
    step: int
    """The first update at which the parameter had moved; 0 when it never did."""
    zero_init: bool
    moved: bool
    has_gradient: bool
    not_finite: bool
    shrinking: Exponent = UNKNOWN
    """Of the update beside learning rate times gradient, under an optimizer of degree 1."""
    clipped: tuple[int, ...] = ()
    """The widths at which it is shrunk, where it is not at others; the exponents are without that."""

    @property
    def alignment(self) -> float:
        return 1 + self.response.value - self.response_weight.value


class Logs:
    """log2 of the diagnosis' rows of one label: (use, seed, width) per quantity and step."""

    def __init__(self, table: pd.DataFrame, uses: Sequence[UseAcrossWidths]) -> None:
        rows = table[table["layer"].isin([use.name for use in uses])]
        # where nothing was measured of any use: every scale at its widths is NaN
        self.widths = np.array(sorted({*rows["width"].unique()} or {width for use in uses for width in use.sizes}))
        self.seeds = sorted(rows["seed"].unique()) or [0]
        self.steps = sorted(rows["step"].unique())
        self._index = {use.name: number for number, use in enumerate(uses)}
        place = (
            rows["layer"].map(self._index).to_numpy(),
            rows["seed"].map({seed: i for i, seed in enumerate(self.seeds)}).to_numpy(),
            np.searchsorted(self.widths, rows["width"].to_numpy()),
        )
        values = rows["value"].to_numpy(dtype=float)
        self._shape = len(uses), len(self.seeds), len(self.widths)
        self._values: dict[tuple[str, int], Array] = {}
        for (quantity, step), chosen in rows.groupby(["quantity", "step"], sort=False).indices.items():
            array = np.full(self._shape, np.nan)
            array[tuple(axis[chosen] for axis in place)] = values[chosen]
            self._values[str(quantity), int(step)] = array
        bad = rows[rows["status"].isin([Status.NAN.value, Status.INF.value])]
        self.not_finite = {str(layer) for layer in bad["layer"].unique()}

    def values(self, quantity: Quantity, step: int = 0) -> Array:
        """(use, seed, width) scales, NaN where there is none."""
        return self._values.get((quantity.value, step), np.full(self._shape, np.nan))

    def at(self, quantity: Quantity, steps: Array) -> Array:
        """log2 of the scales, each use at its own step; NaN for zeros."""
        result = np.full(self._shape, np.nan)
        for step in np.unique(steps):
            chosen = steps == step
            result[chosen] = self.values(quantity, int(step))[chosen]
        with np.errstate(divide="ignore"):
            logs = np.log2(result)
        return np.where(np.isfinite(logs), logs, np.nan)

    def of(self, sizes: Sequence[Mapping[int, float]]) -> Array:
        """log2 of something known per use and width: (use, 1, width)."""
        rows = [[abs(by_width.get(int(width), math.nan)) for width in self.widths] for by_width in sizes]
        with np.errstate(divide="ignore"):
            logs = np.log2(np.array(rows, dtype=float))[:, None, :]
        return np.where(np.isfinite(logs), logs, np.nan)

    def fit(self, logs: Array) -> list[Exponent]:
        """One exponent per use."""
        found = fit_logs(np.log2(self.widths.astype(float)), np.broadcast_to(logs, self._shape))
        columns = [found[name] for name in ("slope", "stderr", "low", "high")]
        return [Exponent(*map(float, row)) for row in zip(*columns, strict=True)]


def exponents(table: pd.DataFrame, uses: Sequence[UseAcrossWidths]) -> dict[str, Exponents]:
    """The exponents of every use of one label, by its name.

    Args:
        table: the label's rows of `measurements`.
        uses: its uses.
    """
    if not uses:
        return {}
    logs = Logs(table, uses)
    first = np.array([_first_movement(logs, number) for number in range(len(uses))])
    before = np.maximum(first - 1, 0)
    start = np.zeros(len(uses))
    degree = _degrees(uses)
    k = np.round(degree)[:, None, None]
    m = logs.of([use.multipliers for use in uses])
    fan_in, fan_out = logs.of([use.fan_ins for use in uses]), logs.of([use.fan_outs for use in uses])
    x = logs.at(Quantity.INPUT, start)
    own, update = logs.at(Quantity.OWN_UPDATE, first), logs.at(Quantity.WEIGHT_UPDATE, first)
    delta, gradient = logs.at(Quantity.GRADIENT, before), logs.at(Quantity.WEIGHT_GRADIENT, before)
    shrinking = np.where(k > 0, update - gradient - logs.of([use.rates for use in uses]), np.nan)
    clips = [clipping(factors, logs.widths) for factors in 2**shrinking]
    whole = np.log2([clip.factors for clip in clips])
    own, update = own - whole, update - whole
    times_k = np.where(k == 0, 0.0, k)
    by_gradient = np.where(k == 0, 0.0, times_k * (gradient - m))
    aligned = fan_in + update + m - by_gradient
    spectral = logs.at(Quantity.WEIGHT_UPDATE_NORM, first) + (fan_in - fan_out) / 2 + m - by_gradient
    fits = {
        "gain": logs.fit(logs.at(Quantity.OUTPUT, start) - x),
        "gain_weight": logs.fit(m + fan_in / 2 + logs.at(Quantity.WEIGHT, start)),
        "response": logs.fit(own - x - np.where(k == 0, 0.0, times_k * (delta + x))),
        "aligned": logs.fit(aligned),
        "spectral": logs.fit(spectral),
        "growth": logs.fit(own - x),
        "inherited": logs.fit(logs.at(Quantity.INHERITED, first) - x),
        "output": logs.fit(logs.at(Quantity.OUTPUT, start)),
        "shrinking": logs.fit(shrinking),
    }
    rounding = _rounding(logs, uses)
    flat = _flat_spectra(logs, first, fan_in, fan_out)
    result = {}
    for number, use in enumerate(uses):
        gain_weight = _sampled(fits["gain_weight"][number], use, logs)
        weight = _nearer(fits["aligned"][number], fits["spectral"][number], fits["response"][number], flat[number])
        result[use.name] = Exponents(
            gain=fits["gain"][number],
            gain_weight=gain_weight,
            response=fits["response"][number],
            response_weight=weight,
            growth=fits["growth"][number],
            inherited=fits["inherited"][number],
            output=fits["output"][number],
            degree=float(degree[number]),
            step=int(first[number]),
            zero_init=not (logs.values(Quantity.WEIGHT)[number] > 0).any(),
            moved=bool(first[number]),
            has_gradient=_any_positive(logs, Quantity.WEIGHT_GRADIENT, number) and not rounding[number],
            not_finite=use.name in logs.not_finite,
            shrinking=fits["shrinking"][number],
            clipped=clips[number].widths,
        )
    return result


def _sampled(fitted: Exponent, use: UseAcrossWidths, logs: Logs) -> Exponent:
    """The gain from the weights' RMS, with the error that is known of it: N independent normal weights.

    The logarithm of an RMS has the standard deviation 1 / sqrt(2 N) (in log2: divided by ln 2), which says more than
    the residuals of three widths; a fit that bends keeps its own error when that is larger. Weights that lie on a
    power of the width to the last digit, as ones do, were not drawn at all.
    """
    if fitted.stderr < EXACT and abs(2 * fitted.value - round(2 * fitted.value)) < EXACT:
        return fitted
    sizes = np.array([max(use.sizes.get(int(w), 1), 1) for w in logs.widths], dtype=float)
    x = np.log2(logs.widths.astype(float))
    share = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    known = math.sqrt(float((share**2 / (2 * sizes)).sum()) / len(logs.seeds)) / math.log(2)
    stderr = max(known, 0.0 if math.isnan(fitted.stderr) else fitted.stderr)
    return Exponent(fitted.value, stderr, fitted.value - 2 * stderr, fitted.value + 2 * stderr)


def _nearer(aligned: Exponent, spectral: Exponent, own: Exponent, flat: Array) -> Exponent:
    """The response from the parameter's own side: from its spectral norm where its singular values are alike.

    Where they are so at some widths alone (a probe limits the rank at others), the size of the update bends: then it
    is the one that its effect on its own input agrees with.
    """
    if not spectral.known or not flat.any():
        return aligned
    if flat.all() or not own.known:
        return spectral if flat[-1] else aligned
    return min(aligned, spectral, key=lambda fitted: abs(fitted.value - own.value))


def _flat_spectra(logs: Logs, steps: Array, fan_in: Array, fan_out: Array) -> NDArray[np.bool_]:
    """Whether an update's singular values are alike, as Muon's can be: its stable rank is a share of the full one.

    Returns:
        (use, width).

    The stable rank of a matrix is (Frobenius norm / spectral norm) ** 2, between 1 and the smaller of its sizes.
    """
    frobenius = logs.at(Quantity.WEIGHT_UPDATE, steps) + (fan_in + fan_out) / 2
    rank = 2 * (frobenius - logs.at(Quantity.WEIGHT_UPDATE_NORM, steps))
    # (a, b) independent coordinates: the norms are sqrt(a b) and about sqrt(a) + sqrt(b) (Geman 1980)
    chance = (1 + 2 ** (-np.abs(fan_in - fan_out) / 2)) ** -2.0
    share = np.clip(BEYOND_CHANCE * chance, *FLAT_SPECTRUM)
    enough = np.maximum(np.minimum(fan_in, fan_out) + np.log2(share), math.log2(FLAT_RANK))
    known = np.where(np.isfinite(rank), rank, -np.inf)
    return np.asarray(np.median(known - enough, axis=1) > 0)


def _first_movement(logs: Logs, number: int) -> int:
    """The first step at which the parameter had moved in every run, by more than a decay that needs no gradient."""
    for step in logs.steps:
        change = logs.values(Quantity.WEIGHT_UPDATE, step)[number]
        gradient = logs.values(Quantity.WEIGHT_GRADIENT, max(step - 1, 0))[number]
        seen = np.isfinite(change)
        if step and seen.any() and (change[seen] > 0).all() and not (gradient[seen] == 0).all():
            return int(step)
    return 0


def _any_positive(logs: Logs, quantity: Quantity, number: int) -> bool:
    return any(bool((logs.values(quantity, step)[number] > 0).any()) for step in logs.steps)


def _rounding(logs: Logs, uses: Sequence[UseAcrossWidths]) -> list[bool]:
    """Vectors on which the loss does not depend: a key's bias, whose gradient sums to zero but for rounding."""
    largest = np.zeros(len(uses))
    for step in logs.steps:
        gradient = logs.values(Quantity.WEIGHT_GRADIENT, step)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = gradient / logs.values(Quantity.GRADIENT, step)
        known = np.where(np.isfinite(ratio), ratio, -1.0)
        largest = np.maximum(largest, known.max(axis=(1, 2)))
    vectors = [use.role in (Role.VECTOR, Role.CONSTANT) for use in uses]
    return [bool(vector and 0 < ratio < ROUNDING) for vector, ratio in zip(vectors, largest, strict=True)]


def _degrees(uses: Sequence[UseAcrossWidths]) -> Array:
    """Each use's degree; where it was not measured, that of most others."""
    known = [use.degree for use in uses if use.degree is not None]
    usual = float(np.median(known)) if known else 0.0
    return np.array([usual if use.degree is None else min(max(use.degree, 0.0), 1.0) for use in uses])
