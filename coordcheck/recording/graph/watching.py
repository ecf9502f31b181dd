"""Being told of every torch function and every module call of one forward pass."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from coordcheck.recording.graph import functions
from coordcheck.recording.graph.copies import copied
from coordcheck.recording.hooks.hooks import Hook
from coordcheck.recording.hooks.modes import Mode, others_see, transforming, unseen
from coordcheck.recording.layers.activations import ROOT, in_backward

Watched = TypeVar("Watched", bound="Watch")


class ModuleCall(NamedTuple):
    """One module call, kept for parameters that no function was seen to take."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    random_state: Tensor


class Watch:
    """Inside it, a forward pass of a model is watched: in its own thread, and not while a backward pass runs.

    Args:
        model: the model; it is not changed.
        keep_calls: keep the inputs and outputs of every module call.
        sampled: of large tensors a subset of rows, and of modules those without parameters alone.
    """

    def __init__(self, model: nn.Module, *, keep_calls: bool, sampled: bool) -> None:
        self.calls: dict[str, ModuleCall] = {}
        self.skipped: Counter[str] = Counter()
        self.sampled = sampled
        self.parameters = dict(model.named_parameters())
        self._model, self._keep_calls = model, keep_calls
        self._stack: list[str] = []
        self.parametric = {ROOT, *_prefixes(self.parameters)}
        self._hooks = ExitStack()
        self._mode = Mode(self._run)
        self._thread = threading.get_ident()

    def __enter__(self: Watched) -> Watched:
        self._begin(self._model.named_modules())
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.close()

    def begin(self, args: Any, kwargs: Any) -> None:
        """Enter from inside a call of the model, which has begun; it ends with the call, also by an exception."""
        # a hook that is always called is not there outside of such a call: a model with one is not compiled
        ended = Hook(lambda model, args, output: self.end(output), self._failed)
        self._begin((name, module) for name, module in self._model.named_modules() if name)
        self._hooks.callback(self._model.register_forward_hook(ended, always_call=True).remove)
        self._enter(ROOT, self._model, args, kwargs)

    def end(self, output: Any = None) -> None:
        """Leave that call; once is enough. Another thread's call of the model is none of this one's."""
        if threading.get_ident() != self._thread:
            return
        try:
            if self._stack:
                self._leave(self._model, (), {}, output)
        finally:
            self._hooks.close()

    @property
    def elsewhere(self) -> bool:
        """Whether another thread is inside the call."""
        return bool(self._stack) and threading.get_ident() != self._thread

    @property
    def layer(self) -> str:
        """The path of the module in whose call this is."""
        return self._stack[-1] if self._stack else ROOT

    # ---- what a watcher does

    def started(self) -> None:
        """The pass begins."""
        raise NotImplementedError

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function."""
        raise NotImplementedError

    def entered(self, name: str, args: Any) -> None:
        """A module is called with this."""
        raise NotImplementedError

    def left(self, name: str, output: Any) -> None:
        """A module gave this."""
        raise NotImplementedError

    # ---- how it is told

    def _begin(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.started()
        with ExitStack() as hooks:
            leave = Hook(self._leave, self._failed)
            for name, module in modules:
                enter = Hook(partial(self._enter, name or ROOT), self._failed)
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
            self._mode.put_on()
            hooks.callback(self._mode.take_off)
            self._hooks = hooks.pop_all()

    def _failed(self, error: Exception) -> None:
        self.skipped[f"a call ({type(error).__name__})"] += 1

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if in_backward() or threading.get_ident() != self._thread:
            return
        self._stack.append(name)
        self.entered(name, args)
        if self._keep_calls and not (self.sampled and (name in self.parametric or transforming())):
            with unseen(), suppress(Exception):  # of arguments that cannot be copied
                args, kwargs = (copied(value, sampled=self.sampled) for value in (args, kwargs))
                self.calls[name] = ModuleCall(args, kwargs, None, torch.get_rng_state())

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if in_backward() or not self._stack or threading.get_ident() != self._thread:
            return
        name = self._stack.pop()
        self.left(name, output)
        if name in self.calls:
            with unseen(), suppress(Exception):
                self.calls[name] = self.calls[name]._replace(output=copied(output, sampled=self.sampled))

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if functions.name_of(func) == "__set__" or functions.tells(func) or in_backward():
            return func(*args, **kwargs)
        if functions.inside(func) and not others_see(args, kwargs):  # one of torch's own: its steps come here
            with self._mode:
                return functions.steps_of(func)(*args, **kwargs)
        return self.called(func, args, kwargs)


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """The modules that hold some of these parameters, or whose submodules do."""
    for name in names:
        while name := name.rpartition(".")[0]:
            yield name
