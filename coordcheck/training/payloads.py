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

from coordcheck.training.fingerprints.codes import absolute, mentions
from coordcheck.training.fingerprints.owners import is_users, users_modules

_NOT_SENT = frozenset({"__builtins__", "__loader__", "__spec__", "__cached__"})
_ABOUT = frozenset({"__name__", "__package__", "__file__", "__path__", "__doc__"})
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
    """What `packed` wrote, and its note."""
    unpickler = pickle.Unpickler(io.BytesIO(payload))
    value, note = unpickler.load()
    with suppress(EOFError):
        while True:
            for module, content in unpickler.load():
                vars(module).update(content)
    return value, note


def _dumped(value: Any) -> bytes:
    """The value, and after it what its functions name in modules, until there is no more."""
    with io.BytesIO() as stream:
        pickler = _Pickler(stream)
        pickler.dump(value)
        while pickler.wanted:
            wanted, pickler.wanted = pickler.wanted, {}
            pickler.dump([(sys.modules[name], content) for name, content in wanted.items()])
        return stream.getvalue()


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no types
    """Sends modules of the user's as far as functions that are sent name what is in them."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.wanted: dict[str, dict[str, Any]] = {}
        """Module -> the globals of it that are still to be sent."""
        self._known: set[tuple[str, str]] = set()
        self._spaces: dict[str, _Space] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType) and is_users(obj.__name__):
            about = {name: value for name, value in vars(obj).items() if name in _ABOUT}
            return _module, (obj.__name__, os.getpid()), about, None, None, _fill
        if isinstance(obj, FunctionType):
            self._follow(obj)
        return super().reducer_override(obj)

    def _function_getnewargs(self, function: FunctionType) -> Any:
        """The parts of a function; its globals are those of its module, so that what one sets the other sees."""
        code, space, *rest = super()._function_getnewargs(function)
        module = sys.modules.get(function.__globals__.get("__name__", ""))
        if module is not None and vars(module) is function.__globals__ and is_users(module.__name__):
            space = self._spaces.setdefault(module.__name__, _Space(module))
        return code, space, *rest

    def _follow(self, function: FunctionType) -> None:
        """Note what a function names in modules of the user's, also in those that it imports when it is called."""
        named = mentions(function.__code__)
        for first, *chain in named.globals:
            found = function.__globals__.get(first)
            while isinstance(found, ModuleType) and is_users(found.__name__):
                name, chain = (chain[0], chain[1:]) if chain else ("", [])
                for one in [name] if name else _sendable(found):
                    self._want(found, one)
                found = vars(found).get(name)
        for level, name, taken in named.imports:
            whole = absolute(level, name, function.__globals__.get("__package__"))
            parts = whole.split(".")
            around = (".".join(parts[:count]) for count in range(1, len(parts)))  # a.b.c imports a and a.b as well
            for place in (whole, *around, *(f"{whole}.{one}" for one in taken)):
                if is_users(place):
                    for one in ("__name__", *named.names):
                        self._want(sys.modules[place], one)

    def _want(self, module: ModuleType, name: str) -> None:
        if name in vars(module) and (module.__name__, name) not in self._known:
            self._known.add((module.__name__, name))
            self.wanted.setdefault(module.__name__, {})[name] = vars(module)[name]


class _Space:
    """Stands for the globals of a module, and arrives as these."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __reduce__(self) -> Any:
        return vars, (self._module,)


def _module(name: str, sender: int) -> ModuleType:
    """An empty module, filled afterwards. In another process it stands for the file that need not be there."""
    module = ModuleType(name)
    if os.getpid() != sender and name != "__main__":
        sys.modules[name] = module
    return module


def _fill(module: ModuleType, content: dict[str, Any]) -> None:
    vars(module).update(content)


def _sendable(module: ModuleType) -> list[str]:
    """The globals of a module that is used as a whole, without those that no other process can have."""
    return [name for name, value in vars(module).items() if name not in _NOT_SENT and _can_be_sent(value)]


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
