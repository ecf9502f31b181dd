"""Where Python finds torch and the user's code: each way of installing them is made here, and a check runs in it."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import coordcheck
from coordcheck.training.fingerprints.fingerprint import settings_of
from coordcheck.training.fingerprints.owners import is_users, owns

PACKAGES = Path(sysconfig.get_path("purelib"))
REPOSITORY = Path(coordcheck.__file__).parent.parent
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
FLOOR = 0.05  # seconds: below it a busy machine decides; what is guarded against took minutes
TRAIN = """
import numpy as np
import torch
import yaml
import helpers
RATE = 1e-2
def build(width):
    model = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), helpers.layer(width, 4))
    return model, torch.optim.Adam(model.parameters(), lr=RATE * float(np.sqrt(yaml.safe_load("1"))))
torch.manual_seed(0)
batch = torch.randn(16, 8), torch.randint(4, (16,))
"""
HELPERS = """
from torch import nn
def layer(inputs, outputs):
    return nn.Linear(inputs, outputs)
"""
PROBE = """
import sys, time
sys.path.insert(0, ".")
import torch, train
from coordcheck.training.fingerprints.fingerprint import describe_callable
began = time.process_time()
described = describe_callable(train.build)
print(time.process_time() - began, described, torch.__file__, sep="|", flush=True)
from coordcheck.training.payloads import packed, unpacked
build, loss = unpacked(packed((train.build, torch.nn.functional.cross_entropy)))[0]
assert build is not train.build and loss is torch.nn.functional.cross_entropy
if sys.argv[1] == "check":
    from coordcheck.cli.main import main
    loss = "torch.nn.functional:cross_entropy"
    given = ["--widths", "8", "16", "32", "--seeds", "1", "--steps", "1", "--jobs", "2"]
    sys.exit(main(["run", "train.py:build", "--batch", "train.py:batch", "--loss", loss, *given]))
"""


class Seen(NamedTuple):
    seconds: float
    described: str
    torch: str
    code: int
    output: str


def base_interpreter() -> Path:
    """The interpreter under any environment."""
    found = Path(sys.base_prefix, "bin", VERSION)
    if not found.exists():
        pytest.skip(f"no {found}")
    return found


def write_code(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"train.py": TRAIN, "helpers.py": HELPERS, "probe.py": PROBE}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def seen_by(python: Path, folder: Path, what: str, variables: dict[str, str]) -> Seen:
    """What the probe prints under an interpreter, without what this one was told by the environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    command = [str(python), "-W", "error::RuntimeWarning", "probe.py", what]
    given = {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=120)
    head, _, output = done.stdout.partition("\n")
    assert head.count("|") == 2, done.stderr
    seconds, described, torch = head.split("|")
    return Seen(float(seconds), described, torch, done.returncode, output + done.stderr)


def make_venv(python: Path, folder: Path, *options: str) -> Path:
    subprocess.run([str(python), "-m", "venv", "--without-pip", *options, str(folder)], check=True)
    return folder / "bin" / "python"


def stacked(place: Path) -> tuple[Path, dict[str, str]]:
    """An environment that takes its packages from another one's folder, by a `.pth` file."""
    python = make_venv(base_interpreter(), place / "venv")
    overlay = place / "venv" / "lib" / VERSION / "site-packages" / "overlay.pth"
    overlay.write_text(f"import site; site.addsitedir({str(PACKAGES)!r})\n", encoding="utf-8")
    return python, {}


def system_site(place: Path) -> tuple[Path, dict[str, str]]:
    """An environment with `--system-site-packages`, over an interpreter that has torch, as in containers."""
    library = place / "base" / "lib" / VERSION
    library.mkdir(parents=True)
    (place / "base" / "bin").mkdir()
    python = place / "base" / "bin" / VERSION
    shutil.copy2(base_interpreter(), python)  # a copy: an interpreter looks for its library beside itself
    for entry in Path(os.__file__).parent.iterdir():
        if entry.name != "site-packages":
            (library / entry.name).symlink_to(entry)
    (library / "site-packages").symlink_to(PACKAGES)
    return make_venv(python, place / "venv", "--system-site-packages"), {}


def user_site(place: Path) -> tuple[Path, dict[str, str]]:
    """`pip install --user`."""
    library = place / "user" / "lib" / VERSION
    library.mkdir(parents=True)
    (library / "site-packages").symlink_to(PACKAGES)
    return base_interpreter(), {"PYTHONUSERBASE": str(place / "user")}


def python_path(place: Path) -> tuple[Path, dict[str, str]]:
    """Packages of another environment on PYTHONPATH."""
    return base_interpreter(), {"PYTHONPATH": f"{PACKAGES}{os.pathsep}{REPOSITORY}"}


def target(place: Path) -> tuple[Path, dict[str, str]]:
    """`pip install --target` into a folder of any name; its links lead to folders of any name, too."""
    folder, store = place / "deps", place / "store"
    folder.mkdir()
    for entry in PACKAGES.iterdir():
        if entry.name.lower().startswith(("yaml", "pyyaml", "_yaml", "cloudpickle")):
            (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, folder / entry.name)
        elif entry.name != "__pycache__" and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    folder.rename(store)
    return base_interpreter(), {"PYTHONPATH": f"{store}{os.pathsep}{REPOSITORY}"}


