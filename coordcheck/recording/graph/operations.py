"""What torch functions do with a parameter: which of its axes are summed over, and whether they act linearly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCALAR_PRODUCTS = frozenset({"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"})
SCALAR_QUOTIENTS = frozenset(
    {"div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__"}
)
SUMS = frozenset({"add", "add_", "sub", "sub_", "subtract", "__add__", "__radd__", "__iadd__", "__sub__", "__isub__"})
NEGATIONS = frozenset({"neg", "neg_", "negative", "__neg__"})
MASKINGS = frozenset({"masked_fill", "masked_fill_", "where", "tril", "triu", "clamp", "clip"})
JOINS = frozenset(
    {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "where", "maximum", "minimum", "lerp", "addcmul"}
) | frozenset(
    {"pow", "__pow__", "__rpow__", "copysign", "masked_fill", "addcdiv", "rsub", "__rsub__", "dropout", "written"}
)
# functions that hand on the same values (or some of them) in another shape, place or precision
ALIASES = frozenset(
    {"clone", "contiguous", "to", "type", "float", "half", "bfloat16", "double", "detach", "reshape", "flatten"}
) | frozenset({"type_as", "expand_as", "view_as", "reshape_as", "dropout", "dropout1d", "dropout2d", "dropout3d"})
SPLITS = frozenset({"split", "chunk", "tensor_split", "split_with_sizes", "unbind", "__getitem__"})
PRODUCTS = frozenset({"matmul", "mm", "bmm", "__matmul__", "einsum", "baddbmm", "addmm", "linear", "linalg_matmul"})
ADDED = frozenset({"addmm", "baddbmm", "addmv", "addbmm"})  # their first argument is added to a product
ATTENTION = "scaled_dot_product_attention"
SOFTMAXES = frozenset({"softmax", "log_softmax", "sigmoid", "exp"})  # what makes logits of a product
SCORED = SUMS | MASKINGS | {"tanh"}  # what logits may go through before
# functions of every coordinate by itself, which a parameter may go through before it is used
CURVES = frozenset(
    {"exp", "expm1", "log", "log1p", "sigmoid", "logsigmoid", "softplus", "tanh", "relu", "silu", "abs", "square"}
) | frozenset({"sqrt", "rsqrt", "reciprocal", "pow", "__pow__", "rsub", "__rsub__", "clamp", "clip"} | SUMS)
GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})  # a matrix per group of rows, as per expert
ELEMENTWISE = SCALAR_PRODUCTS | SCALAR_QUOTIENTS | SUMS
NORMALISATIONS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"})
ROW_NORMALISATIONS = frozenset({"layer_norm", "rms_norm"})
GAINED = ROW_NORMALISATIONS | {"group_norm"}  # (x, shape or groups, gain, bias): linear in the last two
EXAMPLE_WISE = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
) | frozenset({"batch_norm", "group_norm", "instance_norm"})
SEQUENTIAL = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
RECURRENT = SEQUENTIAL | {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}


def name_of(function: Any) -> str:
    """The name of a torch function as `TorchFunctionMode` hands it over."""
    return str(getattr(function, "__name__", function))


STACKED = GROUPED | {"bmm", "baddbmm", "matmul", "__matmul__", "einsum"}  # may take a stack of matrices, as of experts
ROW_WISE = frozenset({"linear", "embedding"})  # act on every row of their input by itself: a subset of rows is enough
ROWS = ROW_WISE | {"matmul", "mm", "__matmul__", "addmm"}  # likewise with a matrix to their right
ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "grad_fn"})
PICKS = frozenset({"__getitem__", "index_select"})
BIASED = frozenset({"linear", "conv1d", "conv2d", "conv3d", *(f"conv_transpose{d}d" for d in (1, 2, 3))})
# linear in the weight and in the input, with nothing added but a bias
ALONE = BIASED | GROUPED | {"embedding", "matmul", "mm", "bmm", "mv", "__matmul__"}


def subset(name: str, operands: Mapping[int, Sequence[int]], position: int, shape: Sequence[int]) -> int | None:
    """How many axes of an activation from the front a function acts on entry by entry; None where it mixes them.

    Some of these entries then say as much of its scales as all: rows of what a linear layer takes, examples of what a
    convolution does (of a batch norm, a smaller batch).

    Args:
        name: the function's.
        operands: the shapes of its parameters, by position.
        position: of the activation.
        shape: the activation's.

    >>> subset("linear", {1: (8, 4)}, 0, (2, 3, 4)), subset("conv2d", {1: (8, 4, 3, 3)}, 0, (2, 4, 32, 32))
    (2, 1)
    >>> subset("matmul", {0: (8, 4)}, 1, (4, 16)) is None
    True
    >>> subset("add", {1: (1, 3, 4)}, 0, (2, 3, 4)), subset("add", {1: (4,)}, 0, (2, 3, 4))
    (1, 2)
    """
    ranks = [len(size) for size in operands.values()]
    if name in EXAMPLE_WISE:
        batched = len(shape) >= 2 and (name in NORMALISATIONS or len(shape) == max(ranks))
        return 1 if batched else None
    if name in ELEMENTWISE or name in NORMALISATIONS:  # such as a table of positions, the same for all examples
        shared = len(shape) - max(_varying(size) for size in operands.values())
        return shared if shared > 0 else None
    if name in ROWS and max(ranks) == 2 and name != "embedding":
        matrices = [at for at, size in operands.items() if len(size) == 2]
        return len(shape) - 1 if all(at > position for at in matrices) else None
    return len(shape) if name == "embedding" else None


def by_rows(name: str, sizes: Iterable[Sequence[int]]) -> bool:
    """Whether a function with parameters of these sizes makes each row of its output from one of its input's rows."""
    return name == "linear" or (name in ROW_NORMALISATIONS and all(len(size) == 1 for size in sizes))


