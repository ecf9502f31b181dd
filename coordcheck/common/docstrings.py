"""An argument that several functions take is documented once; the others write `as for`, and the name of the first."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=Callable[..., Any])

_ENTRY = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def as_for(source: Callable[..., object]) -> Callable[[Documented], Documented]:
    """Decorate a function or class whose docstring refers to the arguments of another one.

    In the source and in editors the reference stands, ``loss: as for `check`.``; in `help`, notebooks and the site it
    is replaced by what `source` says of this argument.

    Args:
        source: where the arguments are documented, under "Args:".

    Returns:
        The decorator; it changes `__doc__` alone.

    Raises:
        KeyError: (of the decorator) the docstring refers to an argument that `source` does not document.

    >>> def load(path):
    ...     '''Load.
    ...
    ...     Args:
    ...         path: a folder.
    ...     '''
    >>> @as_for(load)
    ... def show(path):
    ...     '''Show.
    ...
    ...     Args:
    ...         path: as for `load`; it must exist.
    ...     '''
    >>> print(show.__doc__.splitlines()[-1].strip())
    path: a folder; it must exist.
    """
    entries = dict(_ENTRY.findall(inspect.getdoc(source) or ""))
    reference = re.compile(rf"^    (\w+): as for `{re.escape(source.__name__)}`", re.MULTILINE)

    def complete(target: Documented) -> Documented:
        if target.__doc__:  # python -OO leaves none
            found = inspect.cleandoc(target.__doc__)
            target.__doc__ = reference.sub(lambda at: f"    {at[1]}: {entries[at[1]].removesuffix('.')}", found)
        return target

    return complete
