"""Values in a few bytes: equal ones look equal in every process, different ones do not.

A value's parts are those that `pickle` would write: what an object's class says belongs to it. Addresses, the order of
sets and which equal objects are one do not count. What has no parts that can be read is told, and so is a bound.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, EnumMeta
from functools import partial
from pathlib import PurePath
from pickle import PickleBuffer
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coordcheck.training.fingerprints.codes import compiled, text_of
from coordcheck.training.fingerprints.kinds import hash_of, is_cached, is_generated, is_silent, name_of
from coordcheck.training.fingerprints.owners import is_users

MAX_DEPTH = 60  # of values inside values
MAX_VALUES = 20_000  # inside of one value
WHOLE = 2**28  # bytes of data that are read whole; of larger data, samples
SAMPLES, SAMPLE = 256, 2**20

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
CACHED = type(functools.lru_cache(abs))
_METHODS = (FunctionType, staticmethod, classmethod, property, functools.cached_property)
_OF_MODULES = frozenset(vars(nn.Module()))


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
            return hash_of(b"bytes", self._bytes(value))
        text: str = vars(kind)["__repr__"](value)  # the number's own, whatever its class makes of it
        return hash_of(kind.__name__.encode(), text.encode("utf-8", "surrogatepass"))

    def _parts(self, value: Any, kind: type) -> Iterable[bytes]:
        if is_silent(value, kind):
            return ()
        for kinds, parts in self._readers:
            if issubclass(kind, kinds):
                return parts(value)
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
            (nn.Module, self._torch_module),
            (torch.Generator, lambda value: self._each(value.get_state())),
            (PurePath, self._path),
            ((bytearray, memoryview, PickleBuffer), lambda value: [self._bytes(value)]),
            (CodeType, lambda value: [compiled(value).encode()]),
            ((staticmethod, classmethod, property, functools.cached_property), self._descriptor),
        ]

    def _each(self, *values: Any) -> Iterator[bytes]:
        for value in values:
            if self._left < 0:  # told already
                return
            yield self.digest(value)

    # ---- data

    def _bytes(self, data: Any) -> bytes:
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
        if view.nbytes <= WHOLE:
            return hashlib.sha256(view).digest()
        self._unread(f"has {view.nbytes} bytes, of which samples are compared")
        step = (view.nbytes - SAMPLE) // (SAMPLES - 1)
        return hash_of(str(view.nbytes).encode(), *(view[k * step : k * step + SAMPLE] for k in range(SAMPLES)))

    def _tensor(self, value: Tensor) -> Iterator[bytes]:
        if value.is_nested:
            yield from self._each(*(part.detach() for part in value.unbind()))
            return
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        if value.is_meta:
            return
        if value.is_quantized:
            value = value.dequantize()
        flat = (value if value.layout is torch.strided else value.to_dense()).detach().cpu()
        flat = flat.resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield self._bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""

    def _array(self, value: np.ndarray[Any, Any]) -> Iterator[bytes]:
        yield f"{value.dtype}{value.shape}".encode()
        if value.dtype.hasobject:
            yield from self._each(*value.ravel().tolist())
        elif value.size:
            yield self._bytes(np.ascontiguousarray(value).reshape(-1).view(np.uint8))

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
        for cell in value.__closure__ or ():
            try:
                yield self.digest(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                yield b"empty cell"

    def _class(self, value: type) -> Iterator[bytes]:
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if not is_users(value.__module__):
            return
        yield from self._each(*value.__bases__)
        if isinstance(value, EnumMeta):
            members: Mapping[str, Any] = value.__members__
            yield from self._each([(name, one.value) for name, one in members.items()])
        made = vars(value).get("__dataclass_fields__", {})
        yield from self._each(*((f.name, f.default, f.default_factory) for f in made.values()))
        for name, member in sorted(vars(value).items()):
            if isinstance(member, _METHODS):
                yield from () if is_generated(member) else self._each(name, member)
            elif not name.startswith(("__", "_abc_")) and not (isinstance(value, EnumMeta) and name.startswith("_")):
                self._data(f"{value.__module__}.{value.__qualname__}.{name}", member)

    def _descriptor(self, value: Any) -> Iterator[bytes]:
        places = ("__func__", "fget", "fset", "func")
        yield from self._each(*(getattr(value, place) for place in places if hasattr(value, place)))

    def _builtin(self, value: BuiltinFunctionType) -> Iterator[bytes]:
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if value.__self__ is not None and not isinstance(value.__self__, (ModuleType, type)):
            yield self.digest(value.__self__)

    def _module(self, value: ModuleType) -> Iterator[bytes]:
        if is_users(value.__name__):
            self._code(value)
        yield value.__name__.encode()

    # ---- objects

    def _torch_module(self, value: nn.Module) -> Iterator[bytes]:
        for name, module in value.named_modules():
            own = {key: item for key, item in vars(module).items() if key not in _OF_MODULES}
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            yield from self._each(name, type(module), module.training, own, hooks)
        yield from self._each(dict(value.named_parameters()), dict(value.named_buffers()))

    def _path(self, value: PurePath) -> Iterator[bytes]:
        self._text(os.fspath(value))
        yield os.fspath(value).encode("utf-8", "surrogatepass")

    def _object(self, value: Any, kind: type) -> Iterator[bytes]:
        own = inspect.getattr_static(value, "__dict__", None)
        own = object.__getattribute__(value, "__dict__") if own is not None else {}
        if isinstance(own, dict) and callable(own.get("__wrapped__")):  # a cached function: its cache is no part of it
            yield self.digest(own["__wrapped__"])
            return
        reduced: Any = type.__getattribute__(kind, "__reduce_ex__")(value, 5)
        if isinstance(reduced, str):
            yield reduced.encode()
            return
        make, args, *rest = reduced
        state, items, pairs = [*rest, None, None, None][:3]
        if isinstance(state, dict):  # without what is computed once and kept
            state = {k: v for k, v in state.items() if not is_cached(kind, k)} or None
        yield from self._each(make, args, state, list(items or ()), list(pairs or ()))
        if is_users(kind.__module__):
            yield self.digest(kind)
