"""Optimizer -> whether its weight decay pulls a parameter by learning rate times decay, measured on a small copy.

It does so where the decay is decoupled from the gradient (AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101), and under
SGD, where both are one. Added to a gradient that is normalised afterwards, as by Adam, it is a part of that, and its
size is no pull.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from coordcheck.recording.updates.degrees import RATE, SIZE, alone, class_step, randomness_kept, settings_key

DECAY = 0.1  # in place of the weight decay
STEPS = 8  # after which RAdam normalises, too
WITHIN = 0.5, 9.0  # times learning rate x decay x parameter: momentum makes some of it
ALONG = 0.99  # cosine of the parameter and what it lost


def pulled(optimizer: Optimizer, group: dict[str, Any]) -> bool | None:
    """Whether a decay moves the parameters of a group by learning rate times decay times themselves.

    Returns:
        None where there is no decay, or it could not be measured.
    """
    if not (group.get("weight_decay") and isinstance(group.get("lr"), (int, float)) and group["params"]):
        return None
    rank = max(parameter.dim() for parameter in group["params"])
    if not rank:  # of one number, every movement is along itself
        return None
    key = settings_key(optimizer, group, [rank])
    if key is not None and key in _KNOWN:
        return _KNOWN[key]
    try:
        found = _measured(optimizer, group, rank)
    except Exception:  # of the user's optimizer, which may need more than a gradient
        return None
    if key is not None:
        _KNOWN[key] = found
    return found


_KNOWN: dict[tuple[Any, ...], bool] = {}


def _measured(optimizer: Optimizer, group: dict[str, Any], rank: int) -> bool:
    """Whether it does so at its last step of a few without a gradient."""
    device = group["params"][0].device
    device = torch.device("cpu") if device.type == "meta" else device
    start = torch.randn((SIZE,) * rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    block = nn.Parameter(start.clone())
    made = alone(optimizer, group, [block], float(group["eps"]) if isinstance(group.get("eps"), float) else 0.0)
    made.param_groups[0]["weight_decay"] = DECAY
    with torch.enable_grad(), randomness_kept(device):
        for _ in range(STEPS):
            before = block.detach().clone()
            block.grad = torch.zeros_like(before)
            class_step(made)(made)
    lost, whole = (before - block.detach()).flatten(), RATE * DECAY * start.flatten()
    size = float(torch.linalg.vector_norm(lost) / torch.linalg.vector_norm(whole))
    along = float(torch.nn.functional.cosine_similarity(lost, whole, dim=0))
    return WITHIN[0] < size < WITHIN[1] and along > ALONG
