"""Model -> rows: hooks that record the scale of every module call, one window per step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from coordcheck import scales
from coordcheck.calls import Call, fetched, leaves, reduced, rows_of, shape_of, version
from coordcheck.errors import CoordCheckError
from coordcheck.records import Kind, Quantity, Row, Site, Status

ROOT = "(model)"
"""The layer name of the model's own output; module paths never hold parentheses."""

IN_MEMORY = {"cpu"}  # device types whose scales are computed at once: there is nothing to wait for
WHOLE_COORDINATES = 2**15  # on other devices, outputs up to this size are copied and reduced later, many at once
WINDOWS_KEPT = 8  # windows whose copies are held before they are reduced


class _Input(NamedTuple):
    """One input tensor of the model at t=0, and how often it had been written to."""

    tensor: Tensor
    version: int


class _Window(NamedTuple):
    """What one closed window saw."""

    step: int
    calls: list[tuple[Site, Call]]
    """Each site with the call that computed its output: another site's for a passthrough."""
    missed: list[Site]
    moved: list[Tensor | bool]
    """Flags, any of which tells that the model's input differs from the one at t=0."""


class SiteRecorder:
    """Records activation, mean_abs and change of every module call, one window per step.

    Hooks are registered once, when the block is entered, and removed when it is left, also after an
    exception. They never raise into the model: what cannot be measured becomes a status. Values are
    taken inside the hook, so that in-place operations further on do not change them. Scales of tensors in
    memory are computed there; of tensors on a device, small ones are copied and large ones reduced, and
    nothing waits for the device until `rows` is asked for.

    Source: the quantities are those of Yang et al. 2022 (arXiv:2203.03466), appendix D.1, and their
    change from initialisation.

    Args:
        model: the model; it is not changed.
        fixed_batch: the caller gives the same batch at every step, also after the model wrote into a copy of it.

    Raises:
        CoordCheckError: a model whose calls cannot be hooked (a ScriptModule, a compiled model).
    """

    def __init__(self, model: nn.Module, *, fixed_batch: bool = False) -> None:
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise CoordCheckError(
                "the model is or holds a ScriptModule, whose calls cannot be hooked. Pass the eager module it was made "
                "from."
            )
        if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
            raise CoordCheckError(
                "the model is compiled, and hooks on a compiled model silently do not fire. Check the eager model: "
                "its scales are the same."
            )
        self.sites: dict[str, Site] = {}
        self.skipped: Counter[str] = Counter()
        self._model = model
        self._fixed_batch = fixed_batch
        self._initial: dict[str, Call] = {}
        self._initial_inputs: list[_Input] | None = None
        self._step: int | None = None
        self._calls: list[tuple[Site, Call]] = []
        self._moved: list[Tensor | bool] = []
        self._counts: Counter[str] = Counter()
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, Call]] = {}
        self._closed: list[_Window] = []
        self._rows: list[Row] = []
        self._ever_called: set[str] = set()
        self._handles = ExitStack()

    def __enter__(self) -> SiteRecorder:
        with ExitStack() as handles:  # undone when a module refuses its hook
            for name, module in self._model.named_modules():
                handles.callback(module.register_forward_hook(partial(self._on_forward, name or ROOT)).remove)
            root = self._model.register_forward_pre_hook(self._on_root_input, with_kwargs=True)
            handles.callback(root.remove)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()
        self._reduce()
        self._initial.clear()
        self._initial_inputs = None

    @contextmanager
    def window(self, step: int) -> Iterator[None]:
        """Record every module call made inside the block as step `step`."""
        self.open(step)
        try:
            yield
        finally:
            self.close()

    def open(self, step: int) -> None:
        """Start recording calls as step `step`."""
        self._step = step

    def close(self) -> None:
        """Stop recording. On a device nothing is waited for, but every `WINDOWS_KEPT` windows."""
        step, self._step = self._step, None
        if step is None:
            return
        seen = {site.layer for site, _ in self._calls}
        missed = [site for layer, site in self.sites.items() if layer not in seen]
        self._closed.append(_Window(step, self._calls, missed, self._moved))
        self._calls, self._moved = [], []
        self._ever_called.update(self._counts)
        self._counts.clear()
        self._returned.clear()
        if len(self._closed) == WINDOWS_KEPT:
            self._reduce()

    @property
    def rows(self) -> list[Row]:
        """The rows of all closed windows; waits for the device."""
        self._reduce()
        return self._rows

    def never_called(self) -> set[str]:
        """Module paths none of whose calls was seen so far."""
        return {name or ROOT for name, _ in self._model.named_modules()} - self._ever_called

    def notes(self) -> list[str]:
        """What the reader of the rows must know: outputs without a scale, and noise in every change."""
        notes = [f"{what} was not measured ({count} times)" for what, count in self.skipped.items()]
        dropout = [
            m for m in self._model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p and m.training
        ]
        if dropout:
            notes.append(
                f"dropout is on in {len(dropout)} modules: its noise is part of every change; set p=0 in build"
            )
        return notes

    def _on_root_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is None or in_backward() or self._counts[ROOT]:
            return
        try:
            self._compare_inputs([leaf for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        except Exception as error:  # a hook of ours must never raise into the user's model
            self.skipped[f"the model's input ({type(error).__name__})"] += 1

    def _compare_inputs(self, inputs: list[Tensor]) -> None:
        """Note whether the model's input is the one of t=0."""
        if self._initial_inputs is None:
            self._initial_inputs = [_Input(tensor, version(tensor)) for tensor in inputs]
            return
        initial = self._initial_inputs
        if [now.shape for now in inputs] != [then.tensor.shape for then in initial]:
            self._moved.append(True)
            return
        for now, then in zip(inputs, initial, strict=True):
            if version(then.tensor) != then.version:  # what it was at t=0 is gone
                self._moved.append(not self._fixed_batch or now is then.tensor)
            elif now is not then.tensor:
                self._moved.append((now != then.tensor).any())

    def _on_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        # a call during the backward pass is activation checkpointing computing the same call again
        if self._step is None or in_backward():
            return
        self._counts[name] += 1
        count = self._counts[name]
        layer = name if count == 1 else f"{name}#{count}"
        try:
            if isinstance(output, Tensor):
                self._record(layer, output)
            else:
                self._record_leaves(layer, output)
        except Exception as error:  # a hook of ours must never raise into the user's model
            self.skipped[f"the output of {layer} ({type(error).__name__})"] += 1

    def _record_leaves(self, layer: str, output: Any) -> None:
        for path, leaf in leaves(output):
            if isinstance(leaf, Tensor):
                self._record(f"{layer}:out{path}", leaf)
            elif leaf is not None:
                self.skipped[f"an output of type {type(leaf).__name__}"] += 1

    def _record(self, layer: str, tensor: Tensor) -> None:
        returned = self._returned.get(id(tensor))
        # the version tells an Identity from an in-place ReLU, which returns the same object, changed
        if returned is not None and returned[0]() is tensor and returned[1] == version(tensor):
            call = returned[2]
            self._calls.append((self._site(layer, tensor, Kind.PASSTHROUGH), call))
            if self._step == 0:
                self._initial[layer] = call
            return
        site = self._site(layer, tensor, Kind.MODULE)
        call = Call(site, shape_of(tensor))
        try:
            self._keep(call, tensor)
        except scales.NotMeasurable as reason:
            call.status = reason.status
        except Exception:  # likewise: a tensor that cannot be read is a status
            call.status = Status.UNSUPPORTED
        self._calls.append((site, call))
        self._returned[id(tensor)] = (weakref.ref(tensor), version(tensor), call)

    def _keep(self, call: Call, tensor: Tensor) -> None:
        values = scales.measurable(tensor)
        if values.device.type in IN_MEMORY:
            self._measure(call, values.numpy())
        else:
            self._hold(call, values)

    def _measure(self, call: Call, values: scales.Array) -> None:
        """Compute the scales of an array in memory; only t=0 leaves a copy, of its sampled rows."""
        call.values = scales.rms_and_mean_abs(values)
        rows = scales.sampled_copy(values)
        initial = self._compared(call, rows)
        if initial is not None:
            with np.errstate(all="ignore"):  # Inf - Inf is a value like another here
                rows -= initial
            call.values = (*call.values, scales.rms_and_mean_abs(rows)[0])

    def _hold(self, call: Call, values: Tensor) -> None:
        """Keep copies of a tensor on a device, to be reduced later without waiting for it now."""
        if values.numel() <= WHOLE_COORDINATES:
            call.kept = values.clone()
        else:
            call.scales = scales.rms(values), scales.mean_abs(values)
            call.kept = scales.sample_rows(values)
        self._compared(call, call.kept)

    def _compared(self, call: Call, rows: Any) -> Any:
        """What a call is compared with: its site's rows at t=0; None at t=0, or when the call's status says why."""
        if self._step == 0:
            call.kept = rows
            self._initial[call.site.layer] = call
            return None
        initial = self._initial.get(call.site.layer)
        if initial is None or initial.kept is None:
            call.change_status = Status.NOT_CALLED
        elif (initial.shape, initial.kept.shape) != (call.shape, rows.shape):
            call.change_status = Status.SHAPE_CHANGED
        return initial.kept if initial is not None and call.change_status is Status.OK else None

    def _site(self, layer: str, tensor: Tensor, kind: Kind) -> Site:
        site = self.sites.get(layer)
        if site is None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            site = self.sites[layer] = Site(layer, len(self.sites), kind, shape_of(tensor), dtype)
        return site

    def _reduce(self) -> None:
        """Turn the closed windows into rows: one reduction per site, one transfer per device."""
        closed, self._closed = self._closed, []
        alike: dict[tuple[Any, ...], list[Call]] = {}  # the steps of one site, which are stacked
        for window in closed:
            for site, call in window.calls:
                if call.values is None and call.kept is not None and call.site is site:
                    alike.setdefault((site.layer, call.shape, call.kept.shape), []).append(call)
        tables = {}
        for key, calls in alike.items():
            first = self._initial.get(key[0])
            same = first is not None and first.kept is not None and (first.shape, first.kept.shape) == key[1:]
            initial = first.kept if first is not None and same else None
            try:
                tables[key] = reduced(calls, initial)
            except Exception:  # tensors that cannot be stacked or reduced outside their own context
                for call in calls:
                    call.status = Status.UNSUPPORTED
        reduced_calls = (call for key in tables for call in alike[key])
        values = dict(zip(reduced_calls, fetched(list(tables.values())), strict=True))
        for window in closed:
            moved = _any(window.moved)
            for site, call in window.calls:
                self._rows.extend(rows_of(site.order, window.step, call, call.values or values.get(call, ()), moved))
            for site in window.missed:
                self._rows.append(Row(site.order, window.step, Quantity.ACTIVATION, None, Status.NOT_CALLED))


def in_backward() -> bool:
    """Whether this thread is inside a backward pass."""
    # the id of the autograd graph task this thread runs for, -1 outside a backward pass; torch keeps
    # no public name for it, and its own checkpointing reads it here
    return bool(torch._C._current_graph_task_id() != -1)


def _any(flags: Sequence[Tensor | bool]) -> bool:
    try:
        return any(bool(flag) for flag in flags)
    except Exception:  # fake and meta tensors hold no values to compare: their rows have no values either
        return False
