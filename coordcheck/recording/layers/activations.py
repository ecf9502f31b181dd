"""Model -> rows: hooks that record the scale of every module call, one window per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from coordcheck.recording.distributed.shards import local_part, owns_shards
from coordcheck.recording.hooks.hooks import OUTSIDE, Hook, graph_task, refuse_unhookable
from coordcheck.recording.hooks.hooks import in_backward as in_backward
from coordcheck.recording.hooks.wrappers import layers_of, makers_of_weights
from coordcheck.recording.layers.calls import leaves
from coordcheck.recording.layers.sites import Sites
from coordcheck.recording.layers.windows import InitialInputs, Window, rows_of_windows
from coordcheck.runs.records import Row

ROOT = "(model)"
"""The layer name of the model's own output; module paths never hold parentheses."""

WINDOWS_KEPT = 8  # windows whose copies are held before they are reduced


class ActivationRecorder:
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
        sites: the sites by layer, in the order in which their calls returned.
        skipped: what was not measured, and how often.
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
        self._paths: set[str] = set()
        self._sites = Sites(self._paths)
        self.sites, self.skipped = self._sites.known, self._sites.skipped
        self.sizes: dict[tuple[int, int], int] = {}
        self.task = OUTSIDE
        self._model = model
        self._listens = listens
        self._same_noise = same_noise
        self._inputs = InitialInputs(fixed_batch)
        self._window: Window | None = None  # the last one
        self._closed: list[Window] = []
        self._rows: list[Row] = []
        self._makers = frozenset(makers_of_weights(model))
        self._ever_called = set(self._makers)
        self._handles = ExitStack()

    def __enter__(self) -> ActivationRecorder:
        layers = layers_of(self._model)
        self._paths.update(name or ROOT for name, _ in layers)
        with ExitStack() as handles:  # undone when a module refuses its hook
            for name, module in layers:
                if name in self._makers:
                    continue
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
        self._window = None
        self._sites.initial.clear()
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
        self._window = Window(step, known=len(self.sites))

    @property
    def is_open(self) -> bool:
        """Whether calls are being recorded."""
        return self._window is not None and not self._window.closed

    @property
    def has_calls(self) -> bool:
        """Whether the open window has seen a call."""
        return self.is_open and self._window is not None and bool(self._window.counts)

    def discard(self) -> None:
        """Forget the last window, open or closed, with the layers first seen in it, and start it anew."""
        window = self._window
        if window is None:
            return
        self._sites.forget(window)
        self._closed = [other for other in self._closed if other is not window]
        if window.step == 0:
            self._inputs.clear()
        self.open(window.step)

    def close(self) -> None:
        """Stop recording. On a device nothing is waited for, but every `WINDOWS_KEPT` windows."""
        window = self._window
        if window is None or window.closed:
            return
        window.close(self.sites.values())
        self._closed.append(window)
        self._ever_called.update(window.counts)
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

    def _listening(self, output: Any) -> Window | None:
        """The open window, if a call that gave this output belongs to it; None stands for the model's input."""
        window = self._window
        if window is None or window.closed or graph_task() != self.task or not self._listens(output):
            return None
        return self._window  # which may be another one: who listens may have started it anew

    def _on_root_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        window = self._listening(None)
        if window is not None:
            inputs = [local_part(leaf) for _, leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self._compare(window, inputs)

    def _compare(self, window: Window, inputs: list[Tensor]) -> None:
        """Note whether the model's input is the one of t=0: the first call's of the window."""
        if window.moved is not None:
            return
        window.moved = []
        try:
            window.moved.extend(self._inputs.moved(inputs))
        except Exception as error:  # a hook of ours must never raise into the user's model
            self.skipped[f"the model's input ({type(error).__name__})"] += 1

    def _on_produced(self, module: nn.Module, args: Any, output: Any) -> None:
        self._sites.spread.note_produced(output if self.is_open else None)

    def _on_spread_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Record a layer whose parameters are spread over ranks."""
        self._on_forward(name, module, args, self._sites.spread.recorded(output))

    def _on_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        window = self._listening(output)
        if window is None or _takes_parameters(args):
            return
        if window.moved is None:  # the model itself is not called: its first layer that sees the batch tells
            batch = [leaf for _, leaf in leaves(args) if isinstance(leaf, Tensor) and not leaf.requires_grad]
            if batch:
                self._compare(window, [local_part(leaf) for leaf in batch])
        self._sites.record(window, name, output, args)

    def _reduce(self) -> None:
        """Turn the closed windows into rows."""
        closed, self._closed = self._closed, []
        self.sizes.update({(site.order, w.step): call.size for w in closed for site, call in w.calls})
        self._rows.extend(rows_of_windows(closed, self._sites.initial))


def _takes_parameters(args: Any) -> bool:
    """Whether all tensors that a module takes are parameters: what it gives is a weight, and no activation."""
    if type(args[0] if args else None) is Tensor:  # of most calls
        return False
    tensors = [leaf for _, leaf in leaves(args) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(isinstance(tensor, nn.Parameter) for tensor in tensors)
