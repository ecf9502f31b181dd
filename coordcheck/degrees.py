"""Optimizer -> the degree of its updates in the gradient, measured on small copies of its parameters."""

from __future__ import annotations

import copy
import math
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LOSS_FACTOR = 10.0  # by which gradients are multiplied
SIZE = 16  # of a block of a parameter, along each of its axes
EPS = 1e-12  # in place of the optimizer's: the block's gradients must not be taken for it
RATE = 1e-3  # in place of the learning rate, which a warm-up may have put to zero


def degrees(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, float]:
    """log(d' / d) / log 10, with d the update of a parameter and d' that under ten times the gradient: SGD 1, Adam 0.

    Measured by class, group and number of axes on blocks of random numbers, by the optimizer's own `step` on a copy
    without a history. Parameters of an optimizer that does not run on them (a closure is needed) are left out.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            by_rank: dict[int, list[str]] = {}
            for parameter in group["params"]:
                if id(parameter) in names:
                    by_rank.setdefault(parameter.dim(), []).append(names[id(parameter)])
            for rank, degree in _by_rank(optimizer, group, list(by_rank)).items():
                found.update(dict.fromkeys(by_rank[rank], degree))
    return found


def _by_rank(optimizer: Optimizer, group: dict[str, Any], ranks: list[int]) -> dict[int, float]:
    """The degree of a group's updates by the number of axes, where it can be measured."""
    key = _key(optimizer, group, ranks)
    if key is None:
        return _measured(optimizer, group, ranks)
    if key not in _KNOWN:
        _KNOWN[key] = _measured(optimizer, group, ranks)
    return _KNOWN[key]


_KNOWN: dict[tuple[Any, ...], dict[int, float]] = {}


def _key(optimizer: Optimizer, group: dict[str, Any], ranks: list[int]) -> tuple[Any, ...] | None:
    """What the degree of torch's own optimizers depends on: measured once. None for others, which may keep more."""
    cls = type(optimizer)
    options = {name: value for name, value in group.items() if name not in _REPLACED}
    if not (ranks and cls.__module__.startswith("torch.optim.") and all(map(_is_plain, options.values()))):
        return None
    return cls, cls.step, group["params"][0].device, tuple(ranks), *options.items()


def _is_plain(option: Any) -> bool:
    if isinstance(option, tuple):
        return all(map(_is_plain, option))
    return option is None or isinstance(option, (bool, int, float, str))


_REPLACED = {"params", "lr", "initial_lr", "weight_decay"}


def _measured(optimizer: Optimizer, group: dict[str, Any], ranks: list[int]) -> dict[int, float]:
    if not ranks:
        return {}
    try:
        once, ten_times = (_moved(optimizer, group, ranks, factor) for factor in (1.0, LOSS_FACTOR))
    except Exception:  # of the user's optimizer, which may refuse vectors, or need more than a gradient
        alone = [] if len(ranks) < 2 else ranks
        return {rank: degree for one in alone for rank, degree in _measured(optimizer, group, [one]).items()}
    return {
        rank: math.log(after / before) / math.log(LOSS_FACTOR)
        for rank, before, after in zip(ranks, once, ten_times, strict=True)
        if before > 0 and after > 0 and math.isfinite(before) and math.isfinite(after)
    }


def _moved(optimizer: Optimizer, group: dict[str, Any], ranks: list[int], factor: float) -> list[float]:
    """How far one step of a copy of the optimizer moves blocks of so many axes."""
    device = group["params"][0].device
    generator = torch.Generator().manual_seed(0)
    starts, blocks = [], []
    for rank in ranks:
        start, gradient = torch.randn((2, *(SIZE,) * rank), generator=generator, dtype=torch.float64).to(device)
        block = nn.Parameter(start.clone())
        block.grad = gradient * factor
        starts.append(start)
        blocks.append(block)
    made = _alone(optimizer, group, blocks)
    step = type(made).step
    while hasattr(step, "__wrapped__") and getattr(step, "hooked", False):  # where hooks on all optimizers are called
        step = step.__wrapped__
    with torch.enable_grad(), _randomness_kept(device):  # so that both steps draw the same noise
        step(made)
    moves = zip(blocks, starts, strict=True)
    return [float(torch.linalg.vector_norm(block.detach() - start)) for block, start in moves]


@contextmanager
def _randomness_kept(device: torch.device) -> Iterator[None]:
    """Put back every state of random numbers that an optimizer's noise may draw from."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _alone(optimizer: Optimizer, group: dict[str, Any], blocks: Sequence[Tensor]) -> Any:
    """A copy of an optimizer that holds some blocks, and nothing of its history, hooks or schedulers.

    Whatever else the optimizer keeps, such as lists of its own or an optimizer inside it, is copied with it. In the
    copies an object that nothing can be done with stands in the place of each parameter: a step of an optimizer that
    reaches parameters by other ways than its groups fails, and does not move the model.
    """
    own = {key: value for key, value in group.items() if key != "params"}
    own |= {"weight_decay": 0.0} if "weight_decay" in own else {}
    own |= {"lr": RATE} if isinstance(own.get("lr"), (int, float)) else {}
    own |= {"eps": EPS} if isinstance(own.get("eps"), float) else {}
    made = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(p): object() for g in optimizer.param_groups for p in g["params"]}
    own = {**copy.deepcopy(own, memo), "params": [*blocks]}
    groups, state = [own], defaultdict[Any, Any](dict)
    memo |= {id(optimizer): made, id(optimizer.param_groups): groups, id(group): own, id(optimizer.state): state}
    kept = {name: value for name, value in vars(optimizer).items() if name not in _NOT_COPIED}
    hooks = {name: OrderedDict[int, Any]() for name in _HOOKS}
    made.__dict__ = {**copy.deepcopy(kept, memo), **hooks, "state": state, "param_groups": groups}
    return made


_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_NOT_COPIED = {*_HOOKS, "state", "param_groups", "step"}  # a scheduler puts a step there, bound to the original
