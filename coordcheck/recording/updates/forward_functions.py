"""What a forward pass does without a parameter: products of two activations, and modules that hold none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from coordcheck.recording.graph.arguments import first_tensor
from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.hooks.wrappers import submodule
from coordcheck.recording.updates.parameter_uses import Trace
from coordcheck.runs.names import distinct
from coordcheck.runs.words import FORWARD

SHORT = {"scaled_dot_product_attention": "sdpa"}


class ForwardModule(NamedTuple):
    """A module without parameters: the first tensors that it took and gave."""

    path: str
    taken: Tensor
    given: Tensor


def forward_modules(model: nn.Module, tracer: Tracer, reserved: Iterable[str]) -> dict[str, ForwardModule]:
    """The modules without parameters by site name, `module path/forward`, which is none of the reserved names."""
    names, found, weights = set(reserved), dict[str, ForwardModule](), tracer.weights
    for path, call in tracer.calls.items():
        if call.output is None or path in tracer.parametric or path in weights:
            continue
        if next(submodule(model, path).parameters(), None) is not None:  # shared with another module
            continue
        try:
            taken, given = first_tensor((call.args, call.kwargs)), first_tensor(call.output)
        except ValueError:  # no floating tensor on one side
            continue
        found[distinct(f"{path}/{FORWARD}", names)] = ForwardModule(path, taken, given)
    return found


def named_products(tracer: Trace, taken: Container[str]) -> dict[str, AttentionCall]:
    """Products of two activations by site name: `module path/operation`, with `#k` from the second in one module on."""
    named: dict[str, AttentionCall] = {}
    counts = Counter[str]()
    for product in dict.fromkeys([*tracer.attentions, *tracer.products]):
        base = f"{product.layer}/{SHORT.get(product.operation, product.operation)}"
        counts[base] += 1
        named[distinct(base if counts[base] == 1 else f"{base}#{counts[base]}", taken)] = product
    return named
