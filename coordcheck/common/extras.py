"""Packages that only a part of coordcheck needs, imported where that part begins."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from coordcheck.common.errors import CoordCheckError


class UnusableExtra(CoordCheckError, ImportError):
    """A package that was asked for by what was called is not installed, or cannot be imported."""


def import_extra(*names: str, extra: str, purpose: str, attribute: str | None = None) -> Any:
    """The first of these modules that can be imported, or an attribute of it.

    Args:
        names: dotted names of modules, the preferred one first.
        extra: the extra of coordcheck that brings them.
        purpose: what needs them, as the subject of the message.
        attribute: what is wanted of the module. Packages that import themselves bit by bit fail only here.

    Returns:
        The module, or its attribute.

    Raises:
        UnusableExtra: none is installed (the message names the extra), or one is and its import raised: whatever it
            raised, its own words are in the message.

    >>> import_extra("json", extra="hf", purpose="reading").__name__
    'json'
    >>> import_extra("no_such_package", extra="hf", purpose="huggingface")
    Traceback (most recent call last):
    ...
    coordcheck.common.extras.UnusableExtra: huggingface needs no_such_package: pip install "coordcheck[hf]".
    """
    broken: Exception | None = None
    for name in names:
        try:
            module = import_module(name)
            return module if attribute is None else getattr(module, attribute)
        except Exception as error:  # a package built for another torch raises RuntimeError, OSError, AttributeError
            broken = broken or (error if _is_installed(name) else None)
    package = names[0].partition(".")[0]
    if broken is None:
        raise UnusableExtra(f'{purpose} needs {package}: pip install "coordcheck[{extra}]".')
    raise UnusableExtra(
        f"{purpose} needs {package}, which is installed and cannot be imported: {type(broken).__name__}: "
        f'{str(broken)[:300]}. Install versions that fit each other: pip install --upgrade "coordcheck[{extra}]".'
    ) from broken


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):  # a finder that refuses it, or what was put in its place in sys.modules
        return False
