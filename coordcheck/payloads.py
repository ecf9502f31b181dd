"""A run as bytes for another process, which need not find the user's files: all of their modules go by value.

So the other process sees what this one sees, changes since the import included: a module that is imported there anew
would not have them.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

from coordcheck.codes import absolute, mentions
from coordcheck.owners import is_users, users_modules

_NOT_SENT = frozenset({"__builtins__", "__loader__", "__spec__", "__cached__"})
_SURE = (type(None), bool, int, float, complex, str, bytes, FunctionType, type, ModuleType)  # left to the pickler


def packed(value: Any) -> bytes:
    """`value` as bytes, the user's code in it by value.

    Where that cannot be, because of a lock or an open file that the code names, the user's modules go by name, and a
    note goes along.

    Raises:
        TypeError: it cannot be sent either way; the text names what cannot.
    """
    try:
        with _by_value():
            return _dumped((value, ""))
    except Exception as error:  # picklers raise whatever their object's own code raises
        reason = f"{type(error).__name__}: {error}"
        culprits = ", ".join(_unsendable()) or reason
    try:
        return cloudpickle.dumps(
            (
                value,
                "other processes import your modules anew, and see no change made to them since, because of "
                f"{culprits}, which cannot be sent there",
            )
        )
    except Exception as error:
        raise TypeError(f"{error} ({culprits})" if culprits != reason else str(error)) from error


def unpacked(payload: bytes) -> tuple[Any, str]:
    """What `packed` wrote, and its note; the modules that came along are there for imports inside of functions."""
    unpickler = pickle.Unpickler(io.BytesIO(payload))
    value, note = unpickler.load()
    with suppress(EOFError):
        while True:
            unpickler.load()
    return value, note


def _dumped(value: Any) -> bytes:
    """The value, and then modules that functions in it import when they are called, until there are no more."""
    with io.BytesIO() as stream:
        pickler = _Pickler(stream)
        pickler.dump(value)
        while pickler.imported:
            modules, pickler.imported = list(pickler.imported.values()), {}
            pickler.dump(modules)
        return stream.getvalue()


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no types
    """Sends modules of the user's as what they hold; those that hold each other as well."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.imported: dict[str, ModuleType] = {}
        self._sent: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType) and is_users(obj.__name__):
            self._sent.add(obj.__name__)
            return _module, (obj.__name__, os.getpid()), _sendable(obj), None, None, _fill
        if isinstance(obj, FunctionType) and is_users(obj.__module__):
            self._note_imports(obj)
        return super().reducer_override(obj)

    def _note_imports(self, function: FunctionType) -> None:
        for level, name, taken in mentions(function.__code__).imports:
            whole = absolute(level, name, function.__globals__.get("__package__"))
            for place in (whole, *(f"{whole}.{one}" for one in taken)):
                if place not in self._sent and is_users(place):
                    self._sent.add(place)
                    self.imported[place] = sys.modules[place]


def _module(name: str, sender: int) -> ModuleType:
    """An empty module, filled afterwards. In another process it stands for the file that need not be there."""
    module = ModuleType(name)
    if os.getpid() != sender:
        sys.modules[name] = module
    return module


def _fill(module: ModuleType, content: dict[str, Any]) -> None:
    vars(module).update(content)


def _sendable(module: ModuleType) -> dict[str, Any]:
    """What a module holds, without its machinery and what no other process can have, such as locks and open files."""
    return {name: value for name, value in vars(module).items() if name not in _NOT_SENT and _can_be_sent(value)}


def _can_be_sent(value: Any) -> bool:
    if isinstance(value, _SURE):
        return True
    try:
        cloudpickle.dumps(value)
    except Exception:  # as in `packed`
        return False
    return True


def _unsendable() -> list[str]:
    """The first few globals of the user's modules that cannot be sent, by name."""
    found = []
    for module in users_modules():
        for name, value in vars(module).items():
            if name not in _NOT_SENT and not _can_be_sent(value):
                found.append(f"{module.__name__}.{name} ({type(value).__name__})")
    return found[:3]


@contextmanager
def _by_value() -> Iterator[None]:
    """Functions and classes of the user's modules go by value; the packages that hold them as well."""
    known = cloudpickle.list_registry_pickle_by_value()
    ours = [module for module in users_modules() if module.__name__ not in known]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)
