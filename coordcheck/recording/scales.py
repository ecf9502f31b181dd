"""Tensor -> scale: one number in the tensor's own units.

Of arrays in memory the statistics are computed at once, by BLAS. Of tensors on a device they are tensors that stay
there; like torch's own reductions, those functions take the `dim` to reduce over, so that stacks are reduced together.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas
from torch import Tensor

from coordcheck.runs.words import Status

# Rows of a large output on which its change is followed, the same rows at every step and width. 64 rows of 64
# channels are 4096 coordinates, whose RMS has a standard error near 1 % (1 / sqrt(2 n) when independent).
SAMPLED_ROWS = 64
SAMPLED_COORDINATES = 2**12
FEWEST_ROWS, FEWEST_EXAMPLES = 16, 4  # of what single parameters act on: examples where they act on whole ones
IN_MEMORY = {"cpu"}  # device types whose scales are computed at once: there is nothing to wait for
# Coordinates summed in their own precision, whose sums are added in double. In whatever order a machine's BLAS adds k
# numbers of one sign in float32, each rounding is at most 2**-24 of the sum and none goes through more than k - 1 of
# them (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 4.2): a sum is within 2**-12 of the
# exact one, an RMS within 2**-13. They stay in the cache, and BLAS starts no threads for so few.
PIECE = 2**12
UNDERFLOW = 2.0**-100  # mean square below which squares may have vanished in float32


Array = NDArray[np.floating[Any]]


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
    if type(tensor) is Tensor and tensor.dtype is torch.float32 and tensor.is_cpu and _is_plain(tensor):
        return tensor.detach()
    if tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
        raise NotMeasurable(Status.UNSUPPORTED)
    tensor = tensor.detach()
    if tensor.dtype is not torch.float32 or tensor.layout is not torch.strided or tensor.is_nested:
        tensor = _converted(tensor)
    if tensor.numel() == 0:
        raise NotMeasurable(Status.EMPTY)
    return tensor


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and tensor.numel() > 0


def _converted(tensor: Tensor) -> Tensor:
    try:
        if tensor.is_quantized:
            return tensor.dequantize()
        if tensor.is_nested:
            tensor = torch.cat([part.reshape(-1) for part in tensor.unbind()])
        elif tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_complex():
            tensor = tensor.abs()
        if not tensor.is_floating_point():
            raise NotMeasurable(Status.INTEGER)
        return tensor if tensor.dtype is torch.float64 else tensor.float()
    except (RuntimeError, NotImplementedError) as error:
        raise NotMeasurable(Status.UNSUPPORTED) from error


def rms(values: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Root mean square: sqrt(mean(x ** 2)) over `dim`, all coordinates by default.

    Squares are summed in the tensor's own float32 or float64: a scale above 1e19 reads as Inf in float32, one below
    1e-22 as zero.

    >>> rms(torch.tensor([3.0, -4.0])).item()
    3.5355339...
    """
    norm = torch.linalg.vector_norm(values, dim=dim)
    return norm / math.sqrt(values.numel() / norm.numel())


def norm(values: Tensor) -> float | Tensor:
    """sqrt(sum(x ** 2)) over all coordinates: a number of a tensor in memory, on a device a tensor that stays there.

    In memory by BLAS, in pieces so small that no machine's order of summation tells: torch's own reduction loses 2 % of
    2**24 equal squares. Squares neither overflow nor vanish there.

    >>> norm(torch.tensor([3.0, -4.0])), round(norm(torch.tensor([3e30, -4e30])) / 1e30, 6)
    (5.0, 5.0)
    """
    if values.device.type not in IN_MEMORY or values.dtype not in (torch.float32, torch.float64):
        return torch.linalg.vector_norm(values)
    flat = values.detach().reshape(-1).numpy()
    return _root(flat, _squares(flat))


def _squares(flat: Array) -> float:
    """sum(x ** 2), as far as it fits the array's own precision."""
    dot = _BLAS[flat.dtype.char][0]
    pieces = (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))
    return sum((float(dot(piece, piece)) for piece in pieces), 0.0)


def _root(flat: Array, squares: float) -> float:
    """The square root of the sum of an array's squares, which are summed again where they do not fit its precision."""
    if UNDERFLOW * flat.size < squares < math.inf:
        return math.sqrt(squares)
    largest = float(np.abs(flat).max(initial=0.0))
    if not 0 < largest < math.inf:  # NaN and Inf stay what they are
        return largest
    pieces = (flat[start : start + PIECE].astype(np.float64) / largest for start in range(0, flat.size, PIECE))
    return largest * math.sqrt(sum(_squares(piece) for piece in pieces))


def rms_of(tensor: Tensor) -> float | Tensor:
    """The RMS of a tensor of any kind: a number of one in memory, on a device a tensor that stays there.

    Raises:
        NotMeasurable: as `measurable`.

    >>> rms_of(torch.tensor([3.0, -4.0], dtype=torch.bfloat16))
    3.5355339...
    """
    values = measurable(tensor)
    return norm(values) / math.sqrt(values.numel())


