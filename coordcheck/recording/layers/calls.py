"""One recorded call: what is kept of its output, and the rows it becomes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from coordcheck.recording import scales
from coordcheck.recording.masks import unmasked
from coordcheck.runs.records import Row, Site, measured_row
from coordcheck.runs.words import Quantity, Status

MAX_DEPTH = 8  # of containers inside an output; deeper ones are counted as not measured
WHOLE_COORDINATES = 2**15  # on other devices, outputs up to this size are copied and reduced later, many at once


class Call:
    """One output tensor of one call, and what was kept of it."""

    __slots__ = ("change_status", "kept", "scales", "shape", "site", "size", "status", "values", "without_input")

    def __init__(self, site: Site, shape: tuple[int, ...]) -> None:
        self.site = site
        self.shape = shape
        """Of the output on this rank; the site holds that of the whole."""
        self.size = 0
        """How many coordinates were measured."""
        self.status = Status.OK
        self.change_status = Status.OK
        self.kept: Any = None
        """The sampled rows: an array in memory, at t=0 only; a tensor on a device, the whole output when small."""
        self.values: tuple[float, ...] | None = None
        """activation, mean_abs and, where there is one, change: of a tensor in memory."""
        self.scales: tuple[Tensor, Tensor] | None = None
        """activation and mean_abs of a large tensor that is on a device."""
        self.without_input: Sequence[Tensor | bool] = (False,)
        """Flags, all of which tell that what it took at t=0 was made of zeros and biases alone."""


class Reference:
    """Measures calls; those at t=0 leave a copy, with which later ones are compared.

    Attributes:
        initial: each layer's call at t=0.
    """

    def __init__(self) -> None:
        self.initial: dict[str, Call] = {}

    def measure(self, call: Call, tensor: Tensor, step: int | None) -> None:
        """Take what is needed of a call's output, before anything writes into it.

        Raises:
            NotMeasurable: it has no scale; the error holds the status that says why.
        """
        values = scales.measurable(tensor)
        call.size = values.numel()
        if values.device.type in scales.IN_MEMORY:
            self._measure(call, values.numpy(), step)
        else:
            self._hold(call, values, step)

    def _measure(self, call: Call, values: scales.Array, step: int | None) -> None:
        """Compute the scales of an array in memory; only t=0 leaves a copy, of its sampled rows."""
        call.values = scales.rms_and_mean_abs(values)
        found = unmasked(values, call.values[0], call.site.dtype)
        if found is not None:
            values, call.values = found.values, found.scales
        rows = scales.sampled_copy(values)
        initial = self._compared(call, rows, step)
        if initial is not None:
            change = scales.rms_of_difference(rows, initial) if found is None else found.change(initial)
            call.values = (*call.values, change)

    def _hold(self, call: Call, values: Tensor, step: int | None) -> None:
        """Keep copies of a tensor on a device, to be reduced later without waiting for it now."""
        if values.numel() <= WHOLE_COORDINATES:
            call.kept = values.clone()
        else:
            call.scales = scales.rms(values), scales.mean_abs(values)
            call.kept = scales.sample_rows(values)
        self._compared(call, call.kept, step)

    def _compared(self, call: Call, rows: Any, step: int | None) -> Any:
        """What a call is compared with: its site's rows at t=0; None at t=0, or when the call's status says why."""
        if step == 0:
            call.kept = rows
            self.initial[call.site.layer] = call
            return None
        initial = self.initial.get(call.site.layer)
        if initial is None or initial.kept is None:
            call.change_status = Status.NOT_CALLED
        elif (initial.shape, initial.kept.shape) != (call.shape, rows.shape):
            call.change_status = Status.SHAPE_CHANGED
        return initial.kept if initial is not None and call.change_status is Status.OK else None


def reduced(calls: Sequence[Call], initial: Tensor | None) -> Tensor:
    """activation, mean_abs and change of one site at several steps: (step, 3), on the site's device."""
    stack = torch.stack([call.kept for call in calls if call.kept is not None])  # (step, *kept)
    scaled = [torch.stack(call.scales) for call in calls if call.scales is not None]
    if scaled:  # large: reduced in the hook, and `kept` are its sampled rows
        columns = torch.stack(scaled, dim=1)  # (2, step)
    else:
        flat = stack.flatten(1) if stack.dim() > 1 else stack[:, None]  # (step, coordinate)
        columns = torch.stack([scales.rms(flat, 1), scales.mean_abs(flat, 1)])
    change = columns[:1]  # a place for the value; never read where there is no initial output to compare with
    if initial is not None:
        if not scaled and stack.dim() > 1:
            stack, initial = scales.sample_rows(stack, stacked=True), scales.sample_rows(initial)
        change = scales.rms((stack - initial).reshape(len(stack), -1), 1)[None]
    return torch.cat([columns, change]).T


