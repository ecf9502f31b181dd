"""What a run's numbers depend on, in words and hashes: code, data, and what code reads.

They are part of a run's settings, so that runs of different code or data are never mixed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from coordcheck.training.fingerprints.codes import Mentions, absolute, mentions
from coordcheck.training.fingerprints.contents import CACHED, Reader
from coordcheck.training.fingerprints.owners import is_pythons, is_users, owns, record_of, version_of
from coordcheck.training.fingerprints.readings import Reading, short_hash

MAX_CODE = 2000  # functions and classes that are followed
FORMAT = "2"  # of settings: told in them, so that folders of earlier versions say why they differ
LARGEST_FILE = 2**28  # bytes; of larger files the size is compared

_LOOKS_INTO_FOLDERS = frozenset({"glob", "rglob", "iterdir", "listdir", "scandir", "walk", "ImageFolder"})
_BY_NAME = frozenset({"import_module", "__import__", "modules"})
_TOLD_ELSEWHERE = frozenset({"torch", "coordcheck", "__main__"})
_OF_THE_MACHINE = frozenset({"HOME", "USER", "PWD", "PATH", "TMPDIR", "HOSTNAME"})  # where, and not what
_MAY_BE_A_FILE = re.compile(r"(?=.*[./\\])[^\n\r\0]{2,300}")
_PLAIN = (bool, int, float, complex, type(None))


def fingerprint(value: Any) -> str:
    """A hash of a value's data: tensors and arrays by their coordinates, containers and objects by their parts."""
    reading = read(value)
    return (
        short_hash(reading.text.encode(), repr(sorted(reading.reads.items())).encode())
        if reading.reads
        else reading.text
    )


def describe_callable(function: Any) -> str:
    """A function in one line, which changes when its source, a value bound to it, or anything that it reads does."""
    if function is None:
        return "default"
    return f"{_named(function)} {fingerprint(function)}"


def settings_of(**functions: Any) -> dict[str, str]:
    """Settings of a run for functions by their name in it, with one more for each value that they read."""
    found: dict[str, str] = {}
    for name, function in functions.items():
        if function is None:
            found[name] = "default"
            continue
        reading = read(function)
        reading.text = f"{_named(function)} {reading.text}"
        found |= reading.settings(name)
    return found


