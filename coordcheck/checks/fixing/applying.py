"""Rules applied to a model and its optimizer, from outside of the model's code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.analysis.changes import Changes, Rows, Times, changes
from coordcheck.checks.fixing.groups import split_groups
from coordcheck.checks.fixing.hooks import TimesChannels, TimesInput, TimesOutput, factors_of
from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.hooks.wrappers import layers_of, unwrapped_optimizers
from coordcheck.recording.layers.activations import ROOT
from coordcheck.runs.arguments import suggestion
from coordcheck.runs.numbers import whole_number
from coordcheck.runs.rules import RuleBook
from coordcheck.runs.words import Side

MARK = "_coordcheck_fixed"  # the attribute of a model that rules were applied to: the width


def apply_rules(book: RuleBook, model: nn.Module, optimizer: Any, width: int) -> None:
    """Multiply initial values and learning rates, and put hooks where a multiplier needs one; all or nothing.

    Args:
        book: the rules.
        model: as it was initialised, wrapped or not.
        optimizer: one, or several, that have not made a step yet and have no scheduler.
        width: the model's.

    Raises:
        CoordCheckError: what stands in the way; nothing was changed then.
    """
    m = whole_number("width", width, 1) / book.base_width
    optimizers, wanted = _optimizers(optimizer), changes(book.rules)
    layers = dict(layers_of(model))
    parameters = named_parameters(layers)
    _refuse_model(model, parameters)
    _refuse_optimizers(optimizers)
    _refuse_names(wanted, parameters, layers)
    _refuse_unknown(book, parameters)
    rows = {at: _row_factors(at, parameters[at.parameter], width, m**power) for at, power in wanted.rows.items()}
    hooks = [(layers[_path(at)], _hook(at, layers, width, m**power)) for at, power in wanted.times.items() if m != 1]
    decay = book.weight_decay == "constant"
    before = [[dict(group) for group in one.param_groups] for one in optimizers]
    try:
        for one in optimizers:
            rates, eps = (_by_id(part, parameters) for part in (wanted.learning_rate, wanted.eps))
            split_groups(one, rates, eps, m, constant_decay=decay)
    except CoordCheckError:
        for one, groups in zip(optimizers, before, strict=True):
            one.param_groups[:] = groups
        raise
    with torch.no_grad():
        for name, power in wanted.init.items():
            parameters[name].mul_(m**power)
        for at, factors in rows.items():
            parameters[at.parameter].mul_(_like(factors, parameters[at.parameter]))
    for module, hook in hooks:
        module.register_forward_pre_hook(hook) if hook.before else module.register_forward_hook(hook)
    layers[""].__dict__[MARK] = width


def named_parameters(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter of a model under its first name, without the names of wrappers."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in layers.items():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{path}.{name}" if path else name] = parameter
    return found


def _optimizers(given: Any) -> list[Any]:
    """One optimizer or several, torch's own or such that have groups and steps, without wrappers around them."""
    several = list(given) if isinstance(given, Sequence) else [given]
    others = [one for one in several if not isinstance(one, Optimizer)]
    if several and all(hasattr(one, "step") and hasattr(one, "param_groups") for one in others):
        return [one if one in others else unwrapped_optimizers(one)[0] for one in several]
    return list(unwrapped_optimizers(given))


