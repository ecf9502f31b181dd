"""Closed windows: what the hooks saw during one step, and the rows that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from coordcheck.recording.layers.calls import Call, fetched, reduced, rows_of
from coordcheck.recording.layers.inputs import any_of
from coordcheck.runs.records import Row, Site
from coordcheck.runs.words import Quantity, Status


class Window(NamedTuple):
    """What one closed window saw."""

    step: int
    calls: list[tuple[Site, Call]]
    """Each site with the call that computed its output: another site's for a passthrough."""
    missed: list[Site]
    moved: list[Tensor | bool]
    """Flags, any of which tells that the model's input differs from the one at t=0."""


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
    values = dict(zip(reduced_calls, fetched(list(tables.values())), strict=True))
    for window in windows:
        moved = any_of(window.moved)
        for site, call in window.calls:
            yield from rows_of(site.order, window.step, call, call.values or values.get(call, ()), moved)
        for site in window.missed:
            yield Row(site.order, window.step, Quantity.ACTIVATION, None, Status.NOT_CALLED)
