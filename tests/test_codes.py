"""What the bytecode of a function tells: the same names in every version of Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordcheck.training.fingerprints import codes
from coordcheck.training.fingerprints.codes import absolute, mentions, text_of

SAMPLE = """
import os
CFG, N = {}, 0
def build(width, *, d=default_global):
    global N
    N += 1
    import pack.config as pc
    from pack import other, more
    from .rel import thing
    if width in {"p", "q"} and width not in ("r", "s"):
        return None
    SEEN.append(width)
    try:
        with open("config.yaml") as f:
            data = {k: v for k, v in zip(cfg.model.names, module.sub.table)}
    except (ValueError, errors.Mine) as e:
        log.warning("w %s", e)
    async def inner(): return await other_global.call(*args_global, **kw_global)
    match width:
        case 1: return lambda: deep.er.est
        case C(x=3): return super_global
    class Inside(base.Class):
        value = outside.value
        def f(self): return [os.environ.get("A") for _ in range(3) if CFG["b"]]
    print(f"{fmt.value!r:>{fmt.width}}")
    return pc.CFG, 1 if flag else -flag
"""
TELL = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("codes", sys.argv[1])
codes = sys.modules["codes"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(codes)
sample = compile(sys.argv[2], "sample.py", "exec")
found = codes.mentions(next(one for one in sample.co_consts if getattr(one, "co_name", "") == "build"))
texts = sorted(text for text in found.texts if text and "build.<locals>" not in text and text != "Inside")
print(json.dumps([sorted(found.globals), sorted(found.imports), texts]))
"""
GLOBALS = {
    *(("os", "environ", "get"), ("CFG",), ("cfg", "model", "names"), ("module", "sub", "table"), ("errors", "Mine")),
    *(("log", "warning"), ("other_global", "call"), ("args_global",), ("kw_global",), ("deep", "er", "est"), ("C",)),
    *(("super_global",), ("base", "Class"), ("outside", "value"), ("fmt", "value"), ("fmt", "width"), ("flag",)),
    *(("ValueError",), ("open",), ("print",), ("range",), ("zip",)),
}


def told_by(python: str) -> Any:
    command = [python, "-c", TELL, codes.__file__, SAMPLE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_globals_imports_and_texts_are_told():
    named, imports, texts = told_by(sys.executable)
    assert {tuple(chain) for chain in named} - {("__name__",)} == GLOBALS
    assert imports == [[0, "pack", ["other", "more"]], [0, "pack.config", ["config"]], [1, "rel", ["thing"]]]
    assert {"A", "b", "config.yaml", "p", "q", "r", "s", "w %s"} <= set(texts)


def others() -> list[str]:
    """Interpreters of other versions on this machine, where they were installed side by side."""
    beside = Path(sys.base_prefix).parent.glob("3.*/bin/python3")
    fit = [place for place in beside if tuple(int(n) for n in place.parts[-3].split(".")[:2]) >= (3, 10)]
    return sorted(str(place) for place in fit)


@pytest.mark.parametrize(
    "python", others() or [pytest.param("", marks=pytest.mark.skip("no other Python beside this"))]
)
def test_another_version_of_python_tells_the_same(python: str):
    assert told_by(python) == told_by(sys.executable)


SEEN: list[int] = []
CALLS = READ = 0


def adds(width: int) -> None:
    SEEN.append(width)


def counts() -> None:
    global CALLS
    CALLS += 1


def reads_too() -> int:
    global READ
    READ += 1
    return READ


@pytest.mark.parametrize(("function", "named"), [(adds, set()), (counts, set()), (reads_too, {("READ",)})])
def test_what_is_only_added_to_or_counted_is_not_read(function: Any, named: set[tuple[str, ...]]):
    assert mentions(function.__code__).globals == named


@pytest.mark.parametrize(
    ("level", "name", "package", "expected"),
    [
        (0, "a.b", None, "a.b"),
        (1, "b", "a", "a.b"),
        (2, "c", "a.b", "a.c"),
        (1, "", "a", "a."),
        (3, "b", "a", ""),
        (1, "b", None, ""),
    ],
)
def test_relative_imports_are_resolved(level: int, name: str, package: str | None, expected: str):
    assert absolute(level, name, package).rstrip(".") == expected.rstrip(".")


def test_code_without_a_source_is_told_by_what_was_compiled():
    space: dict[str, Any] = {}
    exec("def f(): return 1\ndef g(): return 2\ndef h(): return 1", space)
    f, g, h = (text_of(space[name].__code__) for name in "fgh")
    assert len({f, g, h.replace("'h'", "'f'")}) == 2
