"""Norms of gradients and updates, and the numbers of coordinates that they are over; nothing waits for a device."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from coordcheck.recording import scales

COUNTED = 2**18  # coordinates of a gradient among which those that are not zero are counted
SMALLEST = torch.finfo(torch.float32).tiny
POWER_STEPS = 3  # of the power iteration; updates on a tiny batch have few large singular values


def nonzero(gradient: Tensor, *, some_rows: bool) -> float | Tensor:
    """How many coordinates of a gradient are not zero; of a large one, counted on some of its rows where these tell."""
    rows = gradient[:: -(-gradient.numel() // COUNTED)] if some_rows and gradient.numel() > COUNTED else gradient
    if rows.device.type in scales.IN_MEMORY and rows.dtype in (torch.float32, torch.float64):
        count: float | Tensor = float(np.count_nonzero(rows.detach().numpy() != 0))  # five times as fast as torch's
    else:
        count = torch.count_nonzero(rows).double()
    return count * (gradient.numel() / max(rows.numel(), 1))


def larger(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """Of two numbers of coordinates."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.maximum(one, other)
    return max(one, other)


def root(count: float | Tensor, otherwise: int = 1) -> float | Tensor:
    """The square root of a number of coordinates, or of another where none was counted."""
    if isinstance(count, Tensor):
        return torch.where(count > 0, count, float(max(otherwise, 1))).sqrt()
    return math.sqrt(count or max(otherwise, 1))


def spectral_norm(matrix: Tensor) -> float | Tensor:
    """The largest singular value, by power iteration; on a device a scalar that stays there, which is not waited for.

    >>> round(float(spectral_norm(torch.diag(torch.tensor([3.0, 1.0])))), 3)
    3.0
    """
    if matrix.is_complex():  # as a real matrix that acts on real and imaginary parts
        real, imaginary = matrix.real, matrix.imag
        matrix = torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
    matrix = matrix.float()
    if matrix.device.type in scales.IN_MEMORY:  # where each of numpy's many small operations takes half the time
        return _iterated(matrix.detach().numpy())
    vector = _start(matrix.shape[1], matrix.device)
    for _ in range(POWER_STEPS):
        for side in (matrix, matrix.T):  # each by itself: the squares of a small update vanish
            vector = side @ (vector / _length(vector).clamp(min=SMALLEST))  # a matrix of zeros stays one
    return _length(matrix @ (vector / _length(vector).clamp(min=SMALLEST)))


@np.errstate(all="ignore")
def _iterated(matrix: scales.Array) -> float:
    vector = _start(matrix.shape[1], torch.device("cpu")).numpy()
    for _ in range(POWER_STEPS):
        for side in (matrix, matrix.T):
            vector = side @ (vector / max(_length_of(vector), SMALLEST))
    return _length_of(matrix @ (vector / max(_length_of(vector), SMALLEST)))


def _length_of(vector: scales.Array) -> float:
    largest = float(np.abs(vector).max(initial=0.0))
    vector = vector / max(largest, SMALLEST)
    return math.sqrt(vector @ vector) * largest


def _length(vector: Tensor) -> Tensor:
    """|vector|, of squares that neither overflow nor vanish."""
    largest = vector.abs().amax()
    return torch.linalg.vector_norm(vector / largest.clamp(min=SMALLEST)) * largest


@lru_cache(maxsize=256)
def _start(size: int, device: torch.device) -> Tensor:
    return (1 + torch.arange(size) % 7).float().to(device)


def total(tensor: Tensor) -> float | Tensor:
    """sum(|x|), NaN of what has none."""
    try:
        values = scales.measurable(tensor)
        if values.device.type in scales.IN_MEMORY:
            return scales.rms_and_mean_abs(values.numpy())[1] * tensor.numel()
        return scales.mean_abs(values) * tensor.numel()
    except scales.NotMeasurable:
        return math.nan


def norm(tensor: Tensor) -> float | Tensor:
    """sqrt(sum(x ** 2)), NaN of what has none."""
    try:
        return scales.norm(scales.measurable(tensor))
    except scales.NotMeasurable:
        return math.nan
