"""Hooks on a user's modules and optimizers: they raise nothing, and no copy of what they hang on records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import nn

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.hooks.modes import unseen, watched


class Hook:
    """A hook that hands its arguments to `action` and returns nothing, so that it changes nothing.

    What `action` raises goes to `failed` instead of the user's training. Inside a trace or a compilation it does
    nothing: there are no values to see. A deep copy or a pickle of what it hangs on holds a call without effect in its
    place, so that the copy (an average of the weights, a saved model) is neither recorded nor in need of this package.
    The user's modes see nothing of the action, unless it is `seen`: one that calls the user's model under them.

    >>> from copy import deepcopy
    >>> seen = []
    >>> hook = Hook(seen.append, failed=print)
    >>> hook(1), deepcopy(hook)(2), seen
    (None, None, [1])
    >>> Hook(int, failed=lambda error: print("told:", error))("one")
    told: invalid literal for int() with base 10: 'one'
    """

    __slots__ = ("_action", "_failed", "_seen")

    def __init__(
        self, action: Callable[..., object], failed: Callable[[Exception], object], *, seen: bool = False
    ) -> None:
        self._action = action
        self._failed = failed
        self._seen = seen

    def __call__(self, *args: Any) -> Any:
        # first, so that a compiler reads no further
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return
        try:
            if self._seen or not watched():
                self._action(*args)
                return
            with unseen():  # a mode is to see what the model does alone: it may count, draw numbers, keep what it saw
                self._action(*args)
        except Exception as error:
            with suppress(Exception):
                self._failed(error)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        # of the standard library, picklable, takes any arguments, returns None
        return getattr, (nullcontext(), "__exit__")


OUTSIDE = -1  # the graph task outside of any backward pass


def graph_task() -> int:
    """Which backward pass this thread is inside of: a number, or `OUTSIDE`."""
    # torch keeps no public name for the id of the autograd graph task that this thread runs for, and its own
    # checkpointing reads it here
    return torch._C._current_graph_task_id()


def in_backward() -> bool:
    """Whether this thread is inside a backward pass."""
    return graph_task() != OUTSIDE


class Eager:
    """From `begin` to `end`, whatever `torch.compile` made runs eagerly, and hooks fire in it.

    Several may begin and end in any order; the last one puts back the compiler's stance that the first one found.

    Attributes:
        possible: whether this torch can (2.6 or later).
    """

    possible = hasattr(torch.compiler, "set_stance")
    _begun: set[Eager] = set()
    _stance: Any = None

    def begin(self) -> None:
        # the compiler takes seconds to import; making an optimizer imports it, and without it nothing is compiled
        if not self._begun and self.possible and "torch._dynamo" in sys.modules:
            Eager._stance = torch.compiler.set_stance("force_eager")
        self._begun.add(self)

    def end(self) -> None:
        """Let the compiler be, unless this is inside the call of something compiled: then it is to be asked again."""
        # such a call looks at the stance when it returns: it would miss what it should have compiled, and raise
        if self in self._begun and not _in_compiled_call():
            self.end_now()

    def end_now(self) -> None:
        """Let the compiler be, wherever this is."""
        if self not in self._begun:
            return
        self._begun.remove(self)
        if not self._begun and Eager._stance is not None:
            stance, Eager._stance = Eager._stance, None
            stance.__exit__(None, None, None)


def _in_compiled_call() -> bool:
    """Whether a function further up the stack is one that `torch.compile` made."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    frame = sys._getframe() if compiler is not None else None
    while frame is not None and frame.f_code.co_filename != getattr(compiler, "__file__", None):
        frame = frame.f_back
    return frame is not None


def refuse_unhookable(model: nn.Module, *, eager: bool = False) -> None:
    """Refuse a model on which hooks do not fire; one that is compiled, unless it is made to run eagerly.

    Raises:
        CoordCheckError: it is or holds a ScriptModule, or is compiled.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise CoordCheckError(
            "the model is or holds a ScriptModule, whose calls cannot be hooked. Pass the eager module it was made "
            "from."
        )
    if not eager and any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
        raise CoordCheckError(
            "the model is compiled, and hooks on a compiled model silently do not fire. Check the eager model: "
            "its scales are the same."
        )
