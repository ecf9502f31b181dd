"""Model -> rows: hooks that record the scale of every module call, one window per step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from coordcheck import scales
from coordcheck.calls import Call, Reference, leaves, shape_of, version
from coordcheck.hooks import OUTSIDE, Hook, graph_task, refuse_unhookable
from coordcheck.hooks import in_backward as in_backward
from coordcheck.inputs import InitialInputs
from coordcheck.records import Kind, Row, Site, Status
from coordcheck.windows import Window, rows_of_windows

ROOT = "(model)"
"""The layer name of the model's own output; module paths never hold parentheses."""

WINDOWS_KEPT = 8  # windows whose copies are held before they are reduced


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
        listens: whether a call belongs to the open window, asked with its output; None stands for the model's input.

    Attributes:
        task: the backward pass whose calls are recorded; a call inside another one is activation checkpointing
            computing the same call again.

    Raises:
        CoordCheckError: a model whose calls cannot be hooked (a ScriptModule, a compiled model).
    """

    def __init__(
        self, model: nn.Module, *, fixed_batch: bool = False, listens: Callable[[Any], bool] = lambda output: True
    ) -> None:
        refuse_unhookable(model)
        self.sites: dict[str, Site] = {}
        self.skipped: Counter[str] = Counter()
        self.task = OUTSIDE
        self._model = model
        self._listens = listens
        self._reference = Reference()
        self._inputs = InitialInputs(fixed_batch)
        self._compared = False
        self._step: int | None = None
        self._last = 0
        self._known = 0
        self._calls: list[tuple[Site, Call]] = []
        self._moved: list[Tensor | bool] = []
        self._counts: Counter[str] = Counter()
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, Call]] = {}
        self._closed: list[Window] = []
        self._rows: list[Row] = []
        self._ever_called: set[str] = set()
        self._handles = ExitStack()

    def __enter__(self) -> SiteRecorder:
        with ExitStack() as handles:  # undone when a module refuses its hook
            for name, module in self._model.named_modules():
                hook = Hook(partial(self._on_forward, name or ROOT), self._failed)
                handles.callback(module.register_forward_hook(hook).remove)
            root = Hook(self._on_root_input, self._failed)
            handles.callback(self._model.register_forward_pre_hook(root, with_kwargs=True).remove)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()
        self._reduce()
        self._reference.initial.clear()
        self._inputs.clear()

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
        self._step = self._last = step
        self._known = len(self.sites)

    @property
    def is_open(self) -> bool:
        """Whether calls are being recorded."""
        return self._step is not None

    @property
    def has_calls(self) -> bool:
        """Whether the open window has seen a call."""
        return bool(self._counts)

    def discard(self) -> None:
        """Forget the last window, open or closed, with the layers first seen in it, and start it anew."""
        for layer in list(self.sites)[self._known :]:
            del self.sites[layer]
        self._closed = [window for window in self._closed if window.step != self._last]
        if self._last == 0:
            self._reference.initial.clear()
            self._inputs.clear()
        self._clear()
        self.open(self._last)

    def _clear(self) -> None:
        self._calls, self._moved, self._compared = [], [], False
        self._counts.clear()
        self._returned.clear()

    def close(self) -> None:
        """Stop recording. On a device nothing is waited for, but every `WINDOWS_KEPT` windows."""
        step, self._step = self._step, None
        if step is None:
            return
        seen = {site.layer for site, _ in self._calls}
        missed = [site for layer, site in self.sites.items() if layer not in seen]
        self._closed.append(Window(step, self._calls, missed, self._moved))
        self._ever_called.update(self._counts)
        self._clear()
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

    def _failed(self, error: Exception) -> None:
        self.skipped[f"a call ({type(error).__name__})"] += 1

    def _on_root_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is not None and graph_task() == self.task and self._listens(None):
            self._compare([leaf for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def _compare(self, inputs: list[Tensor]) -> None:
        """Note whether the model's input is the one of t=0: the first call's of the window."""
        if self._compared:
            return
        self._compared = True
        try:
            self._moved.extend(self._inputs.moved(inputs))
        except Exception as error:  # a hook of ours must never raise into the user's model
            self.skipped[f"the model's input ({type(error).__name__})"] += 1

    def _on_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._step is None or graph_task() != self.task or not self._listens(output):
            return
        if not self._compared:  # the model itself is not called: its first layer that sees the batch tells
            batch = [leaf for _, leaf in leaves(args) if isinstance(leaf, Tensor) and not leaf.requires_grad]
            if batch:
                self._compare(batch)
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
                self._reference.initial[layer] = call
            return
        site = self._site(layer, tensor, Kind.MODULE)
        call = Call(site, shape_of(tensor))
        try:
            self._reference.measure(call, tensor, self._step)
        except scales.NotMeasurable as reason:
            call.status = reason.status
        except Exception:  # likewise: a tensor that cannot be read is a status
            call.status = Status.UNSUPPORTED
        self._calls.append((site, call))
        self._returned[id(tensor)] = (weakref.ref(tensor), version(tensor), call)

    def _site(self, layer: str, tensor: Tensor, kind: Kind) -> Site:
        site = self.sites.get(layer)
        if site is None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            site = self.sites[layer] = Site(layer, len(self.sites), kind, shape_of(tensor), dtype)
        return site

    def _reduce(self) -> None:
        """Turn the closed windows into rows."""
        closed, self._closed = self._closed, []
        self._rows.extend(rows_of_windows(closed, self._reference.initial))
