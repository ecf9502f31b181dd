"""Functions and batches in a few characters: equal ones look equal on every machine, different ones do not.

They are part of a run's settings, so that runs of different code or data are never mixed.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coordcheck.owners import is_users

MAX_DEPTH = 20  # of values inside values
SHORT = 12  # hexadecimal digits of a hash in a description


def fingerprint(value: Any) -> str:
    """A hash of a value's data: tensors and arrays by their coordinates, containers and objects by their parts."""
    digest = hashlib.sha256()
    for piece in _pieces(value, 0, set()):
        digest.update(piece)
    return digest.hexdigest()[:SHORT]


def describe_callable(function: Any) -> str:
    """A function in one line, which changes when its source, or a value bound to it, does.

    Functions, classes and constants that it names are part of it, and what these name in turn, in its own module and in
    others of the user's; installed packages are not followed.
    """
    if function is None:
        return "default"
    target = function.func if isinstance(function, partial) else function
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', '?')}.{name} {fingerprint(function)}"


def _pieces(value: Any, depth: int, seen: set[int]) -> Iterator[bytes]:
    """The bytes that tell a value from others, part by part."""
    yield type(value).__qualname__.encode()
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Tensor):
        if value.is_nested:
            yield from _pieces([part.detach() for part in value.unbind()], depth + 1, seen)
            return
        if value.layout is not torch.strided:
            value = value.to_dense()
        flat = value.detach().cpu().contiguous().reshape(-1)
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        return
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        yield repr(value).encode()
        return
    if isinstance(value, (FunctionType, type)) or hasattr(value, "__dict__"):
        if id(value) in seen:  # told once: objects are shared, and some hold themselves
            return
        seen.add(id(value))
    is_code = isinstance(value, (FunctionType, type))  # told once, and so never too deep
    for part in _parts(value):
        yield from _pieces(part, depth if is_code else depth + 1, seen)


def _parts(value: Any) -> Iterator[Any]:
    """The values a value is made of."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from (key, item)
    elif isinstance(value, (tuple, list)):
        yield len(value)
        yield from value
    elif isinstance(value, (set, frozenset)):
        yield from sorted(map(repr, value))
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from (value.__module__, value.__qualname__, _source(value), value.__defaults__, value.__kwdefaults__)
        yield from _closure(value)
        yield from _globals(value)
    elif isinstance(value, (type, BuiltinFunctionType)):
        yield from (value.__module__, value.__qualname__, _source(value))
        if isinstance(value, type) and is_users(value.__module__):
            yield from value.__bases__
            for member in vars(value).values():
                function = getattr(member, "__func__", getattr(member, "fget", member))  # of class methods, properties
                if isinstance(function, FunctionType):
                    yield function
    elif is_dataclass(value):
        yield {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, nn.Module):
        yield from (type(value), repr(value), dict(value.state_dict()), _plain(vars(value)))
    else:
        yield from (type(value), _plain(getattr(value, "__dict__", {})))
        if not hasattr(value, "__dict__"):
            yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _globals(function: FunctionType) -> Iterator[Any]:
    """The constants that a function names, and the user's functions and classes, also those behind a module's name."""
    codes = [function.__code__]
    for code in codes:  # grows while it is walked: functions inside the function
        codes.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
    names = sorted({name for code in codes for name in code.co_names})
    spaces = [function.__globals__]
    for space in spaces:  # grows while it is walked: modules inside of packages
        for name in names:
            value = space.get(name)
            if isinstance(value, ModuleType):
                if is_users(value.__name__) and vars(value) not in spaces:
                    spaces.append(vars(value))
                continue
            constant = isinstance(value, (bool, int, float, str, bytes, tuple))
            users = isinstance(value, (FunctionType, type)) and is_users(value.__module__)
            if constant or users:
                yield from (name, value)


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not bound yet
            yield "empty cell"


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """An object's own settings, without its private machinery."""
    return {name: value for name, value in attributes.items() if not name.startswith("_")}


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # made at run time, or in C
        return ""
