"""What a trace keeps of a call's tensors: copies, of a few rows or examples where those say as much as all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coordcheck.recording.graph import operations as ops
from coordcheck.recording.graph.arguments import snapshot
from coordcheck.recording.graph.attention import fused_logits, fused_rms
from coordcheck.recording.graph.uses import Operand
from coordcheck.recording.scales import FEWEST_EXAMPLES, SAMPLED_COORDINATES, sample_entries


def copied(value: Any, *, sampled: bool) -> Any:
    """A copy of nested arguments, which later in-place operations do not change; sampled, of some of their rows."""
    if not sampled:
        return snapshot(value)
    return rows(value) if isinstance(value, Tensor) else snapshot(value, rows)


def rows(tensor: Tensor, of: Tensor | None = None) -> Tensor:
    """A copy of a few rows of a tensor, along its last axis: those that belong to rows of another one."""
    return _entries(tensor.detach(), max(tensor.dim() - 1, 0), None if of is None else of.shape)


def kept_leaves(name: str, leaves: Sequence[Any], operands: Mapping[int, Operand], *, sampled: bool) -> list[Any]:
    """Copies of a call's activations; parameters are not copied: what calls them again has their values."""
    if not sampled:
        return [leaf if at in operands else snapshot(leaf) for at, leaf in enumerate(leaves)]
    if (axis := ops.examples_axis(name, leaves)) is not None:
        return _examples(leaves, operands, axis)
    sizes = {at: operand.size for at, operand in operands.items()}
    return [leaf if at in operands else _subset(name, sizes, at, leaf) for at, leaf in enumerate(leaves)]


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
    axes = ops.subset(name, sizes, position, leaf.shape) if leaf.dim() > 1 else None
    if axes is None:
        return leaf.detach().clone()
    return _entries(leaf.detach(), axes)


def _entries(tensor: Tensor, axes: int, of: torch.Size | None = None) -> Tensor:
    """A copy of some entries, or of all."""
    entries = sample_entries(tensor, axes, of)
    return tensor.clone() if entries is tensor else entries


def _examples(leaves: Sequence[Any], operands: Mapping[int, Operand], axis: int) -> list[Any]:
    """Copies of a recurrence's arguments for a few of its sequences; states are (layers, examples, size)."""
    length = leaves[0].shape[axis]
    keep = min(length, max(FEWEST_EXAMPLES, SAMPLED_COORDINATES * length // max(leaves[0].numel(), 1)))
    places = torch.arange(keep, device=leaves[0].device) * length // max(keep, 1)
    return [
        leaf.detach().index_select(1 if at else axis, places)
        if isinstance(leaf, Tensor) and at not in operands
        else leaf
        for at, leaf in enumerate(leaves)
    ]
