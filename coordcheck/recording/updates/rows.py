"""Own updates -> what a run leaves of them: sites, rows, and how each parameter was used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count

import torch

from coordcheck.recording.graph.calls import UseCall
from coordcheck.recording.graph.flow import AttentionCall, Node
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.layers.activations import ROOT
from coordcheck.recording.updates.forward_functions import ForwardModule
from coordcheck.recording.updates.own_updates import OwnUpdates
from coordcheck.recording.updates.parameter_uses import ParameterUse
from coordcheck.recording.updates.places import placed, placed_scores
from coordcheck.recording.updates.replays import Block
from coordcheck.runs.records import ROUNDED_AWAY, ROUNDING, RunRecord, Site, Use, measured_row
from coordcheck.runs.words import FORWARD, Kind, Quantity, Through

NO_SOFTMAX = "it multiplies two activations over a growing axis, and no softmax follows: its scale is not judged"

OF_A_SUM, OF_A_MEAN = 84, 32  # times eps: of a sum of a few numbers, and of a mean beside each of the numbers
MOST_ROUNDING = 0.05  # share of a gradient that no rounding reaches, in half precision either


def write_own_updates(own: OwnUpdates, record: RunRecord, degrees: Mapping[str, float]) -> None:
    """Add sites, rows and uses to the record.

    Args:
        own: what was measured.
        record: the run's, whose sites so far keep their numbers.
        degrees: of each parameter's update in its gradient, where that was measured.
    """
    sites = _sites(own, len(record.sites))
    places = {site.layer: site.order for site in sites}
    record.sites += sites
    for (name, step, quantity), scale in own.scales.all().items():
        if name in places:
            record.rows.append(measured_row(places[name], step, quantity, scale))
    nodes: dict[Node, int] = {
        use.call: places[use.name] for use in reversed(own.uses) if use.call is not None and not use.block
    }
    nodes |= {product: places[name] for name, product in own.products.items()}
    judged = set(own.tracer.attentions)
    record.uses += [
        *(_of_parameter(use, own, places[use.name], _fed(use.call, nodes), degrees) for use in own.uses),
        *(
            _of_product(
                product, places[name], _fed(product, nodes), "" if product in judged else NO_SOFTMAX, own.tracer
            )
            for name, product in own.products.items()
        ),
        *(_of_module(module, places[name]) for name, module in own.modules.items()),
    ]
    for use in own.uses:
        if use.call is not None:
            use.call.owns_scalars = _owns_scalars(use, own)
    record.outside = {path: factor for path, factor in own.tracer.outside.items() if math.isfinite(factor)}
    record.notes.extend(f"{what} was not measured" for what in own.tracer.skipped if " of " in what)


def _sites(own: OwnUpdates, first: int) -> list[Site]:
    """One of every use, product and module, numbered from `first` on."""
    order = count(first)
    sites = []
    for use in own.uses:
        value = use.rows(own.initial[use.parameter])
        dtype = str(value.dtype).removeprefix("torch.")
        sites.append(Site(use.name, next(order), Kind.PARAMETER, tuple(value.shape), dtype))
    for name, product in own.products.items():
        sites.append(Site(name, next(order), Kind.FUNCTION, (product.head_size,), "float32"))
    for name, module in own.modules.items():
        sites.append(Site(name, next(order), Kind.FUNCTION, tuple(module.given.shape), "float32"))
    return sites


def _fed(node: Node | None, places: Mapping[Node, int]) -> tuple[int, ...]:
    """The sites that take up the output of an operation."""
    return () if node is None else tuple(sorted({places[fed] for fed in node.fed if fed in places}))


def _of_parameter(
    use: ParameterUse, own: OwnUpdates, site: int, feeds: tuple[int, ...], degrees: Mapping[str, float]
) -> Use:
    replay, multiplier = use.replay, 1.0 if use.replay is None else use.replay.multiplier
    fan_in, fan_out = _fans(use, own)
    return Use(
        site=site,
        parameter=use.parameter,
        layer=(use.parameter.rpartition(".")[0] or ROOT) if replay is None else replay.layer,
        operation="" if replay is None else replay.operation,
        fan_in=max(fan_in, 1),
        fan_out=max(fan_out, 1),
        multiplier=_finite(multiplier),
        degree=degrees.get(use.parameter),
        exact=use.call is not None and use.call.linear,
        feeds=feeds,
        hidden=use.hidden or (ROUNDED_AWAY if use.name in own.lost else ""),
        upstream=1.0 if use.call is None else _finite(use.call.upstream),
        outward=_finite(use.outward),
        through=Through.ITSELF if use.made is None or use.hidden else use.made.through,
        rounding=ROUNDING if use.call is None else _rounding(use.call),
        **placed(use, own.tracer, own.initial),
    )


def _rounding(call: UseCall) -> float:
    """RMS of dL/dp beside that of dL/dh up to which rounding alone makes it, where each coordinate of p sums N of h.

    Errors that are drawn at each of the N add up as sqrt(N); that of a mean, which a normalisation takes off all of
    them, as N. A gradient that does not cancel is of the order of sqrt(N), or larger.
    """
    root = math.sqrt(max(call.made_by.outputs[0].size / max(math.prod(call.operand.size), 1), 1.0))
    own = torch.float32 if call.gradient is None else call.gradient.dtype
    eps = max(torch.finfo(own).eps, torch.finfo(torch.float32).eps)  # of double precision, parts may be single
    return root * min(eps * max(OF_A_SUM, OF_A_MEAN * root), MOST_ROUNDING)


def _fans(use: ParameterUse, own: OwnUpdates) -> tuple[int, int]:
    """How many coordinates it sums over, and how many it gives: of its call, or else as its shape tells.

    A stack of matrices gives those of all of them, whether one call takes it or a call for each.
    """
    shape = tuple(own.initial[use.parameter].shape)
    every = math.prod(shape) or 1
    if use.call is None:
        return (math.prod(shape[1:]) or 1, shape[0] or 1) if len(shape) >= 2 else (1, every)
    fan_in, fan_out = use.call.fans or (1, every)
    if isinstance(use.block, Block):
        return fan_in, use.block.piece.size * use.call.matrices
    if use.block is None:
        parts = own.tracer.slices.get((use.parameter, use.call.operation), {})
        return fan_in, fan_out * use.call.matrices * max(len(parts), 1)
    return fan_in, fan_out


def _of_product(product: AttentionCall, site: int, feeds: tuple[int, ...], hidden: str, tracer: Tracer) -> Use:
    return Use(
        site=site,
        parameter="",
        layer=product.layer,
        operation=product.operation,
        fan_in=product.head_size,
        fan_out=1,
        multiplier=product.scale,
        degree=None,
        exact=True,
        feeds=feeds,
        hidden=hidden,
        outward=_finite(product.before),
        **placed_scores(product, tracer),
    )


def _of_module(module: ForwardModule, site: int) -> Use:
    return Use(
        site=site,
        parameter="",
        layer=module.path,
        operation=FORWARD,
        fan_in=1,
        fan_out=1,
        multiplier=1.0,
        degree=None,
        exact=False,
        feeds=(),
    )


def _owns_scalars(use: ParameterUse, own: OwnUpdates) -> bool:
    """Whether the scalar between a projection and an attention brings its gain nearer to 1."""
    outward = abs(1.0 if use.call is None else use.call.outward)
    given, taken = (own.scales.get(use.name, 0, quantity) for quantity in (Quantity.OUTPUT, Quantity.INPUT))
    if outward in (0.0, 1.0) or not (given > 0 and taken > 0):
        return False
    gain = given / taken
    return abs(math.log(gain * outward)) < abs(math.log(gain))


def _finite(multiplier: float) -> float:
    return multiplier if math.isfinite(multiplier) else 0.0
