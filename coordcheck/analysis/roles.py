"""Uses at several widths -> roles: how a parameter's shape grows decides how it should be scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from coordcheck.analysis.slopes import exponent_of
from coordcheck.runs.records import ParameterInfo, RunRecord, Use
from coordcheck.runs.words import FORWARD, Kind, Role, Side, Through

GROWS = 0.25  # slope of log2(size) against log2(width) from which on a size counts as growing
EMBEDDING = "embedding"


Measured = dict[int, tuple[Use, RunRecord]]
"""One use, with the run that has it, by width."""


class UseAcrossWidths(NamedTuple):
    """One parameter in one use (or a block of its rows), or one attention, across the widths of a label."""

    name: str
    parameter: str
    layer: str
    operation: str
    role: Role
    fan_in: float
    """Slope of log2(fan-in) against log2(width); for attention, of the head size."""
    fan_out: float
    largest_fan_out: int
    degree: float | None
    exact: bool
    attends: tuple[str, ...]
    """The attentions whose logits its output goes into: of queries and keys."""
    tied: bool
    """Whether it is the second use of a parameter, such as an embedding that is read out as well."""
    trained: bool
    hidden: str
    multipliers: Mapping[int, float]
    """By width."""
    fan_ins: Mapping[int, int]
    fan_outs: Mapping[int, int]
    sizes: Mapping[int, int]
    """How many coordinates it has."""
    rates: Mapping[int, float]
    """Its learning rate."""
    upstreams: Mapping[int, float]
    """The part of its multiplier in front of the operation, by width."""
    through: Through
    outwards: Mapping[int, float]
    """The scalars between its output and the product of queries and keys; of an attention, those before it."""
    roundings: Mapping[int, float]
    """RMS of dL/dp beside that of dL/dh below which it is rounding error, where p is a vector."""
    dtype: str = "float32"
    feeds: tuple[str, ...] = ()
    """The uses and attentions that take up its output next."""
    module: str = ""
    """The module on which a multiplier acts on it alone; empty where there is none, or not the same at all widths."""
    side: Side = Side.NONE
    channels: Mapping[int, tuple[int, ...]] = MappingProxyType({})
    """Of a block, or of queries that are one, as records tell them, by width."""

    @property
    def of_rate_zero(self) -> bool:
        """Whether an optimizer holds it with a learning rate of 0, at every width."""
        return bool(self.rates) and not any(self.rates.values())

    @property
    def of_rate_above_zero(self) -> bool:
        """Whether an optimizer holds it with another one, at some width."""
        return any(self.rates.values())


def uses_across_widths(
    records: Sequence[RunRecord], overrides: Mapping[str, str] | None = None
) -> list[UseAcrossWidths]:
    """Every use in one label's models, in data-flow order, with its role.

    Args:
        records: the runs of one label.
        overrides: glob of parameter names -> role, where the shapes do not tell.

    Returns:
        One per parameter and use, and per block of a matrix whose blocks are used apart.
    """
    uses: dict[str, Measured] = {}
    for record in records:
        for use in record.uses:
            uses.setdefault(record.sites[use.site].layer, {}).setdefault(record.key.width, (use, record))
    uses = _without_growing_numbers(uses)
    grows = {name: growth({w: u.fan_in for w, (u, _) in at.items()}) for name, at in uses.items()}
    outs = {name: growth({w: u.fan_out for w, (u, _) in at.items()}) for name, at in uses.items()}
    feeds = {name: _fed(at) for name, at in uses.items()}
    followed = _followed(feeds, {n for n in uses if max(grows[n], outs[n]) > GROWS})
    attentions = {name for name, at in uses.items() if _is_attention(next(iter(at.values()))[0])}
    known = {use.site: name for name, at in uses.items() for use, _ in at.values()}
    infos = {id(record): {info.name: info for info in record.parameters} for record in records}
    first: dict[str, str] = {}
    found = []
    for name in sorted(uses, key=lambda name: _order(uses[name])):
        use, record = next(iter(uses[name].values()))
        if name in attentions and use.hidden and grows[name] <= GROWS:
            continue  # a product over a fixed axis, as of attention weights and values, has no scale to judge
        block = name.startswith(f"{use.parameter}[")
        tied = bool(use.parameter) and not block and first.setdefault(use.parameter, name) != name
        elementwise = record.sites[use.site].kind is Kind.PARAMETER and _elementwise(use, record)
        role = (
            Role.ATTENTION
            if name in attentions
            else Role.FUNCTION
            if use.operation == FORWARD
            else role_of(grows[name], outs[name], elementwise, name in followed)
        )
        role = override_of(use.parameter, overrides) or role
        found.append(
            UseAcrossWidths(
                *(name, use.parameter, use.layer, use.operation, role, grows[name], outs[name]),
                max(u.fan_out for u, _ in uses[name].values()),
                next((u.degree for u, _ in uses[name].values() if u.degree is not None), None),
                all(u.exact for u, _ in uses[name].values()),
                tuple(known[fed] for fed in use.feeds if known.get(fed) in attentions),
                *(tied, not use.parameter or use.parameter in infos[id(record)]),
                hidden=next((u.hidden for u, _ in uses[name].values() if u.hidden), ""),
                through=use.through,
                dtype=record.sites[use.site].dtype,
                feeds=tuple(known[fed] for fed in use.feeds if fed in known),
                **_by_width(uses[name], infos),
            )
        )
    return found


def _without_growing_numbers(uses: Mapping[str, Measured]) -> dict[str, Measured]:
    """Without the blocks of a parameter that has not as many of them at all widths, such as one for each head."""
    widths = {width for at in uses.values() for width in at}
    blocks = {name: next(iter(at.values()))[0].parameter for name, at in uses.items()}
    blocks = {name: parameter for name, parameter in blocks.items() if name.startswith(f"{parameter}[")}
    growing = {parameter for name, parameter in blocks.items() if uses[name].keys() != widths}
    return {name: at for name, at in uses.items() if blocks.get(name) not in growing}


def _by_width(at: Measured, infos: Mapping[int, Mapping[str, ParameterInfo]]) -> dict[str, Any]:
    """What is known of a use at each width, by the field's name."""
    found = {width: infos[id(record)].get(use.parameter) for width, (use, record) in at.items()}
    return {
        "multipliers": {width: use.multiplier for width, (use, _) in at.items()},
        "upstreams": {width: use.upstream for width, (use, _) in at.items()},
        "outwards": {width: use.outward for width, (use, _) in at.items()},
        "roundings": {width: use.rounding for width, (use, _) in at.items()},
        "fan_ins": {width: use.fan_in for width, (use, _) in at.items()},
        "fan_outs": {width: use.fan_out for width, (use, _) in at.items()},
        "sizes": {width: math.prod(record.sites[use.site].shape) for width, (use, record) in at.items()},
        "rates": {w: info.learning_rate for w, info in found.items() if info and info.learning_rate is not None},
        **_placed(at),
    }


