"""What watches torch's functions from outside: modes, the user's and ours, tensor subclasses and transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch as dispatch
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_flatten


class Mode(TorchFunctionMode):
    """Hands every torch function to `run(function, args, kwargs)`; it can be entered again inside itself."""

    def __init__(self, run: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():  # first, so that a compiler reads no further
            return func(*args, **(kwargs or {}))
        if torch._C._get_tracing_state() is not None or transforming():
            return func(*args, **(kwargs or {}))
        return self._run(func, args, kwargs or {})

    def put_on(self) -> None:
        """Be the innermost mode of this thread."""
        overrides._push_mode(self)

    def take_off(self) -> None:
        """Leave, wherever in this thread's stack of modes it is; one that is not in it is left alone."""
        above = []
        while torch._C._len_torch_function_stack():
            top = overrides._pop_mode()
            if top is self:
                break
            above.append(top)
        for mode in reversed(above):
            overrides._push_mode(mode)


def transforming() -> bool:
    """Whether this is inside a function transform such as `torch.vmap`, whose tensors are gone once it is over."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def watched() -> bool:
    """Whether a mode is on."""
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())


def unseen() -> AbstractContextManager[None]:
    """Inside, the modes and tensor subclasses of the user see nothing of what is done."""
    return _without_modes() if torch._C._len_torch_dispatch_stack() else torch._C.DisableTorchFunction()


@contextmanager
def _without_modes() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), dispatch._disable_current_modes():
        yield


def others_see(args: Any, kwargs: Any) -> bool:
    """Whether a mode or a tensor subclass of the user is to see a call as one: then it is not taken apart."""
    modes = overrides._get_current_function_mode_stack()
    own = torch._C._disabled_torch_function_impl, Tensor.__torch_function__
    return any(not isinstance(mode, DeviceContext) for mode in modes) or any(
        getattr(leaf, "__torch_function__", own[0]) not in own for leaf in tree_flatten((args, kwargs))[0]
    )
