"""Fan-in and fan-out of the matrix that a function makes of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from coordcheck.recording.graph.operations import (
    ADDED,
    ELEMENTWISE,
    GROUPED,
    JOINS,
    NORMALISATIONS,
    RECURRENT,
    SCALAR_PRODUCTS,
    SUMS,
)


class Fans(NamedTuple):
    """How a matrix acts: each output coordinate sums `fan_in` input coordinates, and there are `fan_out` of them."""

    fan_in: int
    fan_out: int


class _Given(NamedTuple):
    """One function call as it was made: the weight's shape and place, and all arguments."""

    shape: tuple[int, ...]
    position: int
    leaves: Sequence[Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def argument(self, place: int, name: str, default: Any) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


def _linear(given: _Given) -> Fans:
    return Fans(given.shape[-1], given.shape[0])  # (out, in)


def _convolution(given: _Given) -> Fans:
    return Fans(math.prod(given.shape[1:]), given.shape[0])  # (out, in / groups, *kernel)


def _transposed_convolution(given: _Given) -> Fans:
    # (in, out / groups, *kernel): every output coordinate sees all inputs of its group
    groups = int(given.argument(6, "groups", 1))
    return Fans(given.shape[0] // groups * math.prod(given.shape[2:]), given.shape[1] * groups)


def _embedding(given: _Given) -> Fans:
    return Fans(1, given.shape[-1])  # picks a row


def _product(given: _Given) -> Fans:
    if len(given.shape) < 2:
        return Fans(given.shape[0], 1)
    first = min(index for index, leaf in enumerate(given.leaves) if isinstance(leaf, Tensor))
    *_, rows, columns = given.shape
    return Fans(columns, rows) if given.position == first else Fans(rows, columns)


def _added_product(given: _Given) -> Fans:
    return _product(given._replace(leaves=[None, *given.leaves[1:]]))


def _tensordot(given: _Given) -> Fans:
    dims = given.argument(2, "dims", 2)
    first = min(index for index, leaf in enumerate(given.leaves) if isinstance(leaf, Tensor)) == given.position
    rank = len(given.shape)
    if isinstance(dims, int):
        axes = set(range(rank - dims, rank)) if first else set(range(dims))
    else:
        axes = {int(axis) % rank for axis in dims[0 if first else 1]}
    return Fans(
        math.prod(size for axis, size in enumerate(given.shape) if axis in axes),
        math.prod(size for axis, size in enumerate(given.shape) if axis not in axes),
    )


def equation(text: str) -> tuple[list[str], str]:
    """The terms and the output of an einsum equation.

    >>> equation("btm, edm -> bted")
    (['btm', 'edm'], 'bted')
    >>> equation("ij,jk")
    (['ij', 'jk'], 'ik')
    """
    inputs, arrow, output = text.replace(" ", "").partition("->")
    terms = inputs.split(",")
    once = "".join(sorted(axis for axis in set(inputs) - {",", "."} if inputs.count(axis) == 1))
    return terms, output if arrow else once


def _einsum(given: _Given) -> Fans:
    terms, output = equation(next(leaf for leaf in given.leaves if isinstance(leaf, str)))
    tensors = [index for index, leaf in enumerate(given.leaves) if isinstance(leaf, Tensor)]
    own = tensors.index(given.position)
    others = "".join(other for index, other in enumerate(terms) if index != own)
    sizes = dict(zip(terms[own].replace("...", ""), given.shape, strict=False))
    return Fans(
        math.prod(size for axis, size in sizes.items() if axis not in output),
        math.prod(size for axis, size in sizes.items() if axis in output and axis not in others),
    )


_FANS: Mapping[str, Callable[[_Given], Fans]] = {
    **dict.fromkeys(("linear", *RECURRENT), _linear),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("embedding", "embedding_bag", "__getitem__", "index_select"), _embedding),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "__matmul__", "linalg_matmul", *GROUPED), _product),
    **dict.fromkeys(ADDED, _added_product),
    "tensordot": _tensordot,
    "einsum": _einsum,
}


def fans_of(
    name: str, weight: Tensor, position: int, leaves: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Fans | None:
    """How the argument at `position` of a function's flattened arguments acts; None for one that acts elementwise."""
    shape = tuple(weight.shape)
    flat = len(shape) < 2 and name not in ("matmul", "mm", "__matmul__", "einsum")  # a bias
    if name not in _FANS or flat or (name in ADDED and position == 0):
        return None
    return _FANS[name](_Given(shape, position, leaves, args, kwargs))


def is_linear(name: str) -> bool:
    """Whether a function is linear in each of its tensor arguments, the others being fixed."""
    return name in _FANS.keys() - RECURRENT or name in SCALAR_PRODUCTS | SUMS


def is_known(name: str) -> bool:
    """Whether it is known over which axes a function sums."""
    return name in _FANS or name in ELEMENTWISE | NORMALISATIONS | JOINS
