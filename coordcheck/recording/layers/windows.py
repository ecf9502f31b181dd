"""Windows: what hooks see during one step, whether its input is still that of t=0, and the rows that it becomes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from coordcheck.recording.layers.calls import Call, fetched, reduced, rows_of, version, without_mask
from coordcheck.runs.records import Row, Site
from coordcheck.runs.words import Quantity, Status


class Window:
    """What the hooks see during one step: open until it is closed.

    Args:
        step: t.
        known: how many sites there were before it.

    Attributes:
        calls: each site with the call that computed its output: another site's for a passthrough.
        counts: how often each module was called.
        moved: flags, any of which tells that the model's input differs from the one at t=0; None before it was seen.
        missed: the sites that were not called in it, once it is closed.
    """

    def __init__(self, step: int, known: int) -> None:
        self.step, self.known = step, known
        self.closed = False
        self.calls: list[tuple[Site, Call]] = []
        self.counts: Counter[str] = Counter()
        self.moved: list[Tensor | bool] | None = None
        self.missed: list[Site] = []
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, Call]] = {}

    def add(self, site: Site, call: Call, returned: Tensor) -> None:
        """A call that returned a tensor."""
        self.calls.append((site, call))
        self._returned[id(returned)] = (weakref.ref(returned), version(returned), call)

    def call_of(self, tensor: Tensor) -> Call | None:
        """The call that returned this very tensor, with these values."""
        found = self._returned.get(id(tensor))
        # the version tells an Identity from an in-place ReLU, which returns the same object, changed
        return found[2] if found is not None and found[0]() is tensor and found[1] == version(tensor) else None

    def close(self, sites: Iterable[Site]) -> None:
        """The step is over; `sites` are those that were ever called."""
        seen = {site.layer for site, _ in self.calls}
        self.missed = [site for site in sites if site.layer not in seen]
        self.closed = True
        self._returned.clear()


def rows_of_windows(windows: Sequence[Window], initial: Mapping[str, Call]) -> Iterator[Row]:
    """The rows of some windows: one reduction per site, one transfer per device.

    `initial` holds each layer's call at t=0, with which its later calls are compared.
    """
    alike: dict[tuple[Any, ...], list[Call]] = {}  # the steps of one site, which are stacked
    for window in windows:
        for site, call in window.calls:
            if call.values is None and call.kept is not None and call.site is site:
                alike.setdefault((site.layer, call.shape, call.kept.shape), []).append(call)
    tables = {}
    for key, calls in alike.items():
        first = initial.get(key[0])
        same = first is not None and first.kept is not None and (first.shape, first.kept.shape) == key[1:]
        try:
            tables[key] = reduced(calls, first.kept if first is not None and same else None)
        except Exception:  # tensors that cannot be stacked or reduced outside their own context
            for call in calls:
                call.status = Status.UNSUPPORTED
    reduced_calls = (call for key in tables for call in alike[key])
    fetched_values = zip(reduced_calls, fetched(list(tables.values())), strict=True)
    values = {call: without_mask(call, scales, _start(call, initial)) for call, scales in fetched_values}
    for window in windows:
        moved = any_of(window.moved or ())
        for site, call in window.calls:
            yield from rows_of(site.order, window.step, call, call.values or values.get(call, ()), moved)
        for site in window.missed:
            yield Row(site.order, window.step, Quantity.ACTIVATION, None, Status.NOT_CALLED)


def _start(call: Call, initial: Mapping[str, Call]) -> Tensor | None:
    """What was kept of a site at t=0, where a later call is like it."""
    first = initial.get(call.site.layer)
    alike = first is not None and first.kept is not None and first.kept.shape == call.kept.shape
    return first.kept if first is not None and alike else None


class _Input(NamedTuple):
    """One input tensor of the model at t=0, and how often it had been written to."""

    tensor: Tensor
    version: int


class InitialInputs:
    """The model's input at t=0, with which later ones are compared.

    Args:
        fixed: the caller gives the same batch at every step, also after the model wrote into a copy of it.
    """

    def __init__(self, fixed: bool) -> None:
        self._fixed = fixed
        self._initial: list[_Input] | None = None

    def clear(self) -> None:
        self._initial = None

    def moved(self, inputs: Sequence[Tensor]) -> Iterator[Tensor | bool]:
        """Flags, any of which tells that the input differs; on a device they wait for nothing. None at t=0."""
        if self._initial is None:
            self._initial = [_Input(tensor, version(tensor)) for tensor in inputs]
            return
        if [now.shape for now in inputs] != [then.tensor.shape for then in self._initial]:
            yield True
            return
        for now, then in zip(inputs, self._initial, strict=True):
            if version(then.tensor) != then.version:  # what it was at t=0 is gone
                yield not self._fixed or now is then.tensor
            elif now is not then.tensor:
                yield (now != then.tensor).any()


def any_of(flags: Sequence[Tensor | bool]) -> bool:
    """Whether one of them tells that the input moved; waits for the device."""
    try:
        return any(bool(flag) for flag in flags)
    except Exception:  # fake and meta tensors hold no values to compare: their rows have no values either
        return False