def _refuse_model(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    marked = [module.__dict__[MARK] for module in model.modules() if MARK in module.__dict__]
    if marked:
        raise CoordCheckError(
            f"rules were applied to this model before, for width {marked[0]}. Twice is too much: build it anew."
        )
    lazy = [name for name, p in parameters.items() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise CoordCheckError(f"{lazy[0]} has no values yet: call the model once before the rules are applied.")
    meta = [name for name, p in parameters.items() if p.device.type == "meta"]
    if meta:
        raise CoordCheckError(
            f"{meta[0]} is on the meta device, where there are no initial values to multiply. Call this after "
            "model.to_empty(device=...) and the initialisation, and before the first step."
        )
    sharded = [name for name, module in model.named_modules() if "_fsdp_wrapped_module" in module._modules]
    if sharded:
        raise CoordCheckError(
            "the model is a FullyShardedDataParallel, whose parameters have lost their shapes. Apply the rules before "
            "it is wrapped, or use fully_shard of torch.distributed.fsdp."
        )


def _refuse_optimizers(optimizers: Sequence[Any]) -> None:
    for one in optimizers:
        # what torch.optim.lr_scheduler leaves on an optimizer that it was given
        if hasattr(one.step, "_wrapped_by_lr_sched") or any("initial_lr" in group for group in one.param_groups):
            raise CoordCheckError(
                f"a scheduler of learning rates is attached to {type(one).__name__}: it holds the rates that groups "
                "had. Make the scheduler after the rules are applied."
            )
        if any(map(_stepped, getattr(one, "state", {}).values())):
            raise CoordCheckError(
                f"{type(one).__name__} has made a step: initial values are no more. Apply the rules to the model as it "
                "was built, and load a checkpoint after that."
            )


def _stepped(state: Any) -> bool:
    if not isinstance(state, Mapping):
        return False
    return float(state.get("step", 0)) > 0 or isinstance(state.get("momentum_buffer"), Tensor)


def _refuse_names(wanted: Changes, parameters: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> None:
    names = {*wanted.init, *wanted.learning_rate, *wanted.eps, *(at.parameter for at in wanted.rows)}
    _refuse_strangers("parameter", names, parameters)
    paths = {_path(at) for at in wanted.times}
    _refuse_strangers("module", paths, layers)
    scripted = [path for path in paths if isinstance(layers[path], torch.jit.ScriptModule)]
    if scripted:
        raise CoordCheckError(
            f"{scripted[0]} is a ScriptModule, on which such hooks do not act: apply the rules before it is scripted."
        )


def _refuse_unknown(book: RuleBook, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a model with more parameters than the rules' own, such as a deeper one: nothing is known of these."""
    unknown = [name for name, p in parameters.items() if p.requires_grad and book.names and name not in book.names]
    if unknown:
        more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CoordCheckError(
            f"{unknown[0]!r}{suggestion(unknown[0], book.names)}{more}: the model that the rules are of has no such "
            "parameter. Fix the narrow model at the depth, and with the options, of the wide one."
        )


def _refuse_strangers(what: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    strangers = sorted(set(names) - known.keys())
    if strangers:
        more = f", and {len(strangers) - 1} more are not there either" if len(strangers) > 1 else ""
        raise CoordCheckError(
            f"the model has no {what} {strangers[0]!r}{suggestion(strangers[0], known)}{more}. These are rules for a "
            "model with other names: nothing was changed."
        )


def _path(at: Times) -> str:
    return "" if at.module == ROOT else at.module


def _by_id(powers: Mapping[str, float], parameters: Mapping[str, Tensor]) -> dict[int, float]:
    return {id(parameters[name]): power for name, power in powers.items()}


def _row_factors(at: Rows, parameter: Tensor, width: int, factor: float) -> Tensor:
    """A factor for each row of a parameter, in a shape that multiplies it."""
    dim, _, axes, *numbers = (linear.at(width) for linear in at.channels)
    last = parameter.dim() - dim
    sizes = [size if last - axes < axis <= last else 1 for axis, size in enumerate(parameter.shape)]
    if math.prod(sizes) != numbers[0]:
        raise _other_width(at.parameter, numbers[0], width)
    return factors_of(numbers, factor, parameter).view(sizes)


def _other_width(name: str, channels: int, width: int) -> CoordCheckError:
    return CoordCheckError(
        f"{name} has not the {channels} channels that it has in a model of width {width}: is width= that of this model?"
    )


def _like(factors: Tensor, parameter: Tensor) -> Tensor:
    """The factors as shards, where the parameter's values are."""
    if not hasattr(parameter, "device_mesh"):
        return factors
    from torch.distributed.tensor import distribute_tensor

    whole = factors.expand(parameter.shape).contiguous()
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]  # a DTensor


def _hook(at: Times, layers: Mapping[str, nn.Module], width: int, factor: float) -> Any:
    if at.side is Side.INPUT:
        return TimesInput(factor)
    if not at.channels:
        return TimesOutput(factor)
    _, axis, axes, *numbers = (linear.at(width) for linear in at.channels)
    own = dict(layers[_path(at)].named_parameters(recurse=False))
    if not any(numbers[0] in parameter.shape for parameter in own.values()):
        raise _other_width(at.module, numbers[0], width)
    bias = next((name for name, parameter in own.items() if at.without and parameter.dim() == 1), "")
    return TimesChannels(factors_of(numbers, factor), axis, axes, bias)
