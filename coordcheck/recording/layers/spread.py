"""Outputs of layers whose parameters are spread over ranks, which may be shards that do not say so."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from coordcheck.recording.distributed.shards import hands_on, is_spread, local_part
from coordcheck.recording.layers.calls import shape_of


class SpreadOutputs:
    """What such layers give, before and after the hooks of tensor parallelism change it."""

    def __init__(self) -> None:
        self._produced: Any = None
        self._wholes: dict[tuple[int, ...], tuple[int, ...]] = {}  # by the shape of a shard

    def note_produced(self, output: Any) -> None:
        """Note what a layer's forward produced, before the hooks; None where it is not to be recorded."""
        self._produced = output if is_spread(output) else None

    def recorded(self, output: Any) -> Any:
        """What is recorded of an output that has gone through the hooks."""
        produced, self._produced = self._produced, None
        if produced is None:
            return output
        if hands_on(output, produced):
            return produced
        if isinstance(output, Tensor) and not is_spread(output):
            self._wholes[shape_of(local_part(output))] = shape_of(produced)
        return output

    def whole_shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape of the whole that a tensor is a shard of, or its own."""
        # a plain tensor does not tell that it is a shard, but others of its shape were, a layer before it
        shape = shape_of(tensor)
        return shape if is_spread(tensor) else self._wholes.get(shape, shape)
