"""What a model holds beside its parameters, kept and put back: buffers, caches, counters, generators of its own.

The state of a forward pass is not in buffers alone. Modules count in attributes, append to lists, draw from generators
of their own, and name lists and generators of the file that they are written in.
"""

from __future__ import annotations

import inspect
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coordcheck.recording.layers.calls import version
from coordcheck.recording.scales import IN_MEMORY

DEPTH = 2  # of objects that are neither modules nor containers, inside one another
LONGEST = 10_000  # entries of a container whose entries are looked at as well
MOST = 100_000  # objects that are looked at
FUNCTIONS = 1_000  # that are read for the names they use

_SIMPLE = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.CodeType)
_CALLED = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_LISTED = (list, tuple, set, frozenset, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
PutBack = Callable[[], None]


def kept(model: nn.Module) -> list[PutBack]:
    """What puts back all that a forward pass of the model may move, its parameters excepted.

    Tensors and arrays are copied; of containers their entries are kept, and of generators their state. A tensor that
    was written to gets its values back without being written to once more, as a pass that is still to be
    differentiated sees it.

    >>> model = nn.BatchNorm1d(2)
    >>> model.seen = []
    >>> put_back = kept(model)
    >>> _, model.calls = model(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), model.seen.append(1)
    >>> for each in put_back:
    ...     each()
    >>> model.running_mean.tolist(), model.seen, hasattr(model, "calls")
    ([0.0, 0.0], [], False)
    """
    found: list[PutBack] = []
    functions = list(_functions_of(model))
    for function in functions:
        found += _rebound(function)
    for value in _held(model, [value for function in functions for _, value in _names_used(function)]):
        with suppress(Exception):  # of what cannot be copied: no class of torch's and none of python's
            found.append(_keeper(value))
    return found


class KeptTensor:
    """A copy of a tensor's values, and how often it was written to, which a backward pass compares."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._values, self._version = tensor, tensor.detach().clone(), version(tensor)
        # made now, it puts back what the count is now
        self._count: Any = torch.inference_mode() if tensor.is_inference() else _count_of(tensor)

    def moved(self) -> bool:
        """Whether it has other values than it had, also where it does not count what is written to it."""
        same = self._tensor.shape == self._values.shape and version(self._tensor) == self._version
        return not same or not torch.equal(self._tensor, self._values)

    def put_back(self) -> None:
        """Give it its values; on a device without looking whether it was moved, which would wait for it."""
        with torch.no_grad(), self._count:
            if self._tensor.shape != self._values.shape:
                self._tensor.data = self._values
            elif self._tensor.device.type not in IN_MEMORY or self.moved():
                self._tensor.copy_(self._values)


def _count_of(tensor: Tensor) -> Any:
    counting: Any = torch.autograd
    return counting._unsafe_preserve_version_counter(tensor)


def _keeper(value: Any) -> PutBack:
    if isinstance(value, Tensor):
        return KeptTensor(value).put_back
    if isinstance(value, np.ndarray):
        return _keep_array(value)
    if isinstance(value, _GENERATORS):
        return _keep_generator(value)
    return _keep_entries(value)


def _keep_array(array: np.ndarray[Any, Any]) -> PutBack:
    values = array.copy()

    def put_back() -> None:
        if not np.array_equal(array, values):
            array[...] = values

    return put_back


def _keep_generator(generator: Any) -> PutBack:
    if isinstance(generator, np.random.Generator):
        state = generator.bit_generator.state
        return lambda: setattr(generator.bit_generator, "state", state)
    if isinstance(generator, random.Random):
        of_python = generator.getstate()
        return lambda: generator.setstate(of_python)
    found = generator.get_state()
    return lambda: generator.set_state(found)


def _keep_entries(container: Any) -> PutBack:
    """Put back what a container holds, where it holds something else: the container stays the same object."""
    if isinstance(container, dict):
        items = list(container.items())
        return lambda: _put_back_items(container, items)
    entries = list(container)

    def put_back() -> None:
        now = list(container)
        if len(now) == len(entries) and all(one is other for one, other in zip(now, entries, strict=True)):
            return
        container.clear()
        container.update(entries) if isinstance(container, set) else container.extend(entries)

    return put_back


def _put_back_items(container: dict[Any, Any], items: list[tuple[Any, Any]]) -> None:
    now = list(container.items())
    if len(now) == len(items) and all(a is c and b is d for (a, b), (c, d) in zip(now, items, strict=True)):
        return
    before = dict(items)
    for key in [key for key in container if key not in before]:
        del container[key]
    for key, value in items:
        if key not in container or container[key] is not value:
            container[key] = value
    if list(container) != [key for key, _ in items]:  # its order counts, as in a cache
        for key, value in items:
            del container[key]
            container[key] = value


def _held(model: nn.Module, named: Iterable[Any]) -> Iterator[Any]:
    """Every container, tensor and generator of the model's modules, and those among `named`; parameters excepted."""
    # `_parameters` is left alone: `fully_shard` changes it in every call, and knows what it has put there
    seen = {id(p) for p in model.parameters()} | {id(module._parameters) for module in model.modules()}
    waiting: list[tuple[Any, int]] = [(module, 0) for module in model.modules()]
    waiting += [(value, DEPTH) for value in named]
    while waiting and len(seen) < MOST:
        value, depth = waiting.pop()
        if id(value) in seen or isinstance(value, (*_SIMPLE, *_CALLED)):
            continue
        seen.add(id(value))
        if isinstance(value, (Tensor, np.ndarray, *_GENERATORS)):
            yield value
        elif isinstance(value, (dict, *_LISTED)):
            if not isinstance(value, (tuple, frozenset)):
                yield value
            if len(value) <= LONGEST:
                entries = list(value.values()) if isinstance(value, dict) else list(value)
                waiting += [(entry, depth) for entry in entries]
        elif isinstance(value, nn.Module):  # one that is no part of the model, such as a teacher
            seen.add(id(value._parameters))
            waiting.append((vars(value), depth))
        elif depth < DEPTH and hasattr(value, "__dict__") and not _is_torchs(type(value)):
            waiting.append((vars(value), depth + 1))


def _functions_of(model: nn.Module) -> Iterator[types.FunctionType]:
    """The forward passes of the model's modules, the hooks on them, and the functions that these name, and so on."""
    waiting: list[tuple[Any, type]] = []
    for module in model.modules():
        held = [module.forward, *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        held += [value for value in vars(module).values() if isinstance(value, _CALLED)]
        waiting += [(function, type(module)) for function in held]
    seen: set[types.FunctionType] = set()
    while waiting and len(seen) < FUNCTIONS:
        given, cls = waiting.pop()
        function = inspect.unwrap(getattr(given, "__func__", given))
        if not isinstance(function, types.FunctionType) or function in seen or _is_torchs(function):
            continue
        seen.add(function)
        yield function
        waiting += [(getattr(cls, name, None), cls) for name in function.__code__.co_names]
        waiting += [(value, cls) for _, value in _names_used(function)]


def _is_torchs(named: types.FunctionType | type) -> bool:
    return (named.__module__ or "").partition(".")[0] in ("torch", "numpy")


def _names_used(function: types.FunctionType) -> Iterator[tuple[Any, Any]]:
    """The variables outside of a function that it names: where each is kept, and its value."""
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            yield cell, cell.cell_contents


def _rebound(function: types.FunctionType) -> Iterator[PutBack]:
    """What binds those variables to the values that they have now, where they get others."""
    for where, value in _names_used(function):
        yield lambda where=where, value=value: _bind(function, where, value)  # type: ignore[misc]  # bound here


def _bind(function: types.FunctionType, where: Any, value: Any) -> None:
    if isinstance(where, str):
        if function.__globals__.get(where) is not value:
            function.__globals__[where] = value
    elif where.cell_contents is not value:
        where.cell_contents = value
