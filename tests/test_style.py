"""Lint and types, with the settings of pyproject.toml."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "ruff": ["check", "coordcheck", "tests"],
    "ruff format": ["format", "--check", "coordcheck", "tests"],
    "mypy": ["coordcheck"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_sources_are_clean(name):
    tool = name.split()[0]
    pytest.importorskip(tool, reason=f"{tool} comes with the dev extra")
    done = subprocess.run(
        [sys.executable, "-m", tool, *COMMANDS[name]],
        cwd=ROOT,
        env={**os.environ, "MYPY_CACHE_DIR": os.devnull},  # to write a cache takes a sixth of its time
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_ignored_rule_and_type_has_its_reason():
    ignores = [
        f"{path}:{number}: {line.strip()}"
        for path in (ROOT / "coordcheck").rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if ("# type: ignore" in line or "# noqa" in line) and line.count("#") < 2
    ]
    assert ignores == []


# others are told what a function draws or records by its first line
SHORT = ("coordcheck/recording/", "coordcheck/reporting/figures/")


def half_told(source: str) -> set[str]:
    """Functions whose docstring explains what they take, and not what they give."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and "Args:\n" in (told := ast.get_docstring(node) or ""):
            given = ast.unparse(node.returns) if node.returns else "None"
            if given not in ("None", "Iterator[None]") and not any(word in told for word in ("Returns:", "Yields:")):
                found.add(node.name)
    return found


def test_who_explains_the_arguments_explains_the_result():
    names = {
        f"{path.relative_to(ROOT).as_posix()}: {name}"
        for path in (ROOT / "coordcheck").rglob("*.py")
        for name in half_told(path.read_text(encoding="utf-8"))
    }
    assert {name for name in names if not name.startswith(SHORT)} == set()


def test_a_result_without_a_word_is_seen():
    start = "def f(x) -> int:\n    '''The square.\n\n    Args:\n        x: a number.\n"
    assert half_told(f"{start}    '''") == {"f"}
    assert half_told(f"{start}\n    Returns:\n        A number.\n    '''") == set()


def test_papers_stand_by_the_formulas_that_come_from_them():
    for module in ("exponents", "clipping", "targets", "slopes", "optima"):
        text = (ROOT / f"coordcheck/analysis/{module}.py").read_text(encoding="utf-8")
        assert any(word in text for word in ("arXiv:", "Source:", "Sources:")), module
