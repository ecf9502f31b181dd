"""What the code of a function names: globals with the attributes that follow, modules it imports, texts.

Read from bytecode, so that functions without a source, in notebooks and behind decorators are read as well. What is
found is the same in every version of Python: names and constants, never instructions.
"""

from __future__ import annotations

import dis
import importlib.util
import inspect
import linecache
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import NamedTuple

# methods that return nothing: a global that is only told something is not read
_TELLS = frozenset({"append", "add", "extend", "insert", "appendleft", "clear", "discard"})
_WRITES = frozenset(
    {"write_text", "write_bytes", "writelines", "touch", "mkdir", "makedirs", "unlink", "rename", "savefig", "save"}
    | {"dump", "to_csv", "to_json", "to_parquet", "savetxt", "savez", "SummaryWriter", "FileHandler", "symlink"}
)
_MODES = frozenset({"w", "a", "x", "r+", "w+", "a+", "x+", "wb", "ab", "xb", "r+b", "rb+", "w+b", "wb+", "a+b", "ab+"})
_ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "expandvars"})


class Mentions(NamedTuple):
    """What a function names, the functions and classes inside it included."""

    globals: frozenset[tuple[str, ...]]
    """Global names that are read, each with the attributes taken from it one after another: ("config", "CFG")."""
    imports: frozenset[tuple[int, str, tuple[str, ...]]]
    """Imports inside the function: how many dots, the module, the names taken from it."""
    names: frozenset[str]
    """All names, of attributes too."""
    texts: frozenset[str]
    """All text constants."""

    @property
    def writes_files(self) -> bool:
        return bool(self.names & _WRITES or self.texts & _MODES)

    @property
    def reads_environment(self) -> bool:
        return bool(self.names & _ENVIRONMENT)


@lru_cache(maxsize=4096)
def mentions(code: CodeType) -> Mentions:
    """What a code object names, with every code object inside it."""
    found: set[tuple[str, ...]] = set()
    imports: set[tuple[int, str, tuple[str, ...]]] = set()
    names: set[str] = set()
    texts: set[str] = set()
    for one in _nested(code):
        names.update(one.co_names)
        texts.update(_texts(one.co_consts))
        steps = [(step.opname, step.argval) for step in dis.get_instructions(one) if step.opname not in _BETWEEN]
        found.update(_chains(steps))
        imports.update(_imports(steps))
    return Mentions(frozenset(found), frozenset(imports), frozenset(names), frozenset(texts))


_BETWEEN = frozenset({"PUSH_NULL", "PRECALL", "CACHE", "EXTENDED_ARG", "RESUME", "NOP"})
_Steps = list[tuple[str, object]]


def _nested(code: CodeType) -> list[CodeType]:
    codes = [code]
    for one in codes:  # grows while it is walked
        codes.extend(constant for constant in one.co_consts if isinstance(constant, CodeType))
    return codes


def _texts(constants: tuple[object, ...]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, (tuple, frozenset)):
            yield from _texts(tuple(constant))


def _chains(steps: _Steps) -> Iterator[tuple[str, ...]]:
    for index, (kind, name) in enumerate(steps):
        if kind not in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") or _is_counted(steps, index):
            continue
        chain = [str(name)]
        for following, attribute in steps[index + 1 :]:
            if following not in ("LOAD_ATTR", "LOAD_METHOD"):
                break
            chain.append(str(attribute))
        if len(chain) == 1 or chain[-1] not in _TELLS:
            yield tuple(chain)


def _is_counted(steps: _Steps, index: int) -> bool:
    """Whether a global is taken only to be counted up: `calls += 1`."""
    window = steps[index : index + 4]
    return (
        len(window) == 4
        and window[1][0].startswith("LOAD_") and isinstance(window[1][1], int)
        and window[2][0].startswith(("BINARY_", "INPLACE_"))
        and window[3] == ("STORE_GLOBAL", window[0][1])
    )  # fmt: skip  # one condition of the window a line


def _imports(steps: _Steps) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for index, (kind, name) in enumerate(steps):
        if kind == "IMPORT_NAME":
            level = steps[index - 2][1]
            taken = []
            for following, attribute in steps[index + 1 :]:
                if following == "IMPORT_FROM":
                    taken.append(str(attribute))
                elif not following.startswith("STORE_"):
                    break
            yield level if isinstance(level, int) else 0, str(name), tuple(taken)


def absolute(level: int, name: str, package: object) -> str:
    """The full name of a module that code of this package imports; empty where there is none."""
    if not level:
        return name
    try:
        return importlib.util.resolve_name("." * level + name, str(package or ""))
    except (ImportError, ValueError):
        return ""


def text_of(code: CodeType) -> str:
    """A function's source, or what was compiled where that is no longer what its file says, or has no file.

    A file that was edited after it was imported does not tell what runs.
    """
    return _text_of(code, code.co_filename)  # equal code may stand in two files


@lru_cache(maxsize=4096)
def _text_of(code: CodeType, filename: str) -> str:
    try:
        source = inspect.getsource(code)
    except Exception:  # no source, or one that is no longer there
        return compiled(code)
    known = _compiled_file(filename, "".join(linecache.getlines(filename)))
    if known is not None and compiled(code) not in known:
        return compiled(code)
    return source


def compiled(code: CodeType) -> str:
    """A code object as a text without addresses and line numbers."""
    constants = [compiled(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return repr((code.co_name, code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants))


def _constant(value: object) -> str:
    return f"{{{', '.join(sorted(map(repr, value)))}}}" if isinstance(value, frozenset) else repr(value)


@lru_cache(maxsize=256)
def _compiled_file(filename: str, source: str) -> frozenset[str] | None:
    """Every code object of a file as it is now; None where the file tells nothing of what was compiled."""
    if filename.startswith("<") or not filename.endswith(".py"):  # a notebook's cell, an interactive line
        return None
    try:
        return frozenset(compiled(one) for one in _nested(compile(source, filename, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):  # edited since, and broken
        return frozenset()
