"""Copies of parameters' values, and differences of two: in one layout, so that views of them have the same places."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def initial_values(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every parameter, with its strides."""
    return {name: laid_out(p.detach().clone(), p) for name, p in parameters.items()}


def laid_out(values: Tensor, like: Tensor) -> Tensor:
    """The values with the strides of another tensor, in which the places of its views are known."""
    if values.layout is not torch.strided or like.layout is not torch.strided or values.stride() == like.stride():
        return values
    if any(stride == 0 and size > 1 for stride, size in zip(like.stride(), like.shape, strict=True)):  # expanded
        return values
    made = torch.empty_strided(like.shape, like.stride(), dtype=values.dtype, device=values.device)
    return made.copy_(values)


class Scratch:
    """Memory for one difference at a time, which the next one takes over: fresh memory costs more than the sum."""

    def __init__(self) -> None:
        self._held = torch.empty(0)

    def difference(self, now: Tensor, initial: Tensor) -> Tensor:
        """The difference of two tensors of one layout, laid out like them."""
        size = now.numel()
        alike = now.dtype == initial.dtype and now.layout is initial.layout is torch.strided
        if not (alike and now.is_contiguous() and initial.is_contiguous()):
            return laid_out(now - initial, initial)
        if self._held.numel() < size or (self._held.dtype, self._held.device) != (now.dtype, now.device):
            self._held = torch.empty_like(now).flatten()
        return torch.sub(now, initial, out=self._held[:size].view(now.shape))
