"""By which norm of a matrix's update its response is told: that of all coordinates, or the largest singular value.

A matrix's update acts on inputs that it is aligned with by its fan-in times the RMS of its coordinates, as a gradient
of few examples or its signs do. An orthonormal update, of full rank (Muon) or of low rank (Dion), acts by its spectral
norm. The two are one answer while the stable rank

    (Frobenius norm / spectral norm) ** 2            between 1 and the smaller of the sizes

does not depend on the width. That of orthonormal updates does; and so does that of signs of gradients of many
examples, in which chance hides the part that is aligned. Where neither of the norms is known to tell, that which
agrees with the update's measured effect on its own input does, or else that effect itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordcheck.analysis.deviations import nearest_half
from coordcheck.analysis.logs import UNKNOWN, Array, Exponent
from coordcheck.runs.records import BETWEEN, SIGNS

FLAT_RANK = 32  # a stable rank from which on singular values may count as alike, which no gradient of a tiny probe has
BEYOND_CHANCE = 1.2  # and times that of independent coordinates
EVEN = 0.95  # mean absolute coordinate / RMS of signs without their part along a row, as a weight norm leaves them
ONE_SIZE = 0.01  # relative spread of update / learning rate up to which it is one number at all widths, as of signs
APART = 0.25  # distance of the two responses from which on they are two answers
ERRORS = 2  # of what was measured, within which a response agrees with it, and by which it is nearer than another
CLEAN = 0.05  # distance from a multiple of 1/2 up to which a norm's exponent is one
CLOSE = 0.15  # distance up to which a response agrees with what was measured, however exact that is


class Update(NamedTuple):
    """log2 of norms and sizes, (use, seed, width) or what broadcasts to it."""

    rms: Array
    norm: Array
    """The largest singular value."""
    fan_in: Array
    fan_out: Array
    rate: Array
    """The learning rate."""
    degree: Array
    """(use,) the power of the gradient that it is; not a log."""
    mean_abs: Array
    """Mean absolute coordinate."""


class Spectra(NamedTuple):
    """What the updates of all uses are, as far as their norms tell."""

    flat: NDArray[np.bool_]
    """(use, width) whether the singular values are alike: the stable rank is beyond that of chance."""
    plain: NDArray[np.bool_]
    """(use,) whether it is what no orthonormal update is: a multiple of the gradient, as that of SGD, or of signs, as
    Adam's first one. Where the coordinates' mean size is not known, signs are told by one RMS / learning rate at all
    widths."""
    even: NDArray[np.bool_]
    """(use,) whether all coordinates are known to be of about one size, as those of signs under a weight norm."""

    @classmethod
    def of(cls, update: Update) -> Spectra:
        """What norms and sizes tell."""
        fan_in, fan_out = update.fan_in, update.fan_out
        sizes = np.broadcast_to(update.rms - update.rate, update.rms.shape)
        known = [found[np.isfinite(found)] for found in sizes]
        signs = np.array([bool(found.size and np.ptp(found) < math.log2(1 + ONE_SIZE)) for found in known])
        evenness = update.mean_abs - update.rms
        told = np.isfinite(evenness).sum(axis=(1, 2))
        above = {share: (evenness > math.log2(share)).sum(axis=(1, 2)) == told for share in (SIGNS, EVEN)}
        plain = np.where(told > 0, above[SIGNS], signs) | (update.degree > BETWEEN[1])
        rank = 2 * (update.rms + (fan_in + fan_out) / 2 - update.norm)
        # (a, b) independent coordinates: the norms are sqrt(a b) and about sqrt(a) + sqrt(b) (Geman 1980)
        chance = (1 + 2 ** (-np.abs(fan_in - fan_out) / 2)) ** -2.0
        nearer = (1 + chance) / 2  # to the full rank than to that of chance, as no signs and no gradients are
        share = np.where(plain[:, None, None], nearer, np.minimum(BEYOND_CHANCE * chance, nearer))
        enough = np.maximum(np.minimum(fan_in, fan_out) + np.log2(share), math.log2(FLAT_RANK))
        beyond = np.where(np.isfinite(rank), rank, -np.inf) - enough
        return cls(np.median(beyond, axis=1) > 0, plain, (told > 0) & above[EVEN])

    def response(self, aligned: Exponent, spectral: Exponent, own: Exponent, number: int) -> Exponent:
        """By the norm that tells it.

        Args:
            aligned: the response by the RMS of its update.
            spectral: the one by the largest singular value.
            own: that of the update's effect on its own input, with which one of them must agree where neither is known
                to be right: where the update is neither plain nor flat at every width (a probe limits the rank at
                some).
            number: of the use.

        Returns:
            The response from the parameter's own side.
        """
        flat = self.flat[number]
        if not spectral.known or not aligned.known or (self.plain[number] and not flat.any()):
            return aligned
        if flat.all() or not own.known:
            return spectral if flat[-1] else aligned
        return agreeing((aligned, spectral), own)


def agreeing(ways: Sequence[Exponent], measured: Exponent) -> Exponent:
    """The way that agrees with what was measured, but for noise, and better than the others; else what was measured.

    Of ways that are one answer, the most exact. What was measured between the ways ends where they do. A way that is
    no multiple of 1/2 tells no more than what was measured, which may still be on its way to one that is.
    """
    known = [way for way in ways if way.known]
    if not measured.known or not known:
        return UNKNOWN
    noise = ERRORS * measured.stderr if measured.stderr > 0 else 0.0
    nearest = min(known, key=lambda way: abs(way.value - measured.value))
    away = abs(nearest.value - measured.value)
    alike = [way for way in known if abs(way.value - nearest.value) < APART]
    others = [abs(way.value - measured.value) for way in known if way not in alike]
    if away < max(noise, CLOSE) and min(others, default=math.inf) - away > noise:
        clean = [way for way in known if abs(way.value - nearest_half(way.value)) < CLEAN]
        if not clean or any(way in alike for way in clean):
            return min(alike, key=lambda way: way.stderr)
        low, high = min(way.value for way in clean), max(way.value for way in clean)
        return measured._replace(low=min(measured.low, low), high=max(measured.high, high))
    least, most = min(way.low for way in known), max(way.high for way in known)
    if not least <= measured.value <= most:
        return measured
    return measured._replace(low=max(measured.low, least), high=min(measured.high, most))
