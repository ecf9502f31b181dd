"""What is shipped: the source distribution holds all that its tests need, the wheel the package and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from hatchling.build import *; print(globals()[sys.argv[1]](sys.argv[2]))"

pytestmark = pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling comes with the test extra")
DATA = ("py.typed", "reporting/report.schema.json", "reporting/templates/report.html")


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def built(kind: str, folder: Path, *, source: Path = ROOT) -> Path:
    """The file that the build backend makes of a source tree: kind is build_sdist or build_wheel."""
    return folder / run("-c", BUILD, kind, str(folder), cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return built("build_sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory) -> Path:
    """Built from the unpacked source distribution, as pip does it: what is missing there is missing here."""
    return built("build_wheel", tmp_path_factory.mktemp("wheel"), source=unpacked)


def test_the_source_distribution_holds_every_file_of_the_repository(unpacked):
    if not (ROOT / ".git").exists():
        pytest.skip("not in a clone: there is no list of files to hold it against")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    dots = {name for name in tracked if name.startswith(".") and "/" not in name}  # settings of tools
    shipped = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert tracked
    assert tracked - dots - shipped == set()
    assert not [name for name in shipped if re.search(r"__pycache__|\.pyc$|\.venv|(^|/)_build/|\.egg-info", name)]


def test_its_tests_run_where_it_was_unpacked(unpacked):
    chosen = ("tests/test_golden.py::test_too_few_widths", "tests/test_golden.py::test_incomplete")
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, cwd=unpacked)
    assert "2 passed" in told


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "coordcheck").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = files(wheel)
    assert {name for name in shipped if ".dist-info/" not in name} == package
    assert {f"coordcheck/{name}" for name in DATA} <= set(shipped)


def test_the_metadata_names_requirements_and_no_place_to_get_them_from(wheel):
    text = next(data for name, data in files(wheel).items() if name.endswith(".dist-info/METADATA")).decode()
    metadata = Parser().parsestr(text)
    head = text[: text.index("\n\n")]
    requirements = metadata.get_all("Requires-Dist")
    assert requirements
    assert not [line for line in requirements if "@" in line or "://" in line]
    assert "index" not in head.lower()
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-File"] == "LICENSE"


def test_the_source_distribution_is_installed_without_anything_else(sdist, tmp_path):
    if find_spec("pip") is None:
        pytest.skip("there is no pip in this environment")
    target = tmp_path / "installed here"
    run(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--disable-pip-version-check", "--target", str(target), str(sdist)),
    )
    # isolated, and from another folder: neither the source tree nor the environment's own copy is found first
    show = "import sys; sys.path.insert(0, sys.argv[1]); import coordcheck.cli.main; print(coordcheck.__file__)"
    assert Path(run("-I", "-c", show, str(target), cwd=tmp_path)).is_relative_to(target)
    declared = (next(target.glob("*.dist-info")) / "entry_points.txt").read_text(encoding="utf-8")
    assert "[console_scripts]\ncoordcheck = coordcheck.cli.main:" in declared
    assert "[pytest11]\ncoordcheck = coordcheck.pytest_plugin" in declared