def system_python(place: Path) -> tuple[Path, dict[str, str]]:
    """The system's own interpreter, whose library is elsewhere."""
    python = Path("/usr/bin/python3")
    asked = "import sys; print(f'python{sys.version_info.major}.{sys.version_info.minor}')"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout if python.exists() else ""
    if found.strip() != VERSION:
        pytest.skip(f"{python} is {found.strip() or 'not there'}, and the packages are those of {VERSION}")
    return python, {"PYTHONPATH": f"{PACKAGES}{os.pathsep}{REPOSITORY}"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The same code in the environment of the tests, where the packages are the interpreter's own."""
    return seen_by(Path(sys.executable), write_code(tmp_path_factory.mktemp("plain")), "fingerprint", {})


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (target, "fingerprint"),
        pytest.param(target, "check", marks=pytest.mark.thorough),
        (system_site, "fingerprint"),
        (stacked, "fingerprint"),
        (system_python, "fingerprint"),
        (user_site, "fingerprint"),
        (python_path, "fingerprint"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_users_code_alone_is_read_and_sent_to_workers(kind: Callable, what: str, plain: Seen, tmp_path: Path):
    python, variables = kind(tmp_path)
    seen = seen_by(python, write_code(tmp_path / "code"), what, variables)
    assert seen.described == plain.described  # the same code, wherever torch lies
    assert seen.seconds <= 2 * max(plain.seconds, FLOOR)
    if what == "check":
        assert seen.code in (0, 1, 3), seen.output  # judged, whatever it is
        assert "build:" in seen.output
        assert "anew" not in seen.output  # the user's modules were sent by value
    else:
        assert seen.code == 0, seen.output


# ---- whose a module is


def module(name: str, file: Path) -> dict[str, object]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return {"__name__": name, "__file__": str(file), "__spec__": object()}


@pytest.mark.parametrize(
    ("name", "place", "beside", "users"),
    [
        ("train", "project/train.py", (), True),
        ("mine.net", "project/src/mine/net.py", ("project/src/mine.egg-info/PKG-INFO",), True),  # an editable install
        ("train", "venv/src/train/train.py", (), True),
        ("train", "with/torch/train.py", ("with/torch-2.4.dist-info/RECORD",), True),  # beside what pip put there
        ("train", "site-packages-of-mine/train.py", (), True),
        ("torch.nn", "clone/torch/nn/__init__.py", (), False),  # built in its repository
        ("mine.net", "lib/python3.11/site-packages/mine/net.py", (), False),
        ("mine", "usr/lib/python3/dist-packages/mine.py", (), False),
        ("mine", "deps/mine/__init__.py", ("deps/mine-1.0.dist-info/RECORD",), False),
        ("imaging.jpeg", "deps/imaging/jpeg.py", ("deps/pillow-1.0.dist-info/RECORD",), False),  # by its record
        ("single", "deps/single.py", ("deps/other-1.0.dist-info/RECORD",), False),
        ("mine", "eggs/mine-1.0-py3.11.egg/mine/__init__.py", (), False),
    ],
)
def test_whose_a_module_is(tmp_path: Path, name: str, place: str, beside: tuple[str, ...], users: bool):
    for other in beside:
        (tmp_path / other).parent.mkdir(parents=True)
        (tmp_path / other).write_text("imaging/jpeg.py,sha256=x,1\nsingle.py,sha256=y,2\n", encoding="utf-8")
    assert owns(name, module(name, tmp_path / place)) is users


class Finder(importlib.abc.MetaPathFinder):
    """How an editable install may be found: by a hook that maps names to places in the user's repository."""

    def __init__(self, name: str, place: Path) -> None:
        self._name, self._place = name, place

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        where = [str(self._place)]
        init = self._place / "__init__.py"
        return importlib.util.spec_from_file_location(fullname, init, submodule_search_locations=where)


@pytest.mark.parametrize("how", ["hook", "path"])
def test_an_editable_install_of_the_users_package_is_read_as_theirs(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = []
    for scale in (1.0, 1.0, 2.0):
        source = tmp_path / str(len(told)) / "repository" / "src"
        (source / "edited").mkdir(parents=True)
        (source / "edited.egg-info").mkdir()
        (source / "edited" / "__init__.py").touch()
        (source / "edited" / "net.py").write_text(f"SCALE = [{scale}]\n", encoding="utf-8")
        (source / "edited" / "train.py").write_text(EDITED, encoding="utf-8")
        finder = Finder("edited", source / "edited")
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path] if how == "hook" else [*sys.meta_path])
        monkeypatch.setattr(sys, "path", [*sys.path] if how == "hook" else [str(source), *sys.path])
        told.append(settings_of(build=importlib.import_module("edited.train").build))
        for name in ("edited", "edited.net", "edited.train"):
            del sys.modules[name]
        monkeypatch.undo()
    assert told[0] == told[1]
    assert {name for name in told[0] if told[0][name] != told[2][name]} == {"reads edited.net.SCALE"}


EDITED = """
from . import net
def build(width):
    return net.SCALE[0] * width
"""


@pytest.mark.parametrize("name", ["json", "os", "sys", "coordcheck.models.mlp", "numpy", "no_such_module", None, 3])
def test_what_is_installed_or_not_loaded_is_not_the_users(name: object):
    assert not is_users(name)


def test_a_test_file_and_a_module_made_by_hand_are_the_users():
    assert owns(__name__, globals())
    assert owns("made", {"__name__": "made", "__spec__": None})
