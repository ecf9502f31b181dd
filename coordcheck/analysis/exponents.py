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
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordcheck.analysis.clipping import Clipping, clipping
from coordcheck.analysis.logs import UNKNOWN, Array, Exponent, Logs
from coordcheck.analysis.movements import Stillness, first_movement
from coordcheck.analysis.roles import GROWS, UseAcrossWidths
from coordcheck.analysis.scalars import scalars_of
from coordcheck.analysis.spectra import Spectra, Update, agreeing
from coordcheck.runs.words import Quantity, Role, Through

EXACT = 1e-6  # error of a fitted exponent below which it has no noise


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
    """In every run that gave it a gradient, at some step."""
    frozen: bool
    """Whether updates followed its gradients, and moved it in no run."""
    has_gradient: bool
    not_finite: bool
    faint: str = ""
    """Why no gradient of it could move it, where it has one at most that its precision loses."""
    shrinking: Exponent = UNKNOWN
    """Of the update beside learning rate times gradient, under an optimizer of degree 1."""
    clipped: tuple[int, ...] = ()
    """The widths at which it is shrunk, where it is not at others; the exponents are without that."""
    on_batch: Exponent = UNKNOWN
    """Growth on the whole batch under an optimizer that looks at whole matrices: by its first update, or by several of
    a sum over a growing axis."""
    first_on_batch: Exponent = UNKNOWN
    """The same by its first update, of all."""
    even: bool = False
    """Whether all coordinates of the weight's update are of about one size, as those of signs."""

    @property
    def alignment(self) -> float:
        return 1 + self.response.value - self.response_weight.value


def exponents(table: pd.DataFrame, uses: Sequence[UseAcrossWidths]) -> dict[str, Exponents]:
    """The exponents of every use of one label: the formulas at the top of this module, and their fits.

    Args:
        table: the label's rows of `measurements`.
        uses: its uses.

    Returns:
        The exponents by the use's name; those that could not be measured are NaN.
    """
    if not uses:
        return {}
    logs = Logs(table, uses)
    terms = _Terms.of(logs, uses)
    fits = {name: logs.fit(values) for name, values in _formulas(terms).items()}
    still = Stillness.of(logs, uses)
    frobenius, rates = logs.at(Quantity.WEIGHT_UPDATE, terms.first), logs.of([use.rates for use in uses])
    absolute = logs.at(Quantity.WEIGHT_UPDATE_ABS, terms.first)
    spectra = Spectra.of(Update(frobenius, terms.dp_norm, terms.fan_in, terms.fan_out, rates, terms.degree, absolute))
    result = {}
    for number, use in enumerate(uses):
        own = {name: fitted[number] for name, fitted in fits.items()}
        aligned, independent, spectral = (own.pop(name) for name in ("aligned", "independent", "spectral"))
        if use.role is not Role.ATTENTION and use.through is Through.ITSELF:
            own["gain_weight"] = _sampled(own["gain_weight"], use, logs)
        even = bool(spectra.even[number])
        if use.through is Through.ITSELF or even:
            own["response_weight"] = spectra.response(aligned, spectral, own["response"], number)
        else:  # one row's size alone, or a product of two factors, is not aligned with the input as a matrix is
            own["response_weight"] = agreeing((aligned, independent), own["response"])
        result[use.name] = Exponents(
            **own,
            degree=float(terms.degree[number]),
            step=int(terms.first[number]),
            zero_init=not (logs.values(Quantity.WEIGHT)[number] > 0).any(),
            moved=bool(terms.first[number]),
            frozen=still.frozen[number],
            has_gradient=still.has_gradient[number],
            faint=still.faint[number],
            not_finite=use.name in logs.not_finite,
            clipped=terms.clips[number].widths,
            even=even,
        )
    return result