def _placed(at: Measured) -> dict[str, Any]:
    """Where it can be multiplied by itself, by the field's name."""
    places = {(use.module, use.side) for use, _ in at.values()}
    module, side = places.pop() if len(places) == 1 else ("", Side.NONE)
    return {"module": module, "side": side, "channels": {width: use.channels for width, (use, _) in at.items()}}


def override_of(parameter: str, overrides: Mapping[str, str] | None) -> Role | None:
    """The role that the last matching glob says, if any."""
    wanted = None
    for glob, role in (overrides or {}).items():
        if parameter and fnmatchcase(parameter, glob):
            wanted = Role(role)
    return wanted


def _is_attention(use: Use) -> bool:
    return not use.parameter and use.operation != FORWARD


def outside(records: Sequence[RunRecord]) -> dict[tuple[str, str], float]:
    """The exponent of the width that a layer's output should have, because of a scalar outside of it.

    A readout whose logits are divided by the width may give logits that grow with it.

    Returns:
        Per (label, layer): minus the slope of log2 of the scalar against log2(width).
    """
    factors: dict[tuple[str, str], dict[int, float]] = {}
    for record in records:
        for path, factor in record.outside.items():
            factors.setdefault((record.key.label, path), {})[record.key.width] = abs(factor)
    slopes = {key: -round(2 * growth(by_width)) / 2 for key, by_width in factors.items()}
    return {key: slope for key, slope in slopes.items() if slope}


def role_of(fan_in: float, fan_out: float, elementwise: bool, followed: bool) -> Role:
    """The role of a parameter by the slopes of its fans, and by whether anything that grows takes up its output."""
    if elementwise:
        return Role.VECTOR if fan_out > GROWS else Role.CONSTANT
    if fan_in > GROWS:
        if fan_out > GROWS:
            return Role.HIDDEN
        return Role.NARROW if followed else Role.READOUT
    return Role.INPUT if fan_out > GROWS else Role.CONSTANT


def _elementwise(use: Use, record: RunRecord) -> bool:
    """A parameter that is not summed over: a vector, or a table that is added or multiplied."""
    shape = record.sites[use.site].shape
    return use.operation != EMBEDDING and (len(shape) < 2 or (use.fan_in == 1 and use.fan_out == math.prod(shape)))


def growth(sizes: Mapping[int, float]) -> float:
    """How a size grows with the width; not at all when there is one width."""
    found = exponent_of(sizes)
    return 0.0 if math.isnan(found) else found


def _order(at: Measured) -> float:
    return float(np.median([use.site for use, _ in at.values()]))


def _fed(at: Measured) -> set[str]:
    return {record.sites[site].layer for use, record in at.values() for site in use.feeds}


def _followed(feeds: Mapping[str, set[str]], growing: set[str]) -> set[str]:
    """The uses from which a growing matrix (or an attention) is reached."""
    takers: dict[str, list[str]] = {}
    for name, fed in feeds.items():
        for taken in fed:
            takers.setdefault(taken, []).append(name)
    followed = {name for name, fed in feeds.items() if fed & growing - {name}}
    waiting = list(followed)
    while waiting:
        before = [name for name in takers.get(waiting.pop(), ()) if name not in followed]
        followed.update(before)
        waiting += before
    return followed
