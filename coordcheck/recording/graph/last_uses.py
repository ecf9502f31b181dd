"""The last use of each parameter in each function, and of each part of it: what a replay calls again."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from coordcheck.recording.graph.calls import Call, UseCall

Part = tuple[int, tuple[int, ...]]
"""Where a part of a parameter begins, and its sizes."""


class LastUses:
    """Those of one forward pass. Copies of the arguments of earlier ones are given up.

    Args:
        parameters: the model's, by name.

    Attributes:
        uses: the last call per (parameter, function), in the order of the first.
        slices: of those that take a part of their parameter, the last call per part.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.uses: dict[tuple[str, str], UseCall] = {}
        self.slices: dict[tuple[str, str], dict[Part, UseCall]] = {}
        self._parameters = parameters

    def file(self, use: UseCall) -> None:
        """Note a use as the last one."""
        key, part = (use.parameter, use.operation), (use.operand.offset, use.operand.size)
        replaced = [self.uses.get(key)]
        self.uses[key] = use
        if use.matrix and math.prod(use.operand.size) < self._parameters[use.parameter].numel():
            of_parts = self.slices.setdefault(key, {})
            replaced.append(of_parts.get(part))
            of_parts[part] = use
        for earlier in replaced:
            if earlier is not None and earlier.made_by is not use.made_by and not self._has(earlier.made_by):
                earlier.made_by.kept = earlier.made_by.rows = None

    def drop(self, use: UseCall) -> None:
        """Forget one that makes a weight, which is used elsewhere."""
        key, part = (use.parameter, use.operation), (use.operand.offset, use.operand.size)
        if self.uses.get(key) is use:
            del self.uses[key]
        if self.slices.get(key, {}).get(part) is use:
            del self.slices[key][part]

    def _has(self, call: Call) -> bool:
        """Whether one of a call's uses is still the last one."""
        for use in call.uses:
            key, part = (use.parameter, use.operation), (use.operand.offset, use.operand.size)
            if use is self.uses.get(key) or use is self.slices.get(key, {}).get(part):
                return True
        return False
