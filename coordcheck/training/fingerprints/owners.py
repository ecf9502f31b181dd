"""Whose code a module is: the user's own, or installed, as Python, its packages and this one are.

What is the user's own is read whole for a run's settings, and sent to other processes by value. What is installed is
known by its name and version. Where a module lies decides, not which interpreter runs: packages come from the base
interpreter, the user's site, PYTHONPATH, `pip install --target`, another environment's `.pth`, or the system.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from types import ModuleType

# wherever they lie, also where they were built from a clone of their sources
INSTALLED = frozenset(
    {"coordcheck", "torch", "torchgen", "torchvision", "torchaudio", "functorch", "triton", "numpy", "scipy", "pandas"}
    | {"matplotlib", "rich", "jinja2", "markupsafe", "loky", "cloudpickle", "transformers", "lightning"}
)
_PLACES = frozenset({"site-packages", "dist-packages"})


def is_users(name: object) -> bool:
    """Whether the module of this name is the user's own; one that is not loaded is nobody's.

    Editable installs are the user's, since their files lie elsewhere; so is a file beside packages that `pip install
    --target` put into the user's folder.
    """
    module = sys.modules.get(name) if isinstance(name, str) else None
    return module is not None and owns(str(name), _attributes(module))


def owns(name: str, attributes: dict[str, object]) -> bool:
    """`is_users` for a module that may not be listed in `sys.modules`, by its name and its global names."""
    top = name.partition(".")[0]
    if top in INSTALLED:
        return False
    place = _place(attributes)
    if place is None:  # a notebook, an interactive session, made by the user's code; else built in, or frozen
        return top in ("__main__", "__mp_main__") or attributes.get("__spec__") is None
    return _lies_with_user(name, place)


def users_modules() -> list[ModuleType]:
    """The user's own modules that are loaded and have a Python source."""
    loaded = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    return [
        module
        for name, module in loaded
        if (_place(_attributes(module)) or "").endswith(".py") and name == module.__name__ and is_users(name)
    ]


@lru_cache(maxsize=1024)
def version_of(top: str) -> str:
    """The version of an installed package, loaded or not; empty where no distribution has its name."""
    try:
        return version(top)
    except PackageNotFoundError:
        return ""


def record_of(top: str) -> str:
    """What the record of an installed package says of its Python files, their hashes included; empty without one."""
    try:
        record = distribution(top).read_text("RECORD") or ""
    except PackageNotFoundError:
        return ""
    lines = (line for line in record.splitlines() if line.startswith((f"{top}/", f"{top}.py,")))
    return "\n".join(sorted(line for line in lines if ".py," in line))


def is_pythons(top: str) -> bool:
    """Whether a package is part of Python."""
    return top in sys.builtin_module_names or top in sys.stdlib_module_names


def _attributes(module: object) -> dict[str, object]:
    """A module's own names; never by getattr, which loads what a lazy module stands for."""
    try:
        return dict(object.__getattribute__(module, "__dict__"))
    except Exception:  # what stands in sys.modules need not be a module
        return {}


def _place(attributes: dict[str, object]) -> str | None:
    """The file of a module, or the folder of a package without one."""
    file = attributes.get("__file__")
    if isinstance(file, str):
        return file
    try:
        return next((str(folder) for folder in attributes.get("__path__") or ()), None)  # type: ignore[attr-defined]  # checked by trying
    except Exception:
        return None


@lru_cache(maxsize=4096)
def _lies_with_user(name: str, place: str) -> bool:
    path = os.path.realpath(place)
    parts = path.split(os.sep)
    if _PLACES.intersection(parts) or any(part.endswith(".egg") for part in parts):
        return False
    if any(path.startswith(folder + os.sep) for folder in _library_folders()):
        return False
    if os.path.basename(path).startswith("__init__."):
        path = os.path.dirname(path)
    top, *inside = name.split(".")
    for _ in inside:  # a.b.c lies two folders inside a
        path = os.path.dirname(path)
    return not _is_listed(top, os.path.dirname(path))


@lru_cache(maxsize=1)
def _library_folders() -> frozenset[str]:
    """The folders of Python's own library and of the running interpreter's packages, whatever they are called."""
    paths = [sysconfig.get_path(which) for which in ("stdlib", "platstdlib", "purelib", "platlib")]
    linked = os.path.dirname(os.path.realpath(os.__file__))  # an interpreter's library may be a folder of links
    return frozenset({linked, *(os.path.realpath(path) for path in (*paths, os.path.dirname(os.__file__)) if path)})


def _is_listed(top: str, folder: str) -> bool:
    """Whether a distribution that is installed into a folder (`pip install --target`) brought this package along."""
    distributions = _distributions(folder)
    return bool(distributions) and (_plainly(top) in distributions or _is_recorded(top, folder))


@lru_cache(maxsize=64)
def _distributions(folder: str) -> frozenset[str]:
    """The names of the distributions that are installed into a folder."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return frozenset()
    return frozenset(_plainly(name.partition("-")[0]) for name in entries if name.endswith(".dist-info"))


def _plainly(name: str) -> str:
    """The form in which names of distributions and packages are compared."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _is_recorded(top: str, folder: str) -> bool:
    """Whether the record of one of a folder's distributions lists this package or module."""
    starts = [f"{top}{end}".encode() for end in ("/", ".")]
    for name in os.listdir(folder):
        if name.endswith(".dist-info"):
            try:
                with open(os.path.join(folder, name, "RECORD"), "rb") as file:
                    lines = b"\n" + file.read()
            except OSError:  # not written by pip
                continue
            if any(b"\n" + start in lines for start in starts):
                return True
    return False
