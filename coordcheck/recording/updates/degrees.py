"""Optimizer -> the degree of its updates in the gradient, measured on small copies of its parameters.

An update that is the gradient times a factor is of degree 1 even where the factor falls as the gradient grows, as that
of a clipped gradient does: the update's size beside the gradient tells the factor, like the learning rate in it. What
is normalised however small it is, as by Adam, or by LARS for each parameter, is of degree 0.
"""

from __future__ import annotations

import copy
import math
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from coordcheck.recording import scales

LOSS_FACTOR = 10.0  # by which gradients are multiplied
SMALL = 1e-4  # and by which they are made so small that no clipping of them is left
CLIPS = 0.1  # the degree over those four decades from which on an update is taken for a clipped one
ALONG = 0.99  # |cosine| of update and gradient from which on one is the other times a factor, but for a decay
EPS_SEEN = 0.02  # a degree that is this far below 1 may be Adam's, with an eps as large as the gradient
FEW = 8  # coordinates, of which too many updates point along the gradient
SIZE = 16  # of a block of a parameter, along each of its axes
EPS = 1e-12  # in place of the optimizer's, of the gradients' own scale: they must not be taken for it
STEPS = 4  # of which one must move a block: a warm-up inside the step begins with some that do not
RATE = 1e-3  # in place of the learning rate, which a warm-up may have put to zero

Key = TypeVar("Key", bound=Hashable)


class Movement(NamedTuple):
    """What one update did to a parameter, under which gradient: their RMS, and the |cosine| between them."""

    change: float
    gradient: float
    along: float


def movement(change: Tensor, gradient: Tensor) -> Movement:
    """How far and where to a parameter moved.

    >>> movement(torch.tensor([-3.0, 4.0] * 4), torch.tensor([6.0, -8.0] * 4))
    Movement(change=3.5355339..., gradient=7.0710678..., along=1.0)
    """
    moved, size = float(scales.rms_of(change)), float(scales.rms_of(gradient))
    along = 0.0
    if change.numel() >= FEW and 0 < moved < math.inf and 0 < size < math.inf and not change.is_complex():
        along = round(abs(float(((change.double() / moved) * (gradient.double() / size)).mean())), 6)
    return Movement(moved, size, along)


def degree_between(one: Movement, other: Movement, factor: float) -> float | None:
    """log(d' / d) / log(g' / g), of changes d and gradients g of which one was multiplied by a factor; None if untold.

    >>> degree_between(Movement(1.0, 1.0, 0.0), Movement(100.0, 10.0, 0.0), 10.0)
    2.0
    """
    if not all(0 < size < math.inf for size in (one.change, one.gradient, other.change, other.gradient)):
        return None
    ratio = math.log(other.gradient / one.gradient)
    return math.log(other.change / one.change) / ratio if abs(ratio) > abs(math.log(factor)) / 2 else None


def but_for_clipping(
    found: Mapping[Key, float], movements: Mapping[Key, Movement], small: Callable[[], Mapping[Key, float]]
) -> dict[Key, float]:
    """The degrees, with that of what is clipped as it is below the threshold.

    Args:
        found: the degrees at the gradients' own size.
        movements: the updates at that size.
        small: called where it matters, gives the degrees from there down to `SMALL` times it.
    """
    held = {key for key, degree in found.items() if degree < 1 - EPS_SEEN and movements[key].along > ALONG}
    below = small() if held else {}
    return {key: 1.0 if key in held and below.get(key, 0.0) > CLIPS else degree for key, degree in found.items()}


