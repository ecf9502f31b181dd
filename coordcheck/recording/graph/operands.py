"""How a tensor is made from a parameter: by views, scalars, functions of every coordinate, picked rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coordcheck.recording.graph.arguments import first_tensor, unflattened

MADE = "made"  # the curve of what was computed from parameters in some other way


class Operand(NamedTuple):
    """How a tensor is made from a parameter: a view of it, times a scalar."""

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    factor: float = 1.0
    dtype: torch.dtype = torch.float32
    then: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None = None
    """What is made of it further: the matrices of some experts picked, a copy in another shape, or a function of every
    coordinate."""
    curve: str = ""
    """The first function of every coordinate that it went through, such as exp; empty where it is in proportion."""
    picked: bool = False
    """Whether places that depend on data say which of its matrices it is."""

    @property
    def made(self) -> bool:
        """Whether it was computed from the parameter in another way than those."""
        return self.curve == MADE

    def of(self, values: Tensor, others: Mapping[str, Tensor]) -> Tensor:
        """The tensor made in the same way from other values of the parameter's own shape and strides.

        Args:
            values: those values.
            others: the values of other parameters that it is made from as well.
        """
        view = values.as_strided(self.size, self.stride, values.storage_offset() + self.offset)
        view = view if self.factor == 1.0 else view * self.factor
        return view if self.then is None else self.then(view, others)

    def through(self, function: Any, leaves: Sequence[Any], spec: Any, position: int = 0, curve: str = "") -> Operand:
        """The operand that a function makes of this one, its argument at `position`."""
        before, rest = self.then, list(leaves)
        rest[position] = None  # not to keep it: what is called again has other values

        def then(values: Tensor, others: Mapping[str, Tensor]) -> Tensor:
            given = [*rest]
            given[position] = values if before is None else before(values, others)
            args, kwargs = unflattened(given, spec)
            return first_tensor(function(*args, **kwargs))

        return self._replace(then=then, curve=self.curve or curve)
