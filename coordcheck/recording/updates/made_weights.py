"""Weights that are computed from parameters: the share of them that is one parameter's own, and how it moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.graph.arguments import is_measured
from coordcheck.recording.graph.calls import UseCall
from coordcheck.recording.graph.modulation import makers
from coordcheck.runs.words import Through

UNSIZED = 0.05  # of a weight, by which it may differ under twice the parameter, whose size then makes no difference


class Own(NamedTuple):
    """A weight that was computed from parameters, and the share of it that is one parameter's own."""

    whole: Tensor
    share: Tensor


class MadeWeight:
    """What a parameter makes of the weight that was computed from it: this is judged in its place.

    Attributes:
        unknown: why it cannot be computed again; empty when it can.
        through: whether the parameter's own size makes a difference to it, as it does not under a weight normalisation.
        sized: whether its initial size tells its gain: not where it makes no difference, and another parameter's does.
        met: RMS of the data that it makes the weight of, as the features of a hypernetwork; 1 where it needs none.
    """

    def __init__(self, use: UseCall, initial: Mapping[str, Tensor]) -> None:
        self._operand, self._others, self._initial = use.operand, initial, initial[use.parameter]
        beside = {other.operand.parameter for other in use.made_by.uses if other.position == use.position}
        self.unknown, self.through, self._starts_at_zero = "", Through.MADE, False
        self.met = _met(use)
        try:
            with torch.no_grad():
                self._look()
        except Exception as error:  # of the user's functions
            self.unknown = type(error).__name__
        self.sized = self.through is Through.MADE or beside == {use.parameter}

    def _look(self) -> None:
        whole, share = self.own()
        if not bool(torch.isfinite(share).all()):
            self.unknown = "it is not finite"
            return
        self._starts_at_zero = not bool(share.any())
        if _size(self._of(2 * self._initial) - whole) < UNSIZED * _size(share):
            self.through = Through.NORMED

    def _of(self, values: Tensor) -> Tensor:
        return self._operand.of(values, self._others)

    def own(self) -> Own:
        """The weight, and its share, at t=0."""
        whole, rest = self._of(self._initial), self._of(torch.zeros_like(self._initial))
        return Own(whole, whole - rest if bool(torch.isfinite(rest).all()) else whole)

    def change(self, now: Tensor, current: Mapping[str, Tensor]) -> Tensor:
        """What the parameter's update made of the weight.

        Beside one that starts at zero, as in a merged LoRA, it makes nothing: others are then taken as they are now.

        Args:
            now: the parameter.
            current: all parameters.
        """
        if self._starts_at_zero:
            self._others = {**self._others, **{name: values.detach() for name, values in current.items()}}
        return self._of(now) - self._of(self._initial)


def _met(use: UseCall) -> float:
    for maker in makers(use.made_by.inputs[use.position]):
        for own in maker.uses:
            place = own.input_position if own.matrix and own.parameter == use.parameter else None
            if place is not None and maker.whole is not None and is_measured(maker.whole[place]):
                return _size(maker.whole[place]) or 1.0
    return 1.0


def _size(tensor: Tensor) -> float:
    return float(scales.rms_of(tensor))
