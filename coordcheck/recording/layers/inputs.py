"""Whether a model's input is still the one of t=0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from coordcheck.recording.layers.calls import version


class _Input(NamedTuple):
    """One input tensor of the model at t=0, and how often it had been written to."""

    tensor: Tensor
    version: int


class InitialInputs:
    """The model's input at t=0, with which later ones are compared.

    Args:
        fixed: the caller gives the same batch at every step, also after the model wrote into a copy of it.
    """

    def __init__(self, fixed: bool) -> None:
        self._fixed = fixed
        self._initial: list[_Input] | None = None

    def clear(self) -> None:
        self._initial = None

    def moved(self, inputs: Sequence[Tensor]) -> Iterator[Tensor | bool]:
        """Flags, any of which tells that the input differs; on a device they wait for nothing. None at t=0."""
        if self._initial is None:
            self._initial = [_Input(tensor, version(tensor)) for tensor in inputs]
            return
        if [now.shape for now in inputs] != [then.tensor.shape for then in self._initial]:
            yield True
            return
        for now, then in zip(inputs, self._initial, strict=True):
            if version(then.tensor) != then.version:  # what it was at t=0 is gone
                yield not self._fixed or now is then.tensor
            elif now is not then.tensor:
                yield (now != then.tensor).any()


def any_of(flags: Sequence[Tensor | bool]) -> bool:
    """Whether one of them tells that the input moved; waits for the device."""
    try:
        return any(bool(flag) for flag in flags)
    except Exception:  # fake and meta tensors hold no values to compare: their rows have no values either
        return False
