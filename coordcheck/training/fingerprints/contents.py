"""Values in a few bytes: equal ones look equal in every process, different ones do not.

A value's parts are those that `pickle` would write: what an object's class says belongs to it. Addresses, the order of
sets and which equal objects are one do not count. What has no parts that can be read is told, and so is a bound.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from pickle import PickleBuffer
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coordcheck.training.fingerprints import parts
from coordcheck.training.fingerprints.codes import compiled, text_of
from coordcheck.training.fingerprints.kinds import hash_of, is_silent, name_of
from coordcheck.training.fingerprints.owners import is_users

MAX_DEPTH = 60  # of values inside values
MAX_VALUES = 20_000  # inside of one value

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
CACHED = type(functools.lru_cache(abs))


class Reader:
    """Digests of values, and what was met in them.

    Args:
        code: called with each function and module of the user's, for what it names to be followed.
        data: called with the full name and value of a class's attribute that is no function.
        text: called with each text and path.
        unread: called with why a value could not be read, or not whole.
    """

    def __init__(
        self,
        *,
        code: Callable[[Any], None],
        data: Callable[[str, Any], None],
        text: Callable[[str], None],
        unread: Callable[[str], None],
    ) -> None:
        self._code, self._data, self._text, self._unread = code, data, text, unread
        self._known: dict[int, tuple[bytes, Any]] = {}  # with the value, so that no other gets its id
        self._open: set[int] = set()
        self._left = 0
        self._readers = self._kinds()

    def whole(self, value: Any) -> bytes:
        """The digest of a value that has a name of its own: of this many parts at most."""
        self._left = MAX_VALUES
        return self.digest(value)

    def digest(self, value: Any) -> bytes:
        """32 bytes. Whatever the value's own code raises, this does not."""
        try:
            return self._digest(value)
        except (Exception, SystemExit) as error:
            self._unread(f"{name_of(type(value))} tells nothing of its state ({type(error).__name__})")
            return hash_of(name_of(type(value)).encode())

    def _digest(self, value: Any) -> bytes:
        kind = type(value)
        if kind in _SCALARS:
            return self._scalar(value, kind)
        if id(value) in self._known:
            return self._known[id(value)][0]
        if id(value) in self._open:
            return hash_of(b"itself")
        self._left -= 1
        if self._left < 0 or len(self._open) > MAX_DEPTH:
            self._unread(f"holds more than {MAX_VALUES} values, or {MAX_DEPTH} inside each other")
            return hash_of(b"more")
        self._open.add(id(value))
        try:
            found = hash_of(name_of(kind).encode(), *self._parts(value, kind))
        finally:
            self._open.discard(id(value))
        self._known[id(value)] = found, value
        return found

    def _scalar(self, value: Any, kind: type) -> bytes:
        if kind is str:
            self._text(value)
        elif kind is bytes:
            return hash_of(b"bytes", self._bytes(parts.bytes_in(value)))
        text: str = vars(kind)["__repr__"](value)  # the number's own, whatever its class makes of it
        return hash_of(kind.__name__.encode(), text.encode("utf-8", "surrogatepass"))

    def _parts(self, value: Any, kind: type) -> Iterable[bytes]:
        if is_silent(value, kind):
            return ()
        for kinds, read in self._readers:
            if issubclass(kind, kinds):
                return read(value)
        return self._object(value, kind)

    def _kinds(self) -> list[tuple[Any, Callable[[Any], Iterable[bytes]]]]:
        """How each kind of value is read; the first that fits."""
        return [
            (Tensor, self._tensor),
            (np.ndarray, self._array),
            (Enum, lambda value: [self.digest(type(value)), value.name.encode()]),
            (_SCALARS[:-1], self._special_scalar),
            ((tuple, list), self._sequence),
            (Mapping, self._mapping),
            ((set, frozenset), self._set),
            (FunctionType, self._function),
            (type, self._class),
            (MethodType, lambda value: self._each(value.__func__, value.__self__)),
            (partial, lambda value: self._each(value.func, value.args, value.keywords)),
            (BuiltinFunctionType, self._builtin),
            (ModuleType, self._module),
            (nn.Module, lambda value: self._each(*parts.of_torch_module(value))),
            (torch.Generator, lambda value: self._each(value.get_state())),
            (PurePath, lambda value: [self.digest(os.fspath(value))]),
            ((bytearray, memoryview, PickleBuffer), lambda value: [self._bytes(parts.bytes_in(value))]),
            (CodeType, lambda value: [compiled(value).encode()]),
            (parts.DESCRIPTORS, lambda value: self._each(*parts.of_descriptor(value))),
        ]

    def _each(self, *values: Any) -> Iterator[bytes]:
        for value in values:
            if self._left < 0:  # told already
                return
            yield self.digest(value)

    # ---- data

    def _bytes(self, view: memoryview) -> bytes:
        if view.nbytes <= parts.WHOLE:
            return hashlib.sha256(view).digest()
        self._unread(f"has {view.nbytes} bytes, of which samples are compared")
        return parts.samples_of(view)

    def _tensor(self, value: Tensor) -> Iterator[bytes]:
        if value.is_nested:
            yield from self._each(*(part.detach() for part in value.unbind()))
            return
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        if (view := parts.bytes_of_tensor(value)) is not None:
            yield self._bytes(view)

    def _array(self, value: np.ndarray[Any, Any]) -> Iterator[bytes]:
        yield f"{value.dtype}{value.shape}".encode()
        if value.dtype.hasobject:
            yield from self._each(*value.ravel().tolist())
        else:
            yield self._bytes(parts.bytes_of_array(value))

    # ---- containers

    def _special_scalar(self, value: Any) -> Iterator[bytes]:
        """A number or text of another class: numpy's, or the user's."""
        base = next(kind for kind in _SCALARS if issubclass(type(value), kind))
        yield self._scalar(value, base)
        yield from self._attributes(value)

    def _sequence(self, value: Any) -> Iterator[bytes]:
        yield str(len(value)).encode()
        if type(value) in (list, tuple) and len(value) <= 50 * MAX_VALUES and {*map(type, value)} <= {*_SCALARS}:
            for text in (item for item in value if type(item) is str):
                self._text(text)
            yield repr(value).encode("utf-8", "surrogatepass")  # a long list of numbers, at once
            return
        yield from self._each(*(tuple.__iter__(value) if isinstance(value, tuple) else list.__iter__(value)))
        yield from self._attributes(value)

    def _mapping(self, value: Mapping[Any, Any]) -> Iterator[bytes]:
        for key, item in list(value.items()):  # another thread may write into it meanwhile
            yield from self._each(key, item)
        yield from self._attributes(value)

    def _set(self, value: Any) -> Iterator[bytes]:
        if len(value) > MAX_VALUES:
            self._unread(f"holds more than {MAX_VALUES} values")
            yield str(len(value)).encode()
            return
        yield from sorted(self._each(*value))

    def _attributes(self, value: Any) -> Iterator[bytes]:
        """What an object of a class of its own holds beside its items."""
        if is_users(type(value).__module__):
            yield from self._each(type(value), getattr(value, "__dict__", None))

    # ---- code

    def _function(self, value: FunctionType) -> Iterator[bytes]:
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if is_users(value.__globals__.get("__name__")):
            yield text_of(value.__code__).encode("utf-8", "surrogatepass")
            self._code(value)
            yield from self._each(value.__defaults__, value.__kwdefaults__)
        yield from self._each(vars(value))  # a decorator's own function may stand before the user's: __wrapped__
        yield from self._each(*parts.of_closure(value))

    def _class(self, value: type) -> Iterator[bytes]:
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if not is_users(value.__module__):
            return
        yield from self._each(*parts.of_class(value))
        methods, data = parts.attributes_of(value)
        for name, member in methods.items():
            yield from self._each(name, member)
        for name, member in data.items():
            self._data(f"{value.__module__}.{value.__qualname__}.{name}", member)

    def _builtin(self, value: BuiltinFunctionType) -> Iterator[bytes]:
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if value.__self__ is not None and not isinstance(value.__self__, (ModuleType, type)):
            yield self.digest(value.__self__)

    def _module(self, value: ModuleType) -> Iterator[bytes]:
        if is_users(value.__name__):
            self._code(value)
        yield value.__name__.encode()

    # ---- objects

    def _object(self, value: Any, kind: type) -> Iterator[bytes]:
        yield from self._each(*parts.of_object(value, kind))
        if is_users(kind.__module__):
            yield self.digest(kind)