def mean_abs(values: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean absolute coordinate, the "l1" of Yang et al. 2022 (arXiv:2203.03466, appendix D.1).

    For a Gaussian of standard deviation s it is s * sqrt(2 / pi).

    >>> mean_abs(torch.tensor([3.0, -4.0])).item()
    3.5
    """
    # abs().mean() is vectorised where vector_norm(x, 1) is not: 12 us against 46 us on 65 536 floats
    return values.abs().mean(dim=dim)


def rms_and_mean_abs(values: Array) -> tuple[float, float]:
    """Both scales of an array in memory, by BLAS, piece by piece: each piece is read twice from the cache.

    Three times as fast as torch's reductions on 131 072 floats (they write |x| to memory), and within 2**-13 and 2**-12
    of the exact ones on every machine: a single float32 sum of 2**24 equal squares is off by 1 %.

    >>> rms_and_mean_abs(np.array([3.0, -4.0, 0.0, 0.0]))
    (2.5, 1.75)
    """
    squares = absolutes = 0.0
    dot, asum, _ = _BLAS[values.dtype.char]
    flat = values.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        squares += dot(piece, piece)
        absolutes += asum(piece)
    if absolutes == math.inf:  # of a piece whose sum float32 does not hold, or of Inf
        absolutes = float(np.abs(flat).sum(dtype=np.float64))
    return _root(flat, squares) / math.sqrt(flat.size), absolutes / flat.size


def rms_of_difference(values: Array, initial: Array) -> float:
    """RMS of values - initial, which takes the place of the values.

    >>> rms_of_difference(np.array([4.0, 0.0]), np.array([1.0, 4.0]))
    3.5355339...
    """
    dot, _, add = _BLAS[values.dtype.char]
    flat, before = values.reshape(-1), initial.reshape(-1)
    squares = 0.0
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        add(before[start : start + PIECE], piece, a=-1.0)  # in place; Inf - Inf is a value like another here
        squares += dot(piece, piece)
    return _root(flat, squares) / math.sqrt(flat.size)


_BLAS = {"f": (blas.sdot, blas.sasum, blas.saxpy), "d": (blas.ddot, blas.dasum, blas.daxpy)}


@lru_cache(maxsize=4096)
def row_index(shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """The rows of a (..., C) tensor on which its change is followed: (rows,) indices, None when it is small.

    They depend on the shape alone: the same rows are followed at every step, and at every width of 64 or more.
    Along each axis they are spread so that an axis of up to as many entries as there are rows is visited whole,
    all channels of a channels-first tensor included.

    >>> row_index((2, 1000, 64))[:4]
    array([   0, 1015, 1031,   46])
    """
    *leading, size = shape or (1,)
    keep = max(SAMPLED_ROWS, SAMPLED_COORDINATES // size)
    if math.prod(leading) <= keep:
        return None
    number = np.arange(keep)
    rows, cycle = np.zeros_like(number), 1
    for length in leading:
        if length <= keep:
            cycle = math.lcm(cycle, length)
            index = (number + number // cycle) % length  # shifted once a cycle, so that pairs of axes decouple
        else:
            index = number * length // keep
        rows = rows * length + index
    return rows


@lru_cache(maxsize=4096)
def _row_index_on(shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    index = row_index(shape)
    return None if index is None else torch.from_numpy(index).to(device)


def sample_rows(values: Tensor, *, stacked: bool = False) -> Tensor:
    """A fixed subset of a large tensor's rows, the whole tensor when it is small: (..., C) -> (rows, C).

    Args:
        values: the tensor, or several of one shape along the first axis when `stacked`.
        stacked: sample each of them: (n, ..., C) -> (n, rows, C).

    >>> sample_rows(torch.zeros(8, 1024, 256)).shape
    torch.Size([64, 256])
    """
    shape = tuple(values.shape[stacked:])
    index = _row_index_on(shape, values.device)
    if index is None:
        return values
    return values.reshape(*values.shape[:stacked], -1, shape[-1]).index_select(int(stacked), index)


def sample_entries(values: Tensor, axes: int, of: torch.Size | None = None) -> Tensor:
    """A few entries of a large tensor along its first `axes` axes taken together, itself when it is small.

    They depend on the shape alone, or on that of another tensor whose entries they belong to. 16 rows of 256 channels
    are 4096 coordinates.

    >>> sample_entries(torch.zeros(8, 1024, 256), 2).shape, sample_entries(torch.zeros(8, 1024, 256), 1).shape
    (torch.Size([16, 256]), torch.Size([4, 1024, 256]))
    """
    index = _entries_of(values.shape if of is None else of, axes, values.device)
    if index is None:
        return values
    if values.is_contiguous():
        return values.flatten(0, axes - 1).index_select(0, index)
    return values[torch.unravel_index(index, values.shape[:axes])]  # flattened, the whole would be copied


@lru_cache(maxsize=1024)
def _entries_of(shape: tuple[int, ...], axes: int, device: torch.device) -> Tensor | None:
    """One place in each of some equal stretches, at no fixed distance: positions in a sequence are all visited."""
    leading, size = math.prod(shape[:axes]), math.prod(shape[axes:])
    keep = max(FEWEST_ROWS if axes >= len(shape) - 1 else FEWEST_EXAMPLES, SAMPLED_COORDINATES // max(size, 1))
    if leading <= keep:
        return None
    golden = (np.arange(keep) * 0.6180339887) % 1
    return torch.from_numpy(((np.arange(keep) + golden) * (leading / keep)).astype(np.int64)).to(device)


def sampled_copy(values: Array) -> Array:
    """A copy of the rows that `sample_rows` takes, of an array in memory."""
    index = row_index(values.shape)
    return values.copy() if index is None else values.reshape(-1, values.shape[-1]).take(index, axis=0)