def acts_as(name: str, weight: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Whether a vector is the "gain" or the "bias" of a normalisation, in which that is linear; else nothing."""
    if name in GAINED:
        for place, role in ((2, "gain"), (3, "bias")):
            if (args[place] if len(args) > place else kwargs.get("weight" if role == "gain" else "bias")) is weight:
                return role
    return ""


def _varying(size: Sequence[int]) -> int:
    """How many axes of a parameter are left without those of length 1 in front, along which it is one for all."""
    return next((len(size) - axis for axis, length in enumerate(size) if length > 1), 1)


def examples_axis(name: str, leaves: Sequence[Any]) -> int | None:
    """The axis of examples in the input of a recurrence over sequences; None where there is none, as if packed."""
    sequences = name in SEQUENTIAL and isinstance(leaves[0], Tensor) and leaves[0].dim() == 3
    return int(leaves[-1] is not True) if sequences else None  # batch_first is the last argument


def tells(function: Any) -> bool:
    """Whether a function only reads what a tensor is like, such as its shape."""
    return name_of(function) == "__get__" and getattr(getattr(function, "__self__", None), "__name__", "") in ATTRIBUTES


def inside(function: Any) -> bool:
    """Whether a function is one of torch's own compositions, whose steps can be looked at one by one."""
    return function is F.multi_head_attention_forward


def steps_of(function: Any) -> Any:
    """A copy of a composition that does not ask whether a mode would take it as a whole."""
    # of the names that it looks up there, one is another; torch itself is not changed, which other threads may be using
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def scalar(name: str, leaves: Sequence[Any], tensors: Mapping[int, Tensor]) -> float | None:
    """The number that this call multiplies its only tensor by; None when it does something else."""
    if len(tensors) != 1:
        return None
    if name in NEGATIONS:
        return -1.0
    numbers = [
        leaf
        for position, leaf in enumerate(leaves)
        if position not in tensors and (isinstance(leaf, (int, float)) or _is_number(leaf))
    ]
    if len(numbers) != 1 or len(leaves) != 2 or isinstance(numbers[0], bool):
        return None
    if name in SCALAR_PRODUCTS:
        return _number(numbers[0])
    if name in SCALAR_QUOTIENTS and 0 in tensors and _number(numbers[0]) != 0:
        return 1 / _number(numbers[0])
    return None


def written(into: Tensor, place: Any, value: Any) -> Tensor:
    """A tensor with a value at some places: `into[place] = value`, as a function that gives something."""
    into = into.clone()
    into[place] = value
    return into


def averages(name: str, activations: Mapping[int, Tensor], produced: Sequence[Tensor]) -> bool:
    """Whether a mean or a sum leaves the last axis, of channels, as it is."""
    if name not in ("mean", "sum") or len(activations) != 1:
        return False
    (tensor,) = activations.values()
    return produced[0].dim() > 0 and produced[0].shape[-1] == tensor.shape[-1] and produced[0].numel() > 1


def _number(value: Any) -> float:
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


def _is_number(leaf: Any) -> bool:
    """A tensor that holds one number, perhaps in many places."""
    if not isinstance(leaf, Tensor) or leaf.requires_grad or not leaf.is_floating_point() or not leaf.numel():
        return False
    return leaf.numel() == 1 or bool((leaf == leaf.flatten()[0]).all())


def shares_storage(tensors: Mapping[int, Tensor], produced: Sequence[Tensor]) -> bool:
    """Whether the output is a view of the only tensor that went in."""
    if len(tensors) != 1 or any(t.layout is not torch.strided for t in (*tensors.values(), produced[0])):
        return False
    (tensor,) = tensors.values()
    return produced[0].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
