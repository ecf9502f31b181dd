"""Tensor -> scale: the statistics, as 0-d tensors that stay on the tensor's device.

A scale is one number in the tensor's own units. Each function here launches one reduction and
returns it with the factor that turns it into the scale, so that a recorder can bring many of
them over at once instead of waiting for the device at every layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from coordcheck.records import Status

# Coordinates of a layer's output on which its change is followed: enough for a standard error of
# the RMS below 1 % (1 / sqrt(2 n) for independent coordinates), small enough to keep at every layer.
SAMPLED_COORDINATES = 2**14
SAMPLED_ROWS = 64


class Scale(NamedTuple):
    """A scale that is still on its device: `factor` times the 0-d tensor `reduction`."""

    reduction: Tensor
    factor: float

    def item(self) -> float:
        """The scale as a float; waits for the device."""
        return float(self.reduction) * self.factor


class NotMeasurable(Exception):
    """Internal: a tensor without a scale; `status` says why."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.value)
        self.status = status


def measurable(tensor: Tensor) -> Tensor:
    """The tensor's values, detached, dense and real, in float32 or float64.

    Half precision is widened before any square is taken (float16 overflows at 256 squared);
    complex values become their modulus; sparse tensors are filled with their zeros.

    Raises:
        NotMeasurable: integer, boolean, empty or unreadable tensors.
    """
    tensor = tensor.detach()
    if tensor.dtype is not torch.float32 or tensor.layout is not torch.strided or tensor.is_quantized:
        tensor = _converted(tensor)
    if tensor.numel() == 0:
        raise NotMeasurable(Status.EMPTY)
    if tensor.device.type == "meta":
        raise NotMeasurable(Status.UNSUPPORTED)
    return tensor


def _converted(tensor: Tensor) -> Tensor:
    try:
        if tensor.is_quantized:
            return tensor.dequantize()
        if tensor.layout is torch.jagged:
            tensor = tensor.values()
        elif tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_complex():
            tensor = tensor.abs()
        if not tensor.is_floating_point():
            raise NotMeasurable(Status.INTEGER)
        return tensor if tensor.dtype is torch.float64 else tensor.float()
    except (RuntimeError, NotImplementedError) as error:
        raise NotMeasurable(Status.UNSUPPORTED) from error


def rms(values: Tensor) -> Scale:
    """Root mean square over all coordinates: sqrt(mean(x ** 2)).

    >>> rms(torch.tensor([3.0, -4.0])).item() == math.sqrt(12.5)
    True
    """
    return Scale(torch.linalg.vector_norm(values), 1.0 / math.sqrt(values.numel()))


def mean_abs(values: Tensor) -> Scale:
    """Mean absolute coordinate, the "l1" of Yang et al. 2022 (arXiv:2203.03466, appendix D.1).

    For a Gaussian of standard deviation s it is s * sqrt(2 / pi).

    >>> mean_abs(torch.tensor([3.0, -4.0])).item()
    3.5
    """
    # abs().sum() is vectorised where vector_norm(x, 1) is not: 12 us against 46 us on 65 536 floats
    return Scale(values.abs().sum(), 1.0 / values.numel())


def rms_change(values: Tensor, reference: Tensor) -> Scale:
    """Root mean square of `values - reference`, two tensors of one shape.

    >>> rms_change(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0])).item() == 3 / math.sqrt(2)
    True
    """
    return Scale(torch.dist(values, reference), 1.0 / math.sqrt(values.numel()))


def sample_rows(values: Tensor) -> Tensor:
    """A fixed subset of a large tensor's rows, the whole tensor when it is small: (..., C) -> (rows, C).

    Which rows depends on the shape alone, so the same rows are followed at every step. The stride
    is odd: with sizes that are powers of two it visits every channel and position of a
    channels-first tensor, too.

    >>> sample_rows(torch.zeros(8, 1024, 256)).shape
    torch.Size([64, 256])
    """
    count = values.numel()
    if count <= SAMPLED_COORDINATES:
        return values
    size = values.shape[-1]
    keep = max(SAMPLED_ROWS, SAMPLED_COORDINATES // size)
    stride = -(-(count // size) // keep)
    stride += stride > 1 and stride % 2 == 0
    return values.reshape(-1, size)[::stride]
