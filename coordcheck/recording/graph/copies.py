"""What a trace keeps of a call's tensors: copies, of a few rows or examples where those say as much as all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coordcheck.recording.graph.arguments import snapshot
from coordcheck.recording.graph.attention import fused_logits, fused_rms
from coordcheck.recording.graph.functions import Does, does, plain
from coordcheck.recording.scales import FEWEST_EXAMPLES, SAMPLED_COORDINATES, sample_entries


def copied(value: Any, *, sampled: bool) -> Any:
    """A copy of nested arguments, which later in-place operations do not change; sampled, of some of their rows."""
    if not sampled:
        return snapshot(value)
    return rows(value) if isinstance(value, Tensor) else snapshot(value, rows)


def rows(tensor: Tensor, of: Tensor | None = None) -> Tensor:
    """A copy of a few rows of a tensor, along its last axis: those that belong to rows of another one."""
    return _entries(tensor.detach(), max(tensor.dim() - 1, 0), None if of is None else of.shape)


def kept_leaves(name: str, leaves: Sequence[Any], weights: Collection[int], *, sampled: bool) -> list[Any]:
    """Copies of a call's activations.

    Args:
        name: the function's.
        leaves: the arguments.
        weights: positions of parameters and of what was made of them, which what calls them again has the values of.
        sampled: keep some rows or examples, where they say as much as all.
    """
    if not sampled:
        return [leaf if at in weights else snapshot(leaf) for at, leaf in enumerate(leaves)]
    if (axis := _examples_axis(name, leaves)) is not None:
        return _examples(leaves, weights, axis)
    sizes = {at: tuple(leaves[at].shape) for at in weights}
    return [leaf if at in weights else _subset(name, sizes, at, leaf) for at, leaf in enumerate(leaves)]


def fused_attention(given: Mapping[str, Any], *, sampled: bool) -> tuple[float, float | Tensor]:
    """Of a fused attention its scale and its logits; sampled, the RMS of some of these."""
    scale = given.get("scale")
    scale = given["query"].shape[-1] ** -0.5 if scale is None else float(scale)
    with torch.no_grad():
        return scale, (fused_rms if sampled else fused_logits)(given, scale)


def _subset(name: str, sizes: Mapping[int, Sequence[int]], position: int, leaf: Any) -> Any:
    """A copy of a call's argument: of some of its entries, where the function acts on each of them by itself."""
    if not isinstance(leaf, Tensor):
        return leaf
    axes = subset(name, sizes, position, leaf.shape) if leaf.dim() > 1 else None
    if axes is None:
        return leaf.detach().clone()
    return _entries(leaf.detach(), axes)


def _entries(tensor: Tensor, axes: int, of: torch.Size | None = None) -> Tensor:
    """A copy of some entries, or of all."""
    entries = sample_entries(tensor, axes, of)
    return tensor.clone() if entries is tensor else entries


def _examples(leaves: Sequence[Any], weights: Collection[int], axis: int) -> list[Any]:
    """Copies of a recurrence's arguments for a few of its sequences; states are (layers, examples, size)."""
    length = leaves[0].shape[axis]
    keep = min(length, max(FEWEST_EXAMPLES, SAMPLED_COORDINATES * length // max(leaves[0].numel(), 1)))
    places = torch.arange(keep, device=leaves[0].device) * length // max(keep, 1)
    return [
        leaf.detach().index_select(1 if at else axis, places)
        if isinstance(leaf, Tensor) and at not in weights
        else leaf
        for at, leaf in enumerate(leaves)
    ]


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
    if does(name, Does.BY_EXAMPLE):
        batched = len(shape) >= 2 and (does(name, Does.NORMALIZES) or len(shape) == max(ranks))
        return 1 if batched else None
    if does(name, Does.SCALES | Does.DIVIDES | Does.ADDS | Does.NORMALIZES):
        # such as a table of positions, the same for all examples
        shared = len(shape) - max(_varying(size) for size in operands.values())
        return shared if shared > 0 else None
    if plain(name) == "embedding":
        return len(shape)
    if does(name, Does.BY_ROW | Does.BY_ROW_ON_THE_LEFT) and max(ranks) == 2:
        matrices = [at for at, size in operands.items() if len(size) == 2]
        return len(shape) - 1 if all(at > position for at in matrices) else None
    return None


def by_rows(name: str, sizes: Iterable[Sequence[int]]) -> bool:
    """Whether a function with parameters of these sizes makes each row of its output from one of its input's rows."""
    if does(name, Does.NORMALIZES):
        return does(name, Does.BY_ROW) and all(len(size) == 1 for size in sizes)
    return plain(name) == "linear"


def _varying(size: Sequence[int]) -> int:
    """How many axes of a parameter are left without those of length 1 in front, along which it is one for all."""
    return next((len(size) - axis for axis, length in enumerate(size) if length > 1), 1)


def _examples_axis(name: str, leaves: Sequence[Any]) -> int | None:
    """The axis of examples in the input of a recurrence over sequences; None where there is none, as if packed."""
    sequences = does(name, Does.SEQUENTIAL) and isinstance(leaves[0], Tensor) and leaves[0].dim() == 3
    return int(leaves[-1] is not True) if sequences else None  # batch_first is the last argument
