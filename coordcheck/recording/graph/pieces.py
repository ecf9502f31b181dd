"""Some of the channels that a matrix makes, where these are taken apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Some of the channels that a matrix makes: `start`, and from there on along each axis."""

    start: int
    axes: tuple[tuple[int, int], ...]
    """(size, stride) of each, the outermost first; such that lie side by side are one."""

    @property
    def size(self) -> int:
        return math.prod(size for size, _ in self.axes)

    def of(self, tensor: Tensor, first: int, count: int = 1) -> Tensor:
        """Its part of a tensor, of which `count` axes from `first` on, counted from the end, are the channels."""
        whole = tensor if count == 1 else tensor.flatten(first, first + count - 1)
        axis = first + count - 1
        if len(self.axes) == 1 and self.axes[0][1] == 1:
            return whole.narrow(axis, self.start, self.size)
        return whole.index_select(axis, self.places().to(tensor.device))

    def places(self) -> Tensor:
        """The channels by number."""
        places = torch.tensor([self.start])
        for size, stride in self.axes:
            places = (places[:, None] + stride * torch.arange(size)).flatten()
        return places