def read(value: Any) -> Reading:
    """A value, the code that it reaches, and what this code reads.

    Followed are functions, classes and values that code of the user's names, in its own module and in others of the
    user's, which are imported for it where a function imports them when it is called. Installed packages are known by
    their version. A global that code only adds to or counts up is not read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attributes that are looked at
        return _Walk().read(value)


def _named(function: Any) -> str:
    target = _target(function)
    name = _attribute(target, "__qualname__") or type(target).__qualname__
    return f"{_attribute(target, '__module__') or '?'}.{name}"


def _target(function: Any) -> Any:
    """What is called in the end; told by the type, since an object may say of itself what it likes."""
    return function.func if issubclass(type(function), partial) else function


def _attribute(target: Any, name: str) -> str:
    try:
        found = getattr(target, name, "")
    except (Exception, SystemExit):  # of the user's own __getattr__
        return ""
    return found if isinstance(found, str) else ""


class _Place(NamedTuple):
    """Where a value was met: the name it has there, the folder of the code, and what this code names."""

    name: str = ""
    folder: str = ""
    named: Mentions = Mentions(*[frozenset()] * 4)


class _Walk:
    """One reading: code is followed from what it names to what that names, and data are read when they are met."""

    def __init__(self) -> None:
        self._reading = Reading("")
        self._place = _Place()
        self._code: list[Any] = []
        self._data: list[tuple[str, Any, _Place]] = []
        self._followed: dict[int, Any] = {}  # with the code, so that no other gets its id
        self._reader = Reader(code=self._code.append, data=self._note, text=self._file, unread=self._not_read)

    def read(self, value: Any) -> Reading:
        self._place = _Place(_named(value) if callable(value) else "the value")
        pieces = [self._reader.whole(value), self._installed(value)]
        while self._code or self._data:
            if self._data:
                self._read_data(*self._data.pop(0))
            elif len(self._followed) < MAX_CODE:
                pieces += self._followed_safely(self._code.pop(0))
            else:
                self._not_read(f"reaches more than {MAX_CODE} functions", "code")
                break
        self._reading.text = short_hash(*pieces)
        return self._reading

    def _installed(self, value: Any) -> bytes:
        """The code of the package that a function is installed with: the user's own may be, in one version for long."""
        module = _attribute(_target(value), "__module__") if callable(value) else ""
        top = module.partition(".")[0]
        if not top or top in _TOLD_ELSEWHERE or is_pythons(top) or is_users(module):
            return b""
        self._package(top)
        return record_of(top).encode()

    def _followed_safely(self, code: Any) -> list[bytes]:
        try:
            return list(self._follow(code))
        except (Exception, SystemExit) as error:  # of what stands for a module, or a function, and is none
            self._not_read(f"could not be followed: {type(error).__name__}")
            return []

    def _follow(self, code: Any) -> Iterator[bytes]:
        """The digests of the functions and classes that a function or a whole module names."""
        if id(code) in self._followed:
            return
        self._followed[id(code)] = code
        if isinstance(code, ModuleType):
            for name in sorted(vars(code)):
                yield from self._named_value(vars(code), code.__name__, (name,))
            return
        named, space = mentions(code.__code__), code.__globals__
        folder = os.path.dirname(str(space.get("__file__") or ""))
        self._place = _Place(f"{code.__module__}.{code.__qualname__}", folder, named)
        for chain in sorted(named.globals):
            yield from self._named_value(space, str(space.get("__name__")), chain)
        for level, name, taken in sorted(named.imports):
            yield from self._imported(absolute(level, name, space.get("__package__")), taken, named)
        self._code.extend(sys.modules[text] for text in named.texts if named.names & _BY_NAME and is_users(text))
        for text in sorted(named.texts):
            self._variable(text)
            self._file(text)

    def _named_value(self, space: dict[str, Any], module: str, chain: tuple[str, ...]) -> Iterator[bytes]:
        """What a name stands for, with the attributes that follow it as far as they lead through modules."""
        name, *rest = chain
        if name not in space or name.startswith("__"):
            return
        value = space[name]
        if isinstance(value, ModuleType) and is_users(value.__name__):
            if rest:
                yield from self._named_value(vars(value), value.__name__, tuple(rest))
            else:  # handed on as a whole
                self._code.append(value)
        elif isinstance(value, ModuleType):
            self._package(value.__name__)
        elif isinstance(value, (FunctionType, BuiltinFunctionType, type, CACHED)):
            self._package(value.__module__)
            yield self._reader.whole(value)
        else:
            self._data.append((f"{module}.{name}", value, self._place))

    def _imported(self, name: str, taken: tuple[str, ...], named: Mentions) -> Iterator[bytes]:
        """What a function takes from a module that it imports when it is called."""
        module = self._loaded(name)
        if module is None:
            return
        for one in taken:
            yield from self._named_value(vars(module), name, (one,))
        inside = [vars(module).get(one) or self._loaded(f"{name}.{one}") for one in taken]
        around = [
            self._loaded(name[: dot.start()]) for dot in re.finditer(r"\.", name)
        ]  # `import a.b` is used as a.b.c
        for used in inside if taken else [module, *around]:
            if isinstance(used, ModuleType) and is_users(used.__name__):
                for attribute in sorted(named.names):
                    yield from self._named_value(vars(used), used.__name__, (attribute,))

    def _loaded(self, name: str) -> ModuleType | None:
        """A module of the user's, imported as the function that names it would."""
        top = name.partition(".")[0]
        try:
            if name not in sys.modules:
                spec = importlib.util.find_spec(top)
                place = {"__file__": spec.origin, "__path__": spec.submodule_search_locations} if spec else {}
                if not spec or not owns(top, {**place, "__spec__": spec}):
                    self._package(top)
                    return None
                importlib.import_module(name)
            if is_users(name):
                return sys.modules[name]
        except (Exception, SystemExit) as error:  # of the user's own module
            self._not_read(f"could not be imported: {type(error).__name__}", name)
            return None
        self._package(top)
        return None

    def _read_data(self, name: str, value: Any, place: _Place) -> None:
        if name in self._reading.reads:
            return
        self._place = _Place(name, place.folder, place.named)
        if isinstance(value, str):
            self._variable(value)
        found = short_hash(self._reader.whole(value))
        self._reading.reads[name] = repr(value) if type(value) in _PLAIN else f"{type(value).__name__} {found}"

    def _note(self, name: str, value: Any) -> None:
        self._data.append((name, value, self._place))

    def _not_read(self, why: str, name: str | None = None) -> None:
        self._reading.unread.setdefault(name or self._place.name, why)

    def _package(self, module: object) -> None:
        top = module.partition(".")[0] if isinstance(module, str) else ""
        if top and top not in _TOLD_ELSEWHERE and not is_pythons(top) and not is_users(top):
            version = version_of(top)
            if version:
                self._reading.reads[f"package {top}"] = version

    def _variable(self, name: str) -> None:
        if self._place.named.reads_environment and name in os.environ and name not in _OF_THE_MACHINE:
            self._reading.reads[f"environment {name}"] = short_hash(os.environ[name].encode("utf-8", "surrogateescape"))

    def _file(self, text: str) -> None:
        """Note the content of a file that a text names, beside the code or in the current folder."""
        if not _MAY_BE_A_FILE.fullmatch(text) or f"file {text}" in self._reading.reads:
            return
        folder, named = self._place.folder, self._place.named
        inside = [os.path.join(folder, one) for one in sorted(named.texts)[:50] if one and len(one) < 50]
        places = [os.path.join(base, text) for base in ("", folder, *inside)]
        found = next((place for place in places if os.path.isfile(place)), None)
        if found is not None and named.writes_files:
            self._not_read("is written, or may be, by the code that names it", f"file {text}")
        elif found is not None:
            self._reading.reads[f"file {text}"] = self._content(found, text)
        elif named.names & _LOOKS_INTO_FOLDERS and any(map(os.path.isdir, places[:2])):
            self._not_read("is a folder, and its files are not compared", f"folder {text}")

    def _content(self, path: str, text: str) -> str:
        size = os.path.getsize(path)
        if size > LARGEST_FILE:
            self._not_read(f"has {size} bytes, and its size alone is compared", f"file {text}")
            return f"{size} bytes"
        with open(path, "rb") as file:
            return f"{size} bytes, {short_hash(file.read())}"