def notes_on(unknown: Set[str], turned: Set[str]) -> Iterator[str]:
    """What the reader must know of parameters whose degree was not measured, or whose gradients became others."""
    for names, why in ((unknown, ""), (turned, ": it was changed before the step, not by a factor alone")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"how the update of {min(names)}{more} depends on the gradient's size was not measured{why}"


def degrees(model: nn.Module, optimizers: list[Optimizer], after: int = 0) -> dict[str, float]:
    """log(d' / d) / log 10, with d the update of a parameter and d' that under ten times the gradient: SGD 1, Adam 0.

    Measured by class, group and number of axes on blocks of random numbers, by the optimizer's own `step` on a copy
    without a history. Parameters of an optimizer that does not run on them (a closure is needed) are left out. Blocks
    for an optimizer that is not torch's have the scales that the parameters and gradients have now: fewer coordinates
    of one size have a smaller norm, so that a step that clips by it does so less, or not at all.

    Args:
        model: the model.
        optimizers: that hold its parameters.
        after: how many steps on the same gradients come before; they are small then, so that no sum of them tells.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            by_rank: dict[int, list[str]] = {}
            for parameter in group["params"]:
                if id(parameter) in names:
                    by_rank.setdefault(parameter.dim(), []).append(names[id(parameter)])
            for rank, degree in _by_rank(optimizer, group, list(by_rank), after).items():
                found.update(dict.fromkeys(by_rank[rank], degree))
    return found


def _by_rank(optimizer: Optimizer, group: dict[str, Any], ranks: list[int], after: int) -> dict[int, float]:
    """The degree of a group's updates by the number of axes, where it can be measured."""
    key = settings_key(optimizer, group, ranks)
    if key is None:
        return _measured(optimizer, group, ranks, after)
    if (key, after) not in _KNOWN:
        _KNOWN[key, after] = _measured(optimizer, group, ranks, after)
    return _KNOWN[key, after]


_KNOWN: dict[tuple[Any, ...], dict[int, float]] = {}


def settings_key(optimizer: Optimizer, group: dict[str, Any], ranks: list[int]) -> tuple[Any, ...] | None:
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


def _measured(optimizer: Optimizer, group: dict[str, Any], ranks: list[int], after: int) -> dict[int, float]:
    if not ranks:
        return {}
    try:
        size = SMALL if after else 1.0
        once = _moved(optimizer, group, ranks, size, after)

        def degrees_at(factor: float) -> dict[int, float]:
            other = _moved(optimizer, group, ranks, size * factor, after)
            degrees = {rank: degree_between(once[rank], other[rank], factor) for rank in ranks}
            return {rank: degree for rank, degree in degrees.items() if degree is not None}

        return but_for_clipping(degrees_at(LOSS_FACTOR), once, lambda: degrees_at(SMALL))
    except Exception:  # of the user's optimizer, which may refuse vectors, or need more than a gradient
        alone = [] if len(ranks) < 2 else ranks
        return {rank: degree for one in alone for rank, degree in _measured(optimizer, group, [one], after).items()}


def _moved(
    optimizer: Optimizer, group: dict[str, Any], ranks: list[int], factor: float, after: int
) -> dict[int, Movement]:
    """How far the first step of a copy of the optimizer, after some, that moves blocks of so many axes moves them."""
    device = group["params"][0].device
    generator = torch.Generator().manual_seed(0)
    blocks, starts, gradients = {}, {}, {}
    own = settings_key(optimizer, group, ranks) is None
    sizes = {rank: _sizes(group, rank) if own else (1.0, 1.0) for rank in ranks}
    for rank, (size, slope) in sizes.items():
        start, gradient = torch.randn((2, *(SIZE,) * rank), generator=generator, dtype=torch.float64).to(device)
        starts[rank], gradients[rank] = start * size, gradient * slope * factor
        blocks[rank] = nn.Parameter(starts[rank].clone())
    made = alone(optimizer, group, list(blocks.values()), EPS * min(slope for _, slope in sizes.values()))
    step = class_step(made)
    moved: dict[int, Movement] = {}
    with torch.enable_grad(), randomness_kept(device):  # so that both steps draw the same noise
        for number in range(after + STEPS):
            for rank, block in blocks.items():
                block.grad = gradients[rank].clone()  # which the step may write into
                starts[rank] = block.detach().clone() if number == after else starts[rank]
            step(made)
            for rank in ranks if number >= after else ():
                if rank not in moved and not torch.equal(blocks[rank], starts[rank]):
                    moved[rank] = movement(blocks[rank].detach() - starts[rank], gradients[rank])
            if len(moved) == len(ranks):
                break
    return {rank: moved.get(rank, Movement(0.0, 0.0, 0.0)) for rank in ranks}


def class_step(optimizer: Any) -> Callable[[Any], Any]:
    """The step of its class, without the hooks on all optimizers."""
    step = type(optimizer).step
    while hasattr(step, "__wrapped__") and getattr(step, "hooked", False):  # where these are called
        step = step.__wrapped__
    return step


def _sizes(group: dict[str, Any], rank: int) -> tuple[float, float]:
    """Typical scales of a group's parameters of so many axes, and of their gradients."""
    alike = [parameter for parameter in group["params"] if parameter.dim() == rank]
    values = [_typical([p.detach() for p in alike]), _typical([p.grad for p in alike if p.grad is not None])]
    return values[0], values[1]


def _typical(tensors: Sequence[Tensor]) -> float:
    """The median of their scales, of those that have one; 1 without any."""
    found = []
    for tensor in tensors:
        with suppress(scales.NotMeasurable):
            found.append(float(scales.rms_of(tensor)))
    known = [size for size in found if 0 < size < math.inf]
    return float(np.median(known)) if known else 1.0


@contextmanager
def randomness_kept(device: torch.device) -> Iterator[None]:
    """Put back every state of random numbers that an optimizer's noise may draw from."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _state_at_birth(optimizer: Optimizer, own: Mapping[str, Any]) -> defaultdict[Any, Any]:
    """The state of an optimizer that has not stepped: Adagrad's is made by its constructor, in torch 2.4 only there."""
    if type(optimizer) is not torch.optim.Adagrad:
        return defaultdict(dict)
    names = signature(torch.optim.Adagrad).parameters
    return torch.optim.Adagrad(**{name: value for name, value in own.items() if name in names}).state


def _flags(optimizer: Optimizer, alike: Sequence[Tensor]) -> dict[str, Any]:
    """What a constructor wrote down about a parameter, as whether it is orthogonalised; nothing once it has a history.

    Args:
        optimizer: whose.
        alike: the parameters of one group with so many axes, of all of which it must be the same.
    """
    known = [getattr(optimizer, "state", {}).get(parameter, {}) for parameter in alike]
    plain = all(isinstance(value, (bool, str)) for each in known for value in each.values())
    return dict(known[0]) if plain and all(each == known[0] for each in known) else {}


def is_plain(optimizer: Optimizer) -> bool:
    """Whether an optimizer is torch's own as it is, with nothing of the user's in its step or around it."""
    hooks = [getattr(optimizer, name, None) for name in _HOOKS]
    hooks += [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    return is_torchs(optimizer) and "step" not in vars(optimizer) and not any(hooks)


def is_torchs(optimizer: Optimizer) -> bool:
    """Whether its class is one of torch's own."""
    return type(optimizer).__module__.startswith("torch.optim.")


def alone(optimizer: Optimizer, group: dict[str, Any], blocks: Sequence[Tensor], eps: float) -> Any:
    """A copy of an optimizer that holds some blocks, and nothing of its history, hooks or schedulers.

    Whatever else the optimizer keeps, such as lists of its own or an optimizer inside it, is copied with it. In the
    copies an object that nothing can be done with stands in the place of each parameter: a step of an optimizer that
    reaches parameters by other ways than its groups fails, and does not move the model.
    """
    own = {key: value for key, value in group.items() if key != "params"}
    own |= {"weight_decay": 0.0} if "weight_decay" in own else {}
    own |= {"lr": RATE} if isinstance(own.get("lr"), (int, float)) else {}
    own |= {"eps": eps} if isinstance(own.get("eps"), float) else {}
    made = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(p): object() for g in optimizer.param_groups for p in g["params"]}
    own = {**copy.deepcopy(own, memo), "params": [*blocks]}
    groups, state = [own], _state_at_birth(optimizer, own)
    for block in blocks:
        if flags := _flags(optimizer, [p for p in group["params"] if p.dim() == block.dim()]):
            state[block] = flags
    memo |= {id(optimizer): made, id(optimizer.param_groups): groups, id(group): own}
    if hasattr(optimizer, "state"):  # which what wraps an optimizer need not have
        memo[id(optimizer.state)] = state
    kept = {name: value for name, value in vars(optimizer).items() if name not in _NOT_COPIED}
    hooks = {name: OrderedDict[int, Any]() for name in _HOOKS}
    made.__dict__ = {**copy.deepcopy(kept, memo), **hooks, "state": state, "param_groups": groups}
    return made


_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_NOT_COPIED = {*_HOOKS, "state", "param_groups", "step"}  # a scheduler puts a step there, bound to the original
