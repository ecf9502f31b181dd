"""What torch functions do with a parameter and with an activation: one table, one row per function.

A function is looked up by its plain name: `mul` stands for `mul_`, `multiply`, `__mul__`, `__rmul__` and `__imul__`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Flag, auto
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from coordcheck.recording.graph import fans
from coordcheck.recording.graph.fans import Channels, Fans, Given


class Does(Flag):
    """What a function does; most do several of these."""

    SCALES = auto()
    """It multiplies two tensors, or a tensor by a number."""
    DIVIDES = auto()
    NEGATES = auto()
    ADDS = auto()
    JOINS = auto()
    """It puts values of several tensors into one."""
    MOVES = auto()
    """It hands on the same values, or some of them, in another shape, place or precision."""
    REORDERS = auto()
    """It hands on the same values in another order, or some of them again."""
    FILLS = auto()
    """It makes a new tensor, whose values are not those of the one that it takes."""
    SPLITS = auto()
    PICKS = auto()
    """It takes some rows of a table."""
    SCORES = auto()
    """Logits that it takes are still logits, masked or capped."""
    CURVES = auto()
    """It is a function of every coordinate by itself, which a parameter may go through before it is used."""
    AVERAGES = auto()
    MULTIPLIES = auto()
    """It sums products of two tensors over an axis."""
    ADDED = auto()
    """Its first argument is added to a product of the others."""
    ATTENDS = auto()
    SOFTMAXES = auto()
    """It makes probabilities of logits."""
    BIASED = auto()
    """It is linear in a weight and an input, with nothing added but a bias."""
    ALONE = auto()
    """It is linear in a weight and an input, and may be called with a change of the weight alone."""
    GROUPED = auto()
    """It takes a matrix per group of rows, as per expert."""
    STACKED = auto()
    """It may take a stack of matrices, as of experts."""
    NORMALIZES = auto()
    """It is a normalisation of activations."""
    CANCELS = auto()
    """What its input is multiplied by changes nothing."""
    GAINED = auto()
    """Its arguments are (x, shape or groups, gain, bias), and it is linear in the last two."""
    BY_ROW = auto()
    """It acts on every row of its input by itself."""
    BY_ROW_ON_THE_LEFT = auto()
    """Likewise with a matrix to their right."""
    BY_EXAMPLE = auto()
    DIFFERENTIATES = auto()
    """It gives gradients, which depend on data also where parameters alone are its arguments."""
    SEQUENTIAL = auto()
    """It runs over a sequence, with a state."""
    RECURRENT = auto()
    HOMOGENEOUS = auto()
    """A positive number that its input is multiplied by multiplies its output."""


class Function(NamedTuple):
    """A row of the table."""

    does: Does
    fans: Callable[[Given], Fans] | None = None
    """Over which axes of a weight it sums; None where it acts on every coordinate by itself, or that is not known."""
    stack: Callable[[Given], int] | None = None
    """How many such matrices a weight may hold, each of which acts on inputs of its own and all of which act."""
    made: Callable[[Given], Channels | None] | None = None
    """Which axes of the output a weight makes; None where that is not known."""


_NOTHING = Function(Does(0))
# what is often asked for together: a flag's own operators take a hundred times as long as looking a function up
TIMES_OR_OVER = Does.SCALES | Does.DIVIDES
SUMS = Does.ADDS | Does.JOINS
HANDS_ON = Does.MOVES | Does.REORDERS
_LINEAR = Does.MULTIPLIES | Does.BIASED | Does.ALONE | Does.BY_ROW
_CONVOLUTION = Does.BIASED | Does.ALONE | Does.BY_EXAMPLE
_MATMUL = Does.MULTIPLIES | Does.ALONE | Does.BY_ROW_ON_THE_LEFT
_ROW_NORM = Does.NORMALIZES | Does.CANCELS | Does.GAINED | Does.BY_ROW
_PRODUCT = fans.of_product, fans.in_stack, fans.product_made
_ADDED_PRODUCT = fans.of_added_product, fans.in_stack, fans.added_product_made
_CELL, _SEQUENCE = Does.RECURRENT, Does.RECURRENT | Does.SEQUENTIAL

FUNCTIONS: Mapping[str, Function] = {
    # linear in a weight
    "linear": Function(_LINEAR, fans.of_linear, made=fans.rows_made),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d"),
        Function(_CONVOLUTION, fans.of_convolution, made=fans.maps_made),
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        Function(_CONVOLUTION, fans.of_transposed_convolution, made=fans.transposed_maps_made),
    ),
    "bilinear": Function(Does.MULTIPLIES | Does.BY_ROW, fans.of_convolution, made=fans.rows_made),
    "embedding": Function(Does.ALONE | Does.BY_ROW | Does.PICKS, fans.of_embedding, made=fans.columns_made),
    "embedding_bag": Function(Does.PICKS, fans.of_embedding, made=fans.columns_made),
    "getitem": Function(Does.PICKS | Does.SPLITS, fans.of_embedding, made=fans.columns_made),
    "index_select": Function(Does.PICKS, fans.of_embedding, made=fans.columns_made),
    "matmul": Function(_MATMUL | Does.STACKED, *_PRODUCT),
    "mm": Function(_MATMUL, *_PRODUCT),
    "mv": Function(Does.ALONE, fans.of_product),
    "bmm": Function(Does.MULTIPLIES | Does.ALONE | Does.STACKED, *_PRODUCT),
    **dict.fromkeys(
        ("grouped_mm", "grouped_mm_fallback"),
        Function(Does.ALONE | Does.GROUPED | Does.STACKED, fans.of_product, made=fans.product_made),
    ),
    "addmm": Function(Does.MULTIPLIES | Does.ADDED | Does.BY_ROW_ON_THE_LEFT, *_ADDED_PRODUCT),
    "baddbmm": Function(Does.MULTIPLIES | Does.ADDED | Does.STACKED, *_ADDED_PRODUCT),
    **dict.fromkeys(("addmv", "addbmm"), Function(Does.ADDED, fans.of_added_product)),
    "einsum": Function(Does.MULTIPLIES | Does.STACKED, fans.of_einsum, fans.in_einsum, fans.einsum_made),
    "tensordot": Function(Does(0), fans.of_tensordot),
    # with a state
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), Function(_SEQUENCE, fans.of_linear)),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), Function(_CELL, fans.of_linear)),
    # attention
    "scaled_dot_product_attention": Function(Does.ATTENDS),
    **dict.fromkeys(("softmax", "log_softmax"), Function(Does.SOFTMAXES)),
    # normalisations
    **dict.fromkeys(("layer_norm", "rms_norm"), Function(_ROW_NORM)),
    "group_norm": Function(Does.NORMALIZES | Does.CANCELS | Does.GAINED | Does.BY_EXAMPLE),
    **dict.fromkeys(("batch_norm", "instance_norm"), Function(Does.NORMALIZES | Does.CANCELS | Does.BY_EXAMPLE)),
    **dict.fromkeys(("normalize", "cosine_similarity"), Function(Does.CANCELS)),
    # of every coordinate
    "mul": Function(Does.SCALES),
    "div": Function(Does.DIVIDES),
    "neg": Function(Does.NEGATES),
    **dict.fromkeys(("add", "sub"), Function(Does.ADDS | Does.SCORES | Does.CURVES)),
    "rsub": Function(Does.JOINS | Does.CURVES),
    **dict.fromkeys(("tril", "triu"), Function(Does.SCORES)),
    **dict.fromkeys(("masked_fill", "where"), Function(Does.SCORES | Does.JOINS)),
    "clamp": Function(Does.SCORES | Does.CURVES),
    **dict.fromkeys(("sigmoid", "exp"), Function(Does.SOFTMAXES | Does.CURVES)),
    "tanh": Function(Does.SCORES | Does.CURVES),
    **dict.fromkeys(("expm1", "log", "log1p", "logsigmoid", "softplus", "silu"), Function(Does.CURVES)),
    **dict.fromkeys(("relu", "abs"), Function(Does.CURVES | Does.HOMOGENEOUS)),
    **dict.fromkeys(("square", "sqrt", "rsqrt", "reciprocal"), Function(Does.CURVES)),
    "leaky_relu": Function(Does.HOMOGENEOUS),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), Function(Does.HOMOGENEOUS)),
    "pow": Function(Does.JOINS | Does.CURVES),
    "rpow": Function(Does.JOINS),
    # of several tensors
    **dict.fromkeys(("cat", "stack", "hstack", "vstack"), Function(Does.JOINS)),
    **dict.fromkeys(("maximum", "minimum", "lerp", "addcmul", "addcdiv", "copysign"), Function(Does.JOINS)),
    "written": Function(Does.JOINS),
    **dict.fromkeys(("mean", "sum"), Function(Does.AVERAGES)),
    "grad": Function(Does.DIFFERENTIATES),
    # new values
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"), Function(Does.FILLS)),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like"), Function(Does.FILLS)),
    **dict.fromkeys(("rand_like", "randn_like", "randint_like", "bernoulli"), Function(Does.FILLS)),
    # the same values
    "dropout": Function(Does.MOVES | Does.JOINS),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d"), Function(Does.MOVES)),
    **dict.fromkeys(("clone", "contiguous", "detach", "to", "type", "type_as"), Function(Does.MOVES)),
    **dict.fromkeys(("float", "half", "bfloat16", "double"), Function(Does.MOVES)),
    **dict.fromkeys(("reshape", "flatten", "expand_as", "view_as", "reshape_as"), Function(Does.MOVES)),
    **dict.fromkeys(("flip", "fliplr", "flipud", "roll", "rot90"), Function(Does.REORDERS)),
    **dict.fromkeys(("repeat", "repeat_interleave", "tile"), Function(Does.REORDERS)),
    **dict.fromkeys(("split", "chunk", "tensor_split", "split_with_sizes", "unbind"), Function(Does.SPLITS)),
    **dict.fromkeys(("narrow", "select"), Function(Does.SPLITS)),
}
_SYNONYMS = {
    **dict.fromkeys(("multiply", "rmul", "imul"), "mul"),
    **dict.fromkeys(("divide", "true_divide", "truediv", "itruediv"), "div"),
    **dict.fromkeys(("radd", "iadd"), "add"),
    **dict.fromkeys(("subtract", "isub"), "sub"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **{"negative": "neg", "clip": "clamp", "linalg_matmul": "matmul"},
}
ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_cuda", "grad_fn"})


def name_of(function: Any) -> str:
    """The name of a torch function as `TorchFunctionMode` hands it over."""
    return str(getattr(function, "__name__", function))


@cache
def plain(name: str) -> str:
    """The name that stands for all spellings of a function.

    >>> plain("__rmul__"), plain("mul_"), plain("_grouped_mm"), plain("linear")
    ('mul', 'mul', 'grouped_mm', 'linear')
    """
    bare = name.strip("_")
    return _SYNONYMS.get(bare, bare)


@cache
def row(name: str) -> Function:
    """What is known of a function; of an unknown one, nothing."""
    return FUNCTIONS.get(plain(name), _NOTHING)


def does(name: str, what: Does) -> bool:
    """Whether a function does one of these.

    >>> does("__matmul__", Does.MULTIPLIES), does("relu_", Does.ADDS | Does.JOINS)
    (True, False)
    """
    return bool(row(name).does._value_ & what._value_)  # twenty times as fast as a flag's own operator


@cache
def is_linear(name: str) -> bool:
    """Whether a function is linear in each of its tensor arguments, the others being fixed."""
    known = row(name)
    matrix = known.fans is not None and not does(name, Does.RECURRENT)
    return matrix or does(name, Does.SCALES | Does.ADDS)


@cache
def is_known(name: str) -> bool:
    """Whether it is known over which axes a function sums."""
    elementwise = Does.SCALES | Does.DIVIDES | Does.ADDS | Does.NORMALIZES | Does.JOINS | Does.MOVES
    return row(name).fans is not None or does(name, elementwise)


def fans_of(name: str, given: Given) -> Fans | None:
    """How a weight acts in a call; None for one that acts elementwise."""
    known = row(name)
    flat = len(given.shape) < 2 and plain(name) not in ("matmul", "mm", "einsum")  # a bias
    image = does(name, Does.BY_EXAMPLE) and given.position == given.tensors[0]  # the input of a convolution
    if known.fans is None or flat or image or (given.position == 0 and does(name, Does.ADDED)):
        return None
    return known.fans(given)


def stack_of(name: str, given: Given) -> int:
    """How many matrices a weight holds, each of which acts on inputs of its own."""
    stack = row(name).stack
    return 1 if stack is None or fans_of(name, given) is None else stack(given)


def made_by(name: str, given: Given) -> Channels | None:
    """Which axes of the output a weight makes; None where that is not known."""
    made = row(name).made
    return None if made is None or fans_of(name, given) is None else made(given)


def acts_as(name: str, weight: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Whether a vector is the "gain" or the "bias" of a normalisation, in which that is linear; else nothing."""
    if does(name, Does.GAINED):
        for place, role in ((2, "gain"), (3, "bias")):
            if (args[place] if len(args) > place else kwargs.get("weight" if role == "gain" else "bias")) is weight:
                return role
    return ""


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


def written(into: Tensor, place: Any, value: Any) -> Tensor:
    """A tensor with a value at some places: `into[place] = value`, as a function that gives something."""
    into = into.clone()
    into[place] = value
    return into