class _Terms(NamedTuple):
    """What the formulas are made of: log2 of scales and sizes, (use, seed, width) or what broadcasts to it."""

    degree: Array
    """(use,) the optimizer's degree in the gradient."""
    first: NDArray[np.int_]
    """(use,) the first update at which the parameter had moved."""
    clips: list[Clipping]
    x: Array
    h: Array
    inherited: Array
    own: Array
    """Own update at step `first`, without what shrinks all updates at some widths."""
    delta: Array
    """dL/dh, one step before."""
    p: Array
    dp: Array
    """The parameter's update, without what shrinks it."""
    dp_norm: Array
    """Its spectral norm."""
    g: Array
    m: Array
    fan_in: Array
    fan_out: Array
    shrinking: Array
    """The update beside learning rate times gradient."""
    on_batch: Array
    """Own update on the whole batch, beside its input."""
    first_on_batch: Array

    @classmethod
    def of(cls, logs: Logs, uses: Sequence[UseAcrossWidths]) -> _Terms:
        degree = _degrees(uses)
        first = np.array([first_movement(logs, number) for number in range(len(uses))])
        start, before = np.zeros(len(uses), dtype=int), np.maximum(first - 1, 0)
        dp, g = logs.at(Quantity.WEIGHT_UPDATE, first), logs.at(Quantity.WEIGHT_GRADIENT, before)
        itself = np.array([use.through is Through.ITSELF for use in uses])
        linear = ((np.round(degree) > 0) & itself)[:, None, None]
        shrinking = np.where(linear, dp - g - logs.of([use.rates for use in uses]), np.nan)
        clips = [clipping(factors, logs.widths) for factors in 2**shrinking]
        clipped = np.log2([clip.factors for clip in clips])
        whose = scalars_of(logs, uses)
        summed = np.array([use.fan_in > GROWS for use in uses])
        of_batch = whose.behind - whose.before
        attention = np.array([use.role is Role.ATTENTION for use in uses])[:, None, None]
        return cls(
            degree=degree,
            first=first,
            clips=clips,
            x=logs.at(Quantity.INPUT, start) + whose.before,
            h=logs.at(Quantity.OUTPUT, start) + whose.behind,
            inherited=logs.at(Quantity.INHERITED, first),
            own=logs.at(Quantity.OWN_UPDATE, first) - clipped + whose.behind,
            delta=logs.at(Quantity.GRADIENT, before) - whose.behind,
            p=np.where(attention, whose.met, logs.at(Quantity.WEIGHT, start)),
            dp=dp - clipped,
            dp_norm=logs.at(Quantity.WEIGHT_UPDATE_NORM, first),
            g=g,
            m=logs.of([use.multipliers for use in uses]) - whose.before + whose.behind,
            fan_in=logs.of([use.fan_ins for use in uses]),
            fan_out=logs.of([use.fan_outs for use in uses]),
            shrinking=shrinking,
            on_batch=logs.first_or_last(Quantity.BATCH_UPDATE, summed) + of_batch,
            first_on_batch=logs.first_or_last(Quantity.BATCH_UPDATE, np.zeros_like(summed)) + of_batch,
        )


def _formulas(terms: _Terms) -> dict[str, Array]:
    """What is fitted, by name: the logarithms of the formulas at the top of this module, in their letters."""
    x, h, own, m, dp = terms.x, terms.h, terms.own, terms.m, terms.dp
    through_output = _times(terms.degree, terms.delta + x)
    through_parameter = _times(terms.degree, terms.g - m)
    return {
        "gain": h - x,
        "gain_weight": m + terms.fan_in / 2 + terms.p,
        "response": own - x - through_output,
        "aligned": m + terms.fan_in + dp - through_parameter,
        "independent": m + terms.fan_in / 2 + dp - through_parameter,
        "spectral": m + (terms.fan_in - terms.fan_out) / 2 + terms.dp_norm - through_parameter,
        "growth": own - x,
        "inherited": terms.inherited - x,
        "output": h,
        "shrinking": terms.shrinking,
        "on_batch": terms.on_batch,
        "first_on_batch": terms.first_on_batch,
    }


def _times(degree: Array, logs: Array) -> Array:
    """log2 of a scale to the power k, the nearest whole degree; of degree 0 it need not be known."""
    k = np.round(degree)[:, None, None]
    return np.where(k == 0, 0.0, k * logs)


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


def _degrees(uses: Sequence[UseAcrossWidths]) -> Array:
    """Each part's degree; where it was not measured, that of most others."""
    known = [use.degree for use in uses if use.degree is not None]
    usual = float(np.median(known)) if known else 0.0
    return np.array([usual if use.degree is None else min(max(use.degree, 0.0), 1.0) for use in uses])
