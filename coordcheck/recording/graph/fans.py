"""Fan-in and fan-out of the matrix that a function makes of a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Fans(NamedTuple):
    """How a matrix acts: each output coordinate sums `fan_in` input coordinates, and there are `fan_out` of them."""

    fan_in: int
    fan_out: int


class Channels(NamedTuple):
    """Which axes of a weight make which axes of the output, in the same order."""

    own: int
    """The first one of the weight, counted from the end."""
    output: int
    """The first one of the output, counted from the end."""
    axes: int = 1
    """How many of both."""


class Given(NamedTuple):
    """One function call as it was made: the weight's shape and place, and all arguments."""

    shape: Sequence[int]
    position: int
    tensors: Sequence[int]
    """The positions of all tensors."""
    leaves: Sequence[Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def argument(self, place: int, name: str, default: Any) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def without(self, repeated: Sequence[bool]) -> Given:
        """The same of a weight that is no longer along axes on which it is repeated."""
        return self._replace(shape=[1 if again else size for size, again in zip(self.shape, repeated, strict=True)])


def of_linear(given: Given) -> Fans:
    """Of (out, in)."""
    return Fans(given.shape[-1], given.shape[0])


def of_convolution(given: Given) -> Fans:
    """Of (out, in / groups, *kernel)."""
    return Fans(math.prod(given.shape[1:]), given.shape[0])


def of_transposed_convolution(given: Given) -> Fans:
    """Of (in, out / groups, *kernel): every output coordinate sees all inputs of its group."""
    groups = int(given.argument(6, "groups", 1))
    return Fans(given.shape[0] // groups * math.prod(given.shape[2:]), given.shape[1] * groups)


def of_embedding(given: Given) -> Fans:
    """Of a table of which rows are picked."""
    return Fans(1, given.shape[-1])


def of_product(given: Given) -> Fans:
    """Of a matrix, or a stack of them, to the left or to the right of what it multiplies."""
    if len(given.shape) < 2:
        return Fans(given.shape[0], 1)
    *_, rows, columns = given.shape
    return Fans(columns, rows) if given.position == given.tensors[0] else Fans(rows, columns)


def of_added_product(given: Given) -> Fans:
    """Of a product to which the first argument is added."""
    return of_product(given._replace(tensors=given.tensors[1:]))


def in_stack(given: Given) -> int:
    """How many matrices a stack holds."""
    return math.prod(given.shape[:-2])


def rows_made(given: Given) -> Channels:
    """By (out, ...)."""
    return Channels(-len(given.shape), -1)


def columns_made(given: Given) -> Channels:
    """By (..., out)."""
    return Channels(-1, -1)


def maps_made(given: Given) -> Channels:
    """By (out, in / groups, *kernel): (examples, out, *places)."""
    return Channels(-len(given.shape), 1 - len(given.shape))


def transposed_maps_made(given: Given) -> Channels | None:
    """By (in, out, *kernel); with groups, each makes some of them."""
    alone = int(given.argument(6, "groups", 1)) == 1
    return Channels(1 - len(given.shape), 1 - len(given.shape)) if alone else None


def product_made(given: Given) -> Channels | None:
    """By a matrix, or a stack of them, to the left or to the right of what it multiplies."""
    if len(given.shape) < 2:
        return None
    return Channels(-2, -2) if given.position == given.tensors[0] else Channels(-1, -1)


def added_product_made(given: Given) -> Channels | None:
    """By one in a product to which the first argument is added."""
    return product_made(given._replace(tensors=given.tensors[1:]))


def einsum_made(given: Given) -> Channels | None:
    """By the axes that the input has not, where they lie side by side in the weight and in the output."""
    _, output = _equation(given)
    sizes, others = _axes(given)
    own = "".join(sizes)
    new = "".join(axis for axis in own if axis in output and axis not in others)
    if not new or new not in own or new not in output:
        return None
    return Channels(own.index(new) - len(own), output.index(new) - len(output), len(new))


def of_tensordot(given: Given) -> Fans:
    """Over the axes that the call names."""
    dims = given.argument(2, "dims", 2)
    first = given.tensors[0] == given.position
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


def of_einsum(given: Given) -> Fans:
    """Over the axes that the output has not, by those that the input has not."""
    _, output = _equation(given)
    sizes, others = _axes(given)
    return Fans(
        math.prod(size for axis, size in sizes.items() if axis not in output),
        math.prod(size for axis, size in sizes.items() if axis in output and axis not in others),
    )


def in_einsum(given: Given) -> int:
    """How many matrices it holds: over the axes that the input and the output have as well."""
    _, output = _equation(given)
    sizes, others = _axes(given)
    return math.prod(size for axis, size in sizes.items() if axis in output and axis in others)


def einsum_matrix(given: Given) -> list[int]:
    """The axes of a weight that it sums over, and those that the other terms have not, counted from the end.

    >>> einsum_matrix(Given((2, 8, 4), 1, (1, 2), ("boi,bi->bo",), (), {}))
    [-2, -1]
    """
    terms, output = _equation(given)
    own = terms[list(given.tensors).index(given.position)].rpartition("...")[2]
    _, others = _axes(given)
    return [place - len(own) for place, axis in enumerate(own) if axis not in output or axis not in others]


def _equation(given: Given) -> tuple[list[str], str]:
    return equation(next(leaf for leaf in given.leaves if isinstance(leaf, str)))


def _axes(given: Given) -> tuple[dict[str, int], str]:
    """The sizes of a weight's axes by their letters, and the letters of all other terms."""
    terms, _ = _equation(given)
    own = list(given.tensors).index(given.position)
    sizes = dict(zip(terms[own].replace("...", ""), given.shape, strict=False))
    return sizes, "".join(other for index, other in enumerate(terms) if index != own)
