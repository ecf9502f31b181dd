"""What stands beside the package is true: launcher, workflow, hooks, changelog, citation, words on contributing."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_house import WINGS
from test_style import COMMANDS

import coordcheck

ROOT = Path(__file__).parent.parent
LAUNCHER = (ROOT / ".ci/dev").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def exists(node: str) -> bool:
    """Whether there is such a test file, and in it such a test."""
    path, _, test = node.partition("::")
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return not test or test in {found.name for found in tree.body if isinstance(found, ast.FunctionDef)}


def test_a_test_that_is_gone_is_seen():
    assert exists("tests/test_project_files.py::test_a_test_that_is_gone_is_seen")
    assert not exists("tests/test_project_files.py::test_that_is_gone")
    assert not exists("tests/test_of_nothing.py")


# the launcher


def test_the_fast_tests_are_one_per_wing():
    rows = [row.split() for row in re.search(r'FAST="\n(.*?)"', LAUNCHER, flags=re.DOTALL)[1].splitlines()]
    assert [wing for wing, _ in rows] == [*WINGS]
    assert [test for _, test in rows if not exists(test)] == []


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    if sys.platform == "win32":
        pytest.skip("the launcher is a script for bash")
    return subprocess.run(["bash", ".ci/dev", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_launcher_tells_its_verbs_and_contributing_too():
    verbs = set(re.findall(r"^  \.ci/dev (\w+)", launch("help").stdout, flags=re.MULTILINE))
    assert verbs == {"fast", "test", "lint", "docs", "bench"}
    assert verbs == set(re.findall(r"^  (\w+)\) ", LAUNCHER, flags=re.MULTILINE)) | {"lint"}
    assert verbs == set(re.findall(r"^\.ci/dev (\w+)", CONTRIBUTING, flags=re.MULTILINE))


def test_an_unknown_verb_or_benchmark_is_an_error():
    for arguments in (["tests"], ["bench", "nothing"]):
        assert launch(*arguments).returncode == 2


def test_the_launcher_lists_the_benchmarks():
    scripts = {path.stem for path in (ROOT / "tests/benchmarks").glob("*.py")}
    assert set(launch("bench").stdout.split()) == scripts | {"faultbench"}
    named = set(re.findall(r"\.ci/dev bench (\w+)", CONTRIBUTING))
    assert named
    assert named <= scripts | {"faultbench"}


def test_the_linters_are_those_of_the_tests():
    for name, arguments in COMMANDS.items():
        assert f"-m {name.split()[0]} {' '.join(arguments)}" in LAUNCHER


# the hooks and the workflow


def test_the_hooks_run_the_tools_of_the_tests():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = {hook["entry"] for hook in local["hooks"]}
    assert entries == {"python -m ruff check", "python -m ruff format", "python -m mypy coordcheck"}
    assert all(re.match(hook["files"], "coordcheck/common/errors.py") for hook in local["hooks"])


def steps() -> list[str]:
    """The commands of the workflow."""
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("command", steps())
def test_what_a_command_of_the_workflow_names_exists(command):
    words = shlex.split(command)
    assert words[0] in ("pip", "python", "sphinx-build")
    for word in words[1:]:
        if word.startswith(("tests/", ".ci/")) or word == "gallery":
            assert (ROOT / word).exists(), word
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            assert re.search(rf"^{extra} = \[", PYPROJECT, flags=re.MULTILINE), extra


def test_the_oracles_are_installed_in_one_version_everywhere():
    told = [*steps(), CONTRIBUTING, (ROOT / "README.md").read_text(encoding="utf-8")]
    for name in ("mup", "timm"):
        assert len({version for text in told for version in re.findall(rf"{name}==([\d.]+)", text)}) == 1


# the words


def test_every_path_that_contributing_names_exists():
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", CONTRIBUTING)
    assert len(named) > 20
    missing = [path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "coordcheck"))]
    assert missing == []


def test_the_changelog_has_its_headings():
    releases = re.findall(r"^## (.*)$", CHANGELOG, flags=re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_of_this_version():
    assert CITATION["version"] == coordcheck.__version__
    assert f'license = "{CITATION["license"]}"' in PYPROJECT
    released = re.findall(r"^## \[(\d.*?)\]", CHANGELOG, flags=re.MULTILINE)
    assert coordcheck.__version__ in (released or re.findall(r"will be ([\d.]+),", CHANGELOG))
