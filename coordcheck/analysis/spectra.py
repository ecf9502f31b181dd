"""By which norm of a matrix's update its response is told: that of all coordinates, or the largest singular value.

A matrix's update acts on inputs that it is aligned with by its fan-in times the RMS of its coordinates, as a gradient
of few examples or its signs do. An orthonormal update, of full rank (Muon) or of low rank (Dion), acts by its spectral
norm. The two are one answer while the stable rank

    (Frobenius norm / spectral norm) ** 2            between 1 and the smaller of the sizes

does not depend on the width. That of orthonormal updates does; and so does that of signs of gradients of many
examples, in which chance hides the part that is aligned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordcheck.analysis.logs import UNKNOWN, Array, Exponent
from coordcheck.runs.records import BETWEEN

FLAT_RANK = 32  # a stable rank from which on singular values may count as alike, which no gradient of a tiny probe has
BEYOND_CHANCE = 1.2  # and times that of independent coordinates
ONE_SIZE = 0.01  # relative spread of update / learning rate up to which it is one number at all widths, as of signs
APART = 0.25  # distance of the two responses from which on they are two answers


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


class Spectra(NamedTuple):
    """What the updates of all uses are, as far as their norms tell."""

    flat: NDArray[np.bool_]
    """(use, width) whether the singular values are alike: the stable rank is beyond that of chance."""
    plain: NDArray[np.bool_]
    """(use,) whether it is what no orthonormal update is: a multiple of the gradient, as that of SGD, or one number
    times the learning rate at all widths, as those of Adam and of signs are."""

    @classmethod
    def of(cls, update: Update) -> Spectra:
        """What norms and sizes tell."""
        fan_in, fan_out = update.fan_in, update.fan_out
        sizes = np.broadcast_to(update.rms - update.rate, update.rms.shape)
        known = [found[np.isfinite(found)] for found in sizes]
        signs = np.array([bool(found.size and np.ptp(found) < math.log2(1 + ONE_SIZE)) for found in known])
        plain = signs | (update.degree > BETWEEN[1])
        rank = 2 * (update.rms + (fan_in + fan_out) / 2 - update.norm)
        # (a, b) independent coordinates: the norms are sqrt(a b) and about sqrt(a) + sqrt(b) (Geman 1980)
        chance = (1 + 2 ** (-np.abs(fan_in - fan_out) / 2)) ** -2.0
        nearer = (1 + chance) / 2  # to the full rank than to that of chance, as no signs and no gradients are
        share = np.where(plain[:, None, None], nearer, np.minimum(BEYOND_CHANCE * chance, nearer))
        enough = np.maximum(np.minimum(fan_in, fan_out) + np.log2(share), math.log2(FLAT_RANK))
        beyond = np.where(np.isfinite(rank), rank, -np.inf) - enough
        return cls(np.median(beyond, axis=1) > 0, plain)

    def response(self, aligned: Exponent, spectral: Exponent, own: Exponent, number: int) -> Exponent:
        """By the norm that tells it.

        Args:
            aligned: the response by the RMS of its update.
            spectral: the one by the largest singular value.
            own: that of the update's effect on its own input, which decides where neither is known to be right: where
                the update is neither plain nor flat at every width (a probe limits the rank at some).
            number: of the use.

        Returns:
            The response from the parameter's own side.
        """
        flat = self.flat[number]
        if not spectral.known or not aligned.known or (self.plain[number] and not flat.any()):
            return aligned
        if flat.all() or not own.known:
            return spectral if flat[-1] else aligned
        if not flat.any() and abs(aligned.value - spectral.value) < APART:
            return aligned
        return nearest((aligned, spectral), own)


def nearest(ways: Sequence[Exponent], measured: Exponent) -> Exponent:
    """The one that what was measured agrees with best."""
    return min(ways, key=lambda fitted: abs(fitted.value - measured.value)) if measured.known else UNKNOWN
