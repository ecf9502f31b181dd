"""What torch functions do with a parameter: which of its axes are summed over, and whether they act linearly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Fans(NamedTuple):
    """How a matrix acts: each output coordinate sums `fan_in` input coordinates, and there are `fan_out` of them."""

    fan_in: int
    fan_out: int


SCALAR_PRODUCTS = frozenset({"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"})
SCALAR_QUOTIENTS = frozenset(
    {"div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__"}
)
SUMS = frozenset({"add", "add_", "sub", "sub_", "subtract", "__add__", "__radd__", "__iadd__", "__sub__", "__isub__"})
MASKINGS = frozenset({"masked_fill", "masked_fill_", "where", "tril", "triu", "clamp", "clip"})
# functions that hand on the same values (or some of them) in another shape, place or precision
ALIASES = frozenset(
    {"clone", "contiguous", "to", "type", "float", "half", "bfloat16", "double", "detach", "reshape", "flatten"}
)
SPLITS = frozenset({"split", "chunk", "tensor_split", "split_with_sizes", "unbind", "__getitem__"})
PRODUCTS = frozenset({"matmul", "mm", "bmm", "__matmul__", "einsum", "baddbmm", "addmm", "linear"})
ATTENTION = "scaled_dot_product_attention"
SOFTMAX = "softmax"
ELEMENTWISE = SCALAR_PRODUCTS | SCALAR_QUOTIENTS | SUMS
NORMALISATIONS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"})


def name_of(function: Any) -> str:
    """The name of a torch function as `TorchFunctionMode` hands it over."""
    return str(getattr(function, "__name__", function))


def _linear(weight: Sequence[int], _: int, __: Sequence[Any]) -> Fans:
    return Fans(weight[-1], weight[0])  # (out, in)


def _convolution(weight: Sequence[int], _: int, __: Sequence[Any]) -> Fans:
    return Fans(math.prod(weight[1:]), weight[0])  # (out, in / groups, *kernel)


def _transposed_convolution(weight: Sequence[int], _: int, leaves: Sequence[Any]) -> Fans:
    # (in, out / groups, *kernel): every output coordinate sees all inputs of its group; groups is the sixth argument
    whole = [leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)]
    groups = whole[-1] if whole and weight[0] % max(whole[-1], 1) == 0 and len(whole) > 6 else 1
    return Fans(weight[0] // groups * math.prod(weight[2:]), weight[1] * groups)


def _embedding(weight: Sequence[int], _: int, __: Sequence[Any]) -> Fans:
    return Fans(1, weight[-1])  # picks a row


def _product(weight: Sequence[int], position: int, leaves: Sequence[Any]) -> Fans:
    first = min(index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    if len(weight) < 2:
        return Fans(weight[0], 1)
    return Fans(weight[-1], weight[-2]) if position == first else Fans(weight[-2], weight[-1])


def _added_product(weight: Sequence[int], position: int, leaves: Sequence[Any]) -> Fans:
    return _product(weight, position, [None, *leaves[1:]])


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


def _einsum(weight: Sequence[int], position: int, leaves: Sequence[Any]) -> Fans:
    terms, output = equation(next(leaf for leaf in leaves if isinstance(leaf, str)))
    tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    term = terms[tensors.index(position)]
    others = "".join(other for index, other in enumerate(terms) if index != tensors.index(position))
    sizes = dict(zip(term.replace("...", ""), weight, strict=False))
    return Fans(
        math.prod(size for axis, size in sizes.items() if axis not in output),
        math.prod(size for axis, size in sizes.items() if axis in output and axis not in others),
    )


_FANS: Mapping[str, Callable[[Sequence[int], int, Sequence[Any]], Fans]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "embedding": _embedding,
    **dict.fromkeys(("matmul", "mm", "bmm", "__matmul__"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    "einsum": _einsum,
}


def is_linear(name: str) -> bool:
    """Whether a function is linear in each of its tensor arguments, the others being fixed."""
    return name in _FANS or name in ELEMENTWISE


def fans(name: str, weight: Tensor, position: int, leaves: Sequence[Any]) -> Fans | None:
    """How the argument at `position` of a function's flattened arguments acts; None for one that acts elementwise.

    A function that is not known takes matrices as torch's recurrent layers do: (out, in).
    """
    shape = tuple(weight.shape)
    if name in ELEMENTWISE or name in NORMALISATIONS:
        return None
    if len(shape) < 2 and name not in ("matmul", "mm", "__matmul__", "einsum"):  # a bias
        return None
    return _FANS.get(name, _linear)(shape, position, leaves)


def inside(function: Any) -> bool:
    """Whether a function is one of torch's own compositions, whose steps can be looked at one by one."""
    return function is F.multi_head_attention_forward
