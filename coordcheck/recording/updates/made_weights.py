"""Weights that are computed from parameters: the share of them that is one parameter's own, and how it moves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.graph.calls import UseCall
from coordcheck.runs.words import Through

UNSIZED = 0.05  # of a weight, by which it may differ under twice the parameter, whose size then makes no difference


class Own(NamedTuple):
    """A weight that was computed from parameters, and the share of it that is one parameter's own."""

    whole: Tensor
    share: Tensor
    normed: bool
    """Whether the parameter's own size makes no difference to it, as under a weight normalisation."""


class MadeWeight:
    """What a parameter makes of the weight that was computed from it: this is judged in its place."""

    def __init__(self, use: UseCall, initial: Mapping[str, Tensor]) -> None:
        self._operand, self._others, self._initial = use.operand, initial, initial[use.parameter]
        beside = {other.operand.parameter for other in use.made_by.uses if other.position == use.position}
        self.alone = beside == {use.parameter}
        """Whether no other parameter takes part in the weight."""

    @cached_property
    def _own(self) -> Own:
        whole, twice = self._of(self._initial), self._of(2 * self._initial)
        rest = self._of(torch.zeros_like(self._initial))
        share = whole - rest if bool(torch.isfinite(rest).all()) else whole
        return Own(whole, share, _size(twice - whole) < UNSIZED * _size(share))

    def _of(self, values: Tensor) -> Tensor:
        return self._operand.of(values, self._others)

    @cached_property
    def unknown(self) -> str:
        """Why it cannot be computed again; empty when it can."""
        try:
            with torch.no_grad():
                same = bool(torch.isfinite(self._own.share).all())
        except Exception as error:  # of the user's functions
            return type(error).__name__
        return "" if same else "it is not finite"

    def own(self) -> Own:
        """The weight at t=0."""
        return self._own

    def moved(self, now: Tensor, current: Mapping[str, Tensor]) -> float:
        """RMS of what the parameter's update made of the weight.

        Beside one that starts at zero, as in a merged LoRA, it makes nothing: others are then taken as they are now.
        """
        if not bool(self._own.share.any()):
            self._others = {**self._others, **{name: values.detach() for name, values in current.items()}}
        return _size(self.change(now))

    def change(self, now: Tensor) -> Tensor:
        """What the parameter's update made of the weight."""
        return self._of(now) - self._of(self._initial)

    @property
    def through(self) -> Through:
        """Whether the parameter's own size makes a difference to the weight."""
        return Through.NORMED if self._own.normed else Through.MADE

    @property
    def sized(self) -> bool:
        """Whether its initial size tells its gain: not where it makes no difference, and another parameter's does."""
        return not self._own.normed or self.alone


def _size(tensor: Tensor) -> float:
    return float(scales.rms_of(tensor))
