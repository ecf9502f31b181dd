"""Outputs of calls -> sites, and what is measured at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.distributed.shards import is_spread, local_part
from coordcheck.recording.layers.calls import Call, Reference, leaves, shape_of
from coordcheck.recording.layers.spread import SpreadOutputs
from coordcheck.recording.layers.windows import Window
from coordcheck.runs.names import distinct
from coordcheck.runs.records import Site
from coordcheck.runs.words import Kind, Status

FIRST = 64  # coordinates that are looked at before all are


class Sites:
    """The sites of one model, in the order in which calls first returned there.

    Args:
        paths: those of the model's modules, which no other site is named like.

    Attributes:
        known: the sites by layer.
        skipped: what was not measured, and how often.
        spread: tells of outputs that are shards.
    """

    def __init__(self, paths: Container[str]) -> None:
        self.known: dict[str, Site] = {}
        self.skipped: Counter[str] = Counter()
        self.spread = SpreadOutputs()
        self._paths = paths
        self._reference = Reference()

    @property
    def initial(self) -> dict[str, Call]:
        """Each layer's call at t=0."""
        return self._reference.initial

    def forget(self, window: Window) -> None:
        """Forget the layers that were first seen in a window, and their outputs at t=0 if it was that."""
        for layer in list(self.known)[window.known :]:
            del self.known[layer]
        if window.step == 0:
            self.initial.clear()

    def record(self, window: Window, name: str, output: Any, inputs: Any = ()) -> None:
        """Record a call of the module of this name in a window; at t=0 with its inputs, which may be all zeros."""
        window.counts[name] += 1
        count = window.counts[name]
        layer = name if count == 1 else distinct(f"{name}#{count}", self._paths)
        try:
            without_input = _without_input(window, inputs) if window.step == 0 else (False,)
            if isinstance(output, Tensor):
                self._record(window, layer, output, without_input)
            else:
                self._record_leaves(window, layer, output, without_input)
        except Exception as error:  # a hook of ours must never raise into the user's model
            self.skipped[f"the output of {layer} ({type(error).__name__})"] += 1

    def _record_leaves(self, window: Window, layer: str, output: Any, without_input: Sequence[Tensor | bool]) -> None:
        for path, leaf in leaves(output):
            if isinstance(leaf, Tensor):
                self._record(window, distinct(f"{layer}:out{path}", self._paths), leaf, without_input)
            elif leaf is not None:
                self.skipped[f"an output of type {type(leaf).__name__}"] += 1

    def _record(self, window: Window, layer: str, tensor: Tensor, without_input: Sequence[Tensor | bool]) -> None:
        passed_on = window.call_of(tensor)
        if passed_on is not None:
            window.calls.append((self._site(layer, tensor, Kind.PASSTHROUGH), passed_on))
            if window.step == 0:
                self.initial[layer] = passed_on
            return
        site = self.known.get(layer) or self._site(layer, tensor, Kind.MODULE)
        call = Call(site, site.shape)
        call.without_input = without_input
        try:
            part = local_part(tensor)
            call.shape = shape_of(part)
            self._reference.measure(call, part, window.step)
        except scales.NotMeasurable as reason:
            call.status = reason.status
            if is_spread(tensor) and reason.status is Status.UNSUPPORTED:
                self.skipped[f"the output of {layer}, of which every rank holds a summand,"] += 1
        except Exception:  # likewise: a tensor that cannot be read is a status
            call.status = Status.UNSUPPORTED
        window.add(site, call, tensor)

    def _site(self, layer: str, tensor: Tensor, kind: Kind) -> Site:
        site = self.known.get(layer)
        if site is None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            site = self.known[layer] = Site(layer, len(self.known), kind, self.spread.whole_shape(tensor), dtype)
        return site


def _without_input(window: Window, inputs: Any) -> Sequence[Tensor | bool]:
    """Flags, all of which tell that a call took nothing but zeros, and what others made of zeros."""
    tensors = [leaf for _, leaf in leaves(inputs) if isinstance(leaf, Tensor) and leaf.device.type != "meta"]
    if not tensors or not all(tensor.is_floating_point() for tensor in tensors):
        return (False,)
    found: list[Tensor | bool] = []
    for tensor in tensors:
        made_by = window.call_of(tensor)
        if made_by is not None and made_by.without_input[0] is not False:
            found += made_by.without_input
            continue
        if made_by is not None and made_by.values is not None and made_by.values[0]:  # they are not all zeros
            return (False,)
        part = local_part(tensor)
        try:
            if part.device.type in scales.IN_MEMORY and bool(part.detach().reshape(-1)[:FIRST].any()):
                return (False,)
            found.append(~part.any())
        except Exception:  # a tensor that cannot be read
            return (False,)
    return found
