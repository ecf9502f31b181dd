"""Masks: coordinates that a later softmax is to make zero, and that have no scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.scales import Array

LEAST = 9e3  # of the masks in use, the smallest is -10000 beside logits
GAP = 100.0  # how far below all other coordinates a mask lies: nothing that overflows or diverges leaves a gap


def mask_of(values: Array, largest: float) -> NDArray[np.bool_] | None:
    """Which coordinates are a mask: -Inf, the lowest number of the type, -1e9 and the like, far below all others.

    Args:
        values: an array, of any shape.
        largest: the largest number of the type that the values had, beside which coordinates lie that overflow.

    Returns:
        Of the same shape; None where there is no mask, or nothing else, or NaN.

    >>> mask_of(np.array([1.0, -np.inf, -1e9, -2.0]), largest=3.4e38)
    array([False,  True,  True, False])
    >>> mask_of(np.array([1e30, -np.inf]), largest=3.4e38)
    """
    masked = np.zeros(values.shape, dtype=bool)
    while (others := values[~masked]).size and (lowest := float(others.min())) <= -LEAST:
        level = max(LEAST, math.sqrt(min(-lowest, largest)))
        if not np.abs(others[others > -level]).max(initial=0.0) <= level / GAP:
            break
        masked |= values <= -level
    return masked if masked.any() and not masked.all() else None


class Unmasked(NamedTuple):
    """An array without its mask."""

    values: Array
    """With zeros in place of the mask."""
    share: float
    """By what a mean over all is to be multiplied to be one over the coordinates that are not masked."""

    @property
    def scales(self) -> tuple[float, float]:
        """RMS and mean absolute value of what is not masked."""
        rms, mean_abs = scales.rms_and_mean_abs(self.values)
        return rms * math.sqrt(self.share), mean_abs * self.share

    def change(self, initial: Array) -> float:
        """RMS of the change of some rows from those at the start, in which a mask is zero as well."""
        return scales.rms_of_difference(scales.sampled_copy(self.values), initial) * math.sqrt(self.share)


def unmasked(values: Array, rms: float, dtype: str) -> Unmasked | None:
    """The values without their mask; None where there is none.

    Args:
        values: the array.
        rms: of all its coordinates.
        dtype: the name of the type that the values had in the model.
    """
    if rms * math.sqrt(values.size) < LEAST:  # which no coordinate reaches, then
        return None
    masked = mask_of(values, torch.finfo(getattr(torch, dtype)).max)
    if masked is None:
        return None
    return Unmasked(np.where(masked, values.dtype.type(0), values), masked.size / np.count_nonzero(~masked))


def rms_without_mask(tensor: Tensor) -> float:
    """The RMS of a tensor's coordinates that are not masked; waits for the device.

    Raises:
        NotMeasurable: as `scales.measurable`.
    """
    values = scales.measurable(tensor)
    rms = float(scales.rms_of(values))
    found = unmasked(values.cpu().numpy(), rms, str(tensor.dtype).removeprefix("torch."))
    return rms if found is None else found.scales[0]
