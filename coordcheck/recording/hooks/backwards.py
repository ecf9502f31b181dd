"""The end of a backward pass: when the gradients are there, and nothing has changed them yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from torch import Tensor
from torch.autograd.variable import Variable

from coordcheck.recording.hooks.hooks import OUTSIDE, Hook, graph_task


class AfterBackward:
    """Calls `action` at the end of every backward pass that adds to the gradient of one of some parameters.

    That is before any clipping, scaling or optimizer, and after the gradients were averaged over ranks: what
    DistributedDataParallel does when a backward pass ends it asks for in one of its own hooks, and so before this.

    >>> import torch
    >>> weight, seen = torch.nn.Parameter(torch.ones(2)), []
    >>> listening = AfterBackward([weight], lambda: seen.append(weight.grad.tolist()), failed=print)
    >>> (3 * weight).sum().backward(); listening.close(); seen
    [[3.0, 3.0]]
    """

    def __init__(
        self, parameters: Iterable[Tensor], action: Callable[[], object], failed: Callable[[Exception], object]
    ) -> None:
        self._action, self._failed = action, failed
        self._task = OUTSIDE
        with ExitStack() as hooks:
            for parameter in parameters:
                if parameter.requires_grad and parameter.is_leaf:
                    hook = Hook(self._accumulated, failed)
                    hooks.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
            self._hooks = hooks.pop_all()

    def close(self) -> None:
        """Listen no longer."""
        self._hooks.close()

    def _accumulated(self, parameter: Tensor) -> None:
        task = graph_task()
        if task not in (self._task, OUTSIDE):
            self._task = task
            self._at_the_end(Hook(self._last, self._failed))

    def _last(self) -> None:
        """Wait once more: for what other hooks of this pass have asked for after the first parameter's."""
        self._at_the_end(Hook(self._action, self._failed))

    @staticmethod
    def _at_the_end(action: Hook) -> None:
        # torch has no public name for this, which its own data parallelism is made with
        Variable._execution_engine.queue_callback(action)
