"""The versions that are declared are versions that are tried: the metadata, .ci/oldest.txt and the workflow agree."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
OLDEST = ROOT / ".ci" / "oldest.txt"
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"
# torch is not pinned there: it is the one that the environment has, and the guide says which ones were tried
OWN = {"torch"}


def listed(name: str) -> list[str]:
    """A list of texts in pyproject.toml, which Python 3.10 has no parser for."""
    found = re.search(rf"^{name} = \[.*?\n(.*?)^\]", PYPROJECT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    return re.findall(r'^  "([^"]+)",', found[1], flags=re.MULTILINE)


def floors() -> dict[str, Version]:
    """Name -> the one lower bound that a dependency has."""
    found = {}
    for requirement in map(Requirement, listed("dependencies")):
        (bound,) = requirement.specifier  # an upper bound would need a reason
        assert bound.operator == ">="
        found[requirement.name] = Version(bound.version)
    return found


def pins(text: str) -> dict[str, Version]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_every_floor_is_the_version_that_is_installed_to_try_it():
    oldest, declared = pins(OLDEST.read_text(encoding="utf-8")), floors()
    assert {name: oldest.get(name) for name in declared if name not in OWN} == {
        name: version for name, version in declared.items() if name not in OWN
    }


def test_a_floor_that_is_not_tried_is_seen():
    assert pins("# a comment\n\nrich==13.2.0\n") == {"rich": Version("13.2")}
    assert pins("rich==13.2.0")["rich"] != Version("13.1")
    assert floors()["torch"] >= Version("2.4")


def test_the_oldest_versions_are_those_that_run_where_it_says_so():
    """In the job of the oldest versions: without this it might have tried any others."""
    if not os.environ.get("COORDCHECK_OLDEST"):
        pytest.skip("not the job of the oldest versions: COORDCHECK_OLDEST is not set")
    wanted = pins(OLDEST.read_text(encoding="utf-8"))
    assert {name: Version(version(name)) for name in wanted} == wanted


def test_the_guide_names_the_oldest_versions():
    told = (ROOT / "gallery" / "guide" / "versions.md").read_text(encoding="utf-8")
    oldest = pins(OLDEST.read_text(encoding="utf-8"))
    assert {name: f"{name} {oldest[name]}" in told for name in floors() if name not in OWN} == dict.fromkeys(
        set(floors()) - OWN, True
    )


def workflow() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return read


def test_every_python_that_is_declared_is_one_of_the_workflow():
    classifiers = [line for line in listed("classifiers") if re.search(r"Python :: 3\.\d+$", line)]
    declared = [line.rpartition(" ")[2] for line in classifiers]
    assert declared
    assert workflow()["jobs"]["tests"]["strategy"]["matrix"]["python"] == declared
    assert f'requires-python = ">={declared[0]}"' in PYPROJECT
    assert f'target-version = "py{declared[0].replace(".", "")}"' in PYPROJECT
    assert f'python_version = "{declared[0]}"' in PYPROJECT


def test_the_workflow_installs_the_oldest_versions_with_the_oldest_python():
    job = workflow()["jobs"]["oldest"]
    text = WORKFLOW.read_text(encoding="utf-8")
    assert job["steps"][1]["with"]["python-version"] == workflow()["jobs"]["tests"]["strategy"]["matrix"]["python"][0]
    assert any(".ci/oldest.txt" in step.get("run", "") for step in job["steps"])
    assert "://" not in text  # a place to get packages from is the user's choice
