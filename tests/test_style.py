"""Lint and types, with the settings of pyproject.toml."""

from __future__ import annotations

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
        [sys.executable, "-m", tool, *COMMANDS[name]], cwd=ROOT, capture_output=True, text=True, timeout=300
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
