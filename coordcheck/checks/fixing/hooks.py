"""Hooks that multiply what a module takes or gives. They are plain values: copies and pickles of a model keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class TimesInput(NamedTuple):
    """A forward pre-hook: the module takes its first argument times a number."""

    factor: float
    before: bool = True

    def __call__(self, module: nn.Module, args: Any) -> Any:
        return (args[0] * self.factor, *args[1:])


class TimesOutput(NamedTuple):
    """A forward hook: the module gives its output times a number."""

    factor: float
    before: bool = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return output * self.factor


class TimesChannels:
    """A forward hook: some channels of what the module gives are multiplied, others left as they are.

    Args:
        factors: of all channels: (channels,).
        axis: the last axis of the channels in the output, counted from the end.
        axes: how many axes they are.
        bias: the name of a bias in the module that is not multiplied; empty where it is, or where there is none.
    """

    before = False

    def __init__(self, factors: Tensor, axis: int, axes: int, bias: str = "") -> None:
        self.factors, self.axis, self.axes, self.bias = factors, axis, axes, bias

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        last = output.dim() - self.axis
        sizes = [size if last - self.axes < at <= last else 1 for at, size in enumerate(output.shape)]
        factors = self.factors.to(output.device, output.dtype).view(sizes)
        if not self.bias:
            return output * factors
        return output * factors + getattr(module, self.bias).view(sizes) * (1 - factors)


def places_of(numbers: Sequence[int]) -> Tensor:
    """The channels of a block by number, from its first one, and size and step of each run, the outermost first.

    >>> places_of((4, 2, 8, 3, 1))
    tensor([ 4,  5,  6, 12, 13, 14])
    """
    places = torch.tensor([numbers[0]])
    for size, step in zip(numbers[1::2], numbers[2::2], strict=True):
        places = (places[:, None] + step * torch.arange(size)).flatten()
    return places


def factors_of(numbers: Sequence[int], factor: float, like: Tensor | None = None) -> Tensor:
    """One factor per channel, which is 1 where the block is not.

    Args:
        numbers: how many channels there are, and then as for `places_of`.
        factor: of the block.
        like: a tensor whose precision and device they take, which are double and the CPU without one.

    Returns:
        (channels,) factors.
    """
    dtype, device = (torch.float64, "cpu") if like is None else (like.dtype, like.device)
    factors = torch.ones(numbers[0], dtype=dtype, device=device)
    factors[places_of(numbers[1:]).to(factors.device)] = factor
    return factors
