"""Gradients as backward left them, beside those that an optimizer was given and the updates it made of them.

Training loops clip, scale, add noise to or normalise gradients between the two; what is told here needs a norm and a
few coordinates of each gradient alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.updates.norms import norm

SAMPLED = 4096  # coordinates of a gradient that are kept
FINEST = 16  # of them, among which an update is read that is rounded elsewhere
HELD = 4  # roundings of a coordinate from which on it holds an update
ALONG = 0.99  # cosine from which on a gradient is another one times a factor, but for some noise


def gradients_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every gradient that is there, sparse ones with their zeros."""
    return {
        name: parameter.grad.to_dense() if parameter.grad.layout is not torch.strided else parameter.grad
        for name, parameter in parameters.items()
        if parameter.requires_grad and parameter.grad is not None
    }


class Arrived(NamedTuple):
    """A gradient at the end of a backward pass."""

    norm: float | Tensor
    sample: Tensor
    """(coordinates,) some of them."""

    def unscaled(self, by: float) -> Arrived:
        return self if by == 1 else Arrived(self.norm / by, self.sample / by)


def arrived(gradient: Tensor) -> Arrived:
    """What is kept of a gradient."""
    return Arrived(norm(gradient), sample(gradient).clone())


def sample(tensor: Tensor) -> Tensor:
    """The same coordinates of every tensor of a shape, at equal distances.

    >>> sample(torch.arange(10_000))[:3]
    tensor([0, 3, 6])
    """
    flat = torch.view_as_real(tensor).detach().reshape(-1) if tensor.is_complex() else tensor.detach().reshape(-1)
    return flat[:: -(-flat.numel() // SAMPLED)] if flat.numel() > SAMPLED else flat


def factor(before: Arrived, now: Tensor) -> float | Tensor:
    """|before| / |now|: 1 where one of them is zero, or no number.

    >>> factor(arrived(torch.tensor([3.0, 4.0])), torch.tensor([0.3, 0.4]))
    10.0...
    """
    size = norm(now)
    if isinstance(size, float) and isinstance(before.norm, float):
        ratio = before.norm / size if size else math.nan
        return ratio if 0 < ratio < math.inf else 1.0
    ratios = torch.as_tensor(before.norm / size)
    return torch.where(torch.isfinite(ratios) & (ratios > 0), ratios, 1.0)


def gone(before: Arrived, now: Tensor | None) -> bool:
    """Whether a gradient was let go of, or filled with zeros, as some optimizers leave it."""
    if now is None:
        return True
    kept = sample(now)
    return not bool(kept.any()) and bool(before.sample.any())


def stand_in(before: Arrived, like: Tensor) -> Tensor:
    """A tensor of the scale of a gradient that is gone."""
    return torch.ones_like(like) * (before.norm / math.sqrt(max(like.numel(), 1)))


def turned(before: Arrived, now: Tensor) -> bool:
    """Whether a gradient is no longer what it was times a factor, as where some coordinates alone were clipped.

    >>> before = arrived(torch.tensor([0.1, 0.2, 10.0]))
    >>> turned(before, torch.tensor([0.01, 0.02, 1.0])), turned(before, torch.ones(3))
    (False, True)
    """
    one, other = before.sample.double(), sample(now).to(before.sample.device).double()
    sizes = float(torch.linalg.vector_norm(one)), float(torch.linalg.vector_norm(other))
    if not all(0 < size < math.inf for size in sizes):
        return False
    return float(torch.dot(one / sizes[0], other / sizes[1])) < ALONG


def unrounded(before: Arrived, initial: Tensor, now: Tensor) -> float | None:
    """|update| / |gradient| among the coordinates that hold the update best.

    Zero where these do not, either; None where the gradient is zero at all coordinates that are known.

    A coordinate p holds a change of it to within a rounding, p times the machine's epsilon: the smallest ones hold an
    update of which the others lose most, or all.

    >>> weight, gradient = torch.linspace(-1, 1, 4001) ** 3, torch.full((4001,), 1e-9)
    >>> now = weight - gradient
    >>> round(float((now - weight).norm() / gradient.norm()), 1)
    0.7
    >>> round(unrounded(arrived(gradient), weight, now), 2)
    1.0
    """
    start, gradient = sample(initial).double(), before.sample.double()
    told = torch.nonzero(gradient).flatten()
    if not told.numel():
        return None
    finest = told[start[told].abs().argsort()[:FINEST]]
    change = sample(now).double()[finest] - start[finest]
    moved, size = (float(scales.rms(tensor)) for tensor in (change, start[finest]))
    if moved < HELD * torch.finfo(initial.dtype).eps * size:
        return 0.0
    return moved / float(scales.rms(gradient[finest]))
