"""The logits of a fused attention, which no function gives: rebuilt from its queries and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.graph.arguments import unflattened
from coordcheck.recording.scales import FEWEST_EXAMPLES, FEWEST_ROWS

QUERY_ROWS = 64  # queries of a long sequence for which logits are rebuilt


MASKED = -1e4  # an additive mask below this hides the position


def fused_arguments(leaves: Sequence[Any], spec: Any) -> dict[str, Any]:
    """The arguments of a `scaled_dot_product_attention` call by name."""
    args, kwargs = unflattened(leaves, spec)
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def fused_logits(given: Mapping[str, Any], scale: float) -> Tensor:
    """The logits q k^T * scale of one `scaled_dot_product_attention` call, masked ones left out: (logits,).

    Long sequences are looked at on `QUERY_ROWS` queries spread over them.
    """
    logits, seen = _logits(given, QUERY_ROWS)
    return (logits * scale)[seen.expand_as(logits)]


def fused_rms(given: Mapping[str, Any], scale: float) -> float | Tensor:
    """The RMS of these logits, for a few examples: which does not wait for a device."""
    logits, seen = _logits(_first_examples(given), FEWEST_ROWS)
    count = seen.expand_as(logits).sum() if seen.dim() > 2 else seen.sum() * (logits.numel() // seen.numel())
    return scales.norm(logits * seen) * (abs(scale) / count.clamp(min=1).sqrt())


def _logits(given: Mapping[str, Any], most: int) -> tuple[Tensor, Tensor]:
    """The logits of at most so many queries before they are scaled, and which of them are not masked."""
    query, key = given["query"].detach(), given["key"].detach()
    length = query.shape[-2]
    rows, seen = _positions(length, key.shape[-2], most, bool(given.get("is_causal")), query.device)
    query = query if length <= most else query.index_select(-2, rows)
    if query.dim() == 4 and key.shape[-3] != query.shape[-3]:  # (batch, heads, time, D): grouped queries
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = (query @ key.transpose(-2, -1)).float()
    mask = given.get("attn_mask")
    if mask is not None:
        allowed = mask if mask.dtype is torch.bool else mask > MASKED
        allowed = allowed[..., rows, :] if allowed.shape[-2] == length else allowed
        seen = seen & allowed
    return logits, seen


@lru_cache(maxsize=64)
def _positions(length: int, keys: int, most: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """At most so many queries, spread over a sequence, and which keys each of them sees: (rows,), (rows, keys)."""
    rows = torch.arange(length, device=device)
    if length > most:
        rows = (torch.arange(most, device=device) * length) // most
    if causal:
        return rows, rows[:, None] >= torch.arange(keys, device=device)[None, :]
    return rows, torch.ones(len(rows), keys, dtype=torch.bool, device=device)


def _first_examples(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an attention for a few examples of its batch: (batch, heads, time, D)."""
    batch = given["query"].shape[0]
    few = {
        name: tensor[:FEWEST_EXAMPLES]
        for name, tensor in given.items()
        if isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[0] == batch
    }
    return {**given, **few}