def without_mask(call: Call, values: Sequence[float], initial: Any) -> Sequence[float]:
    """The values of a call on a device, of what is not masked of the rows that were kept.

    Args:
        call: the call.
        values: its activation, mean_abs and change, as they were reduced.
        initial: the rows that were kept at t=0, if there are any to compare with.
    """
    rows = call.kept.cpu().numpy()
    found = unmasked(rows, values[0] * math.sqrt(call.size / rows.size), call.site.dtype)
    if found is None:
        return values
    if initial is None:
        return (*found.scales, values[2])
    start = initial.cpu().numpy()
    first = unmasked(start, math.inf, call.site.dtype)
    return (*found.scales, found.change(scales.sampled_copy(start if first is None else first.values)))


def fetched(tables: Sequence[Tensor]) -> list[Sequence[float]]:
    """The rows of (n, 3) tables, in order, with one transfer per device."""
    by_device: dict[torch.device, list[int]] = {}
    for index, table in enumerate(tables):
        by_device.setdefault(table.device, []).append(index)
    fetched: dict[int, list[list[float]]] = {}
    for indices in by_device.values():
        rows = iter(torch.cat([tables[index] for index in indices]).tolist())
        for index in indices:
            fetched[index] = [next(rows) for _ in range(len(tables[index]))]
    return [row for index in range(len(tables)) for row in fetched[index]]


def rows_of(order: int, step: int, call: Call, values: Sequence[float], moved: bool) -> list[Row]:
    """The rows of one call: its values with their status, or the reason why there is none."""
    if call.status is not Status.OK:
        return [Row(order, step, Quantity.ACTIVATION, None, call.status)]
    if step == 0 and values[0] and math.isfinite(values[0]) and of_all(call.without_input):
        return [Row(order, 0, quantity, None, Status.ZERO_INPUT) for quantity in _QUANTITIES[:2]]
    reason = Status.MOVED_INPUT if moved and call.change_status is Status.OK else call.change_status
    known = _QUANTITIES if step and reason is Status.OK else _QUANTITIES[:2]
    rows = []
    for quantity, value in zip(known, values, strict=False):
        rows.append(measured_row(order, step, quantity, value))
    if step and reason is not Status.OK:
        rows.append(Row(order, step, Quantity.CHANGE, None, reason))
    return rows


_QUANTITIES = (Quantity.ACTIVATION, Quantity.MEAN_ABS, Quantity.CHANGE)  # the columns of a site's table


def of_all(flags: Sequence[Tensor | bool]) -> bool:
    """Whether all of them tell so; waits for the device."""
    try:
        return all(bool(flag) for flag in flags)
    except Exception:  # fake and meta tensors hold no values
        return False


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The sizes of a tensor, -1 for a ragged axis; nothing for a tensor that cannot tell its shape."""
    try:
        shape = tuple(tensor.shape)
    except RuntimeError:
        return ()
    return shape if _WHOLE.issuperset(map(type, shape)) else tuple(n if type(n) is int else -1 for n in shape)


_WHOLE = frozenset({int})


def version(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything inside nested tuples, lists, mappings and dataclasses, with its path: `[0]`, `.logits`."""
    children: Iterable[tuple[str, Any]]
    if isinstance(value, Tensor) or depth == MAX_DEPTH:
        yield path, value
        return
    if is_dataclass(value) and not isinstance(value, type):
        children = ((f".{f.name}", getattr(value, f.name)) for f in fields(value))
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        children = ((f".{names[i]}" if names else f"[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, Mapping):
        children = ((f"[{key!r}]", item) for key, item in value.items())
    else:
        yield path, value
        return
    for suffix, item in children:
        if isinstance(item, Tensor):
            yield path + suffix, item
        else:
            yield from leaves(item, path + suffix, depth + 1)
