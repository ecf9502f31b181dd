"""Model -> rows: hooks that record the scale of every module call, one window per step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from coordcheck.recording import scales
from coordcheck.recording.distributed.shards import hands_on, is_spread, local_part, owns_shards
from coordcheck.recording.hooks.hooks import OUTSIDE, Hook, graph_task, refuse_unhookable
from coordcheck.recording.hooks.hooks import in_backward as in_backward
from coordcheck.recording.hooks.wrappers import layers_of
from coordcheck.recording.layers.calls import Call, Reference, leaves, shape_of, version
from coordcheck.recording.layers.inputs import InitialInputs
from coordcheck.recording.layers.windows import Window, rows_of_windows
from coordcheck.runs.names import distinct
from coordcheck.runs.records import Row, Site
from coordcheck.runs.words import Kind, Status

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
        eager: the caller makes compiled parts of the model run eagerly.
        same_noise: the caller sees to it that dropout draws the same at every step.

    Attributes:
        sizes: how many coordinates of this rank each row stands for, by site and step.
        task: the backward pass whose calls are recorded; a call inside another one is activation checkpointing
            computing the same call again.

    Raises:
        CoordCheckError: a model whose calls cannot be hooked (a ScriptModule, a compiled model).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fixed_batch: bool = False,
        listens: Callable[[Any], bool] = lambda output: True,
        eager: bool = False,
        same_noise: bool = False,
    ) -> None:
        refuse_unhookable(model, eager=eager)
        self.sites: dict[str, Site] = {}
        self.skipped: Counter[str] = Counter()
        self.sizes: dict[tuple[int, int], int] = {}
        self.task = OUTSIDE
        self._model = model
        self._listens = listens
        self._same_noise = same_noise
        self._reference = Reference()
        self._inputs = InitialInputs(fixed_batch)
        self._compared = False
        self._step: int | None = None
        self._last = 0
        self._known = 0
        self._produced: Any = None
        self._wholes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._calls: list[tuple[Site, Call]] = []
        self._moved: list[Tensor | bool] = []
        self._counts: Counter[str] = Counter()
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, Call]] = {}
        self._closed: list[Window] = []
        self._rows: list[Row] = []
        self._ever_called: set[str] = set()
        self._paths: set[str] = set()
        self._handles = ExitStack()

    def __enter__(self) -> SiteRecorder:
        self._paths = {name or ROOT for name, _ in layers_of(self._model)}
        with ExitStack() as handles:  # undone when a module refuses its hook
            for name, module in layers_of(self._model):
                on_forward: Callable[..., None] = partial(self._on_forward, name or ROOT)
                if owns_shards(module):
                    # first, to see what the forward gave before the hooks of tensor parallelism change it
                    produced = Hook(self._on_produced, self._failed)
                    handles.callback(module.register_forward_hook(produced, prepend=True).remove)
                    on_forward = partial(self._on_spread_forward, name or ROOT)
                handles.callback(module.register_forward_hook(Hook(on_forward, self._failed)).remove)
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
        return {name or ROOT for name, _ in layers_of(self._model)} - self._ever_called

    def notes(self) -> list[str]:
        """What the reader of the rows must know: outputs without a scale, and noise in every change."""
        notes = [f"{what} was not measured ({count} times)" for what, count in self.skipped.items()]
        dropout = [
            m for m in self._model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p and m.training
        ]
        if dropout and not self._same_noise:
            many = f"{len(dropout)} module{'s' * (len(dropout) > 1)}"
            notes.append(f"dropout is on in {many}: its noise is part of every change; set p=0 in build")
        return notes

    def _failed(self, error: Exception) -> None:
        self.skipped[f"a call ({type(error).__name__})"] += 1

    def _on_root_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is not None and graph_task() == self.task and self._listens(None):
            self._compare([local_part(leaf) for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def _compare(self, inputs: list[Tensor]) -> None:
        """Note whether the model's input is the one of t=0: the first call's of the window."""
        if self._compared:
            return
        self._compared = True
        try:
            self._moved.extend(self._inputs.moved(inputs))
        except Exception as error:  # a hook of ours must never raise into the user's model
            self.skipped[f"the model's input ({type(error).__name__})"] += 1

    def _on_produced(self, module: nn.Module, args: Any, output: Any) -> None:
        self._produced = output if self._step is not None and is_spread(output) else None

    def _on_spread_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Record a layer whose parameters are spread over ranks: its output may be a shard that does not say so."""
        produced, self._produced = self._produced, None
        if produced is None:
            self._on_forward(name, module, args, output)
        elif hands_on(output, produced):
            self._on_forward(name, module, args, produced)
        else:
            if isinstance(output, Tensor) and not is_spread(output):
                self._wholes[shape_of(local_part(output))] = shape_of(produced)
            self._on_forward(name, module, args, output)

    def _on_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._step is None or graph_task() != self.task or not self._listens(output):
            return
        if not self._compared:  # the model itself is not called: its first layer that sees the batch tells
            batch = [leaf for _, leaf in leaves(args) if isinstance(leaf, Tensor) and not leaf.requires_grad]
            if batch:
                self._compare([local_part(leaf) for leaf in batch])
        self._counts[name] += 1
        count = self._counts[name]
        layer = name if count == 1 else distinct(f"{name}#{count}", self._paths)
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
                self._record(distinct(f"{layer}:out{path}", self._paths), leaf)
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
        site = self.sites.get(layer) or self._site(layer, tensor, Kind.MODULE)
        call = Call(site, site.shape)
        try:
            part = local_part(tensor)
            call.shape = shape_of(part)
            self._reference.measure(call, part, self._step)
        except scales.NotMeasurable as reason:
            call.status = reason.status
            if is_spread(tensor) and reason.status is Status.UNSUPPORTED:
                self.skipped[f"the output of {layer}, of which every rank holds a summand,"] += 1
        except Exception:  # likewise: a tensor that cannot be read is a status
            call.status = Status.UNSUPPORTED
        self._calls.append((site, call))
        self._returned[id(tensor)] = (weakref.ref(tensor), version(tensor), call)

    def _site(self, layer: str, tensor: Tensor, kind: Kind) -> Site:
        site = self.sites.get(layer)
        if site is None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            # a plain tensor does not tell that it is a shard, but others of its shape were, a layer before it
            shape = self._wholes.get(shape_of(tensor), shape_of(tensor)) if not is_spread(tensor) else shape_of(tensor)
            site = self.sites[layer] = Site(layer, len(self.sites), kind, shape, dtype)
        return site

    def _reduce(self) -> None:
        """Turn the closed windows into rows."""
        closed, self._closed = self._closed, []
        self.sizes.update({(site.order, w.step): call.size for w in closed for site, call in w.calls})
        self._rows.extend(rows_of_windows(closed, self._reference.initial))
