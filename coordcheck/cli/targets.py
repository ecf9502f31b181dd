"""Names on the command line -> the user's objects: `train.py:build`, `LABEL=package.module:build`, `key=value`."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.isolation import Exited, user_code
from coordcheck.common.letters import recovered
from coordcheck.runs.arguments import suggestion


def factories(targets: Sequence[str], keywords: Mapping[str, Any]) -> dict[str, Callable[[int], Any]]:
    """The factories by label; each is called with the width and these keyword arguments.

    Raises:
        CoordCheckError: a name that cannot be resolved, a label given twice, or a keyword that a factory does not take.
    """
    found: dict[str, Callable[[int], Any]] = {}
    for target in targets:
        label, equals, rest = target.partition("=")
        place = rest if equals else target
        build = resolve(place)
        label = recovered(label if equals else place.rpartition(":")[2])
        if label in found:
            raise CoordCheckError(
                f"two factories are labelled {label!r}; write LABEL=MODULE:FUNCTION to tell them apart."
            )
        found[label] = _with_keywords(build, place, keywords) if keywords else build
    return found


def _with_keywords(build: Any, place: str, keywords: Mapping[str, Any]) -> Callable[[int], Any]:
    bound = partial(build, **keywords)
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # not a function, or one that tells nothing about itself
        return bound
    names = [name for name, given in signature.parameters.items() if given.kind in _BY_NAME]
    takes_any = any(given.kind is inspect.Parameter.VAR_KEYWORD for given in signature.parameters.values())
    for name in keywords:
        if name not in names and not takes_any:
            raise CoordCheckError(f"{place} takes no {name!r}{suggestion(name, names)}; it takes {', '.join(names)}.")
    return bound


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def keyword_values(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as keyword arguments; values are Python literals, anything else is a text.

    Raises:
        CoordCheckError: a text without `=`, or with a key that is no name.

    >>> keyword_values(["depth=3", "tied=True", "activation=gelu", "betas=(0.9, 0.95)"])
    {'depth': 3, 'tied': True, 'activation': 'gelu', 'betas': (0.9, 0.95)}
    """
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise CoordCheckError(f"{pair!r} must be KEY=VALUE, such as depth=3.")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def resolve(target: str) -> Any:
    """The object that `module:name` or `path/file.py:name` means; it runs that module, as an import does.

    Raises:
        CoordCheckError: no such module, file or name, or the module itself raised.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise CoordCheckError(f"{target!r} must be MODULE:NAME or FILE.py:NAME, such as train.py:build.")
    found = _module(place)
    for attribute in normalize("NFKC", recovered(name)).split("."):  # as Python does with the names in a source
        if not hasattr(found, attribute):
            known = [other for other in dir(found) if not other.startswith("_")]
            raise CoordCheckError(
                f"{place!r} has no {attribute!r}{suggestion(attribute, known)}; it must define what {target!r} names."
            )
        found = getattr(found, attribute)
    return found


def source_line(function: Any) -> tuple[str, int] | None:
    """The file and line of a function, relative to the current folder where it is inside; None for other objects."""
    while isinstance(function, partial):
        function = function.func
    try:
        path, (_, line) = inspect.getsourcefile(function), inspect.getsourcelines(function)
    except (TypeError, OSError):  # an object that is called, or code without a file
        return None
    if path is None:
        return None
    relative = os.path.relpath(path)
    return (path if relative.startswith(os.pardir) else relative), line


def _module(place: str) -> Any:
    """Import a module by name or by file, with the current folder on the path, as `python -m` has it."""
    is_file = place.endswith(".py")
    folder = os.path.dirname(os.path.abspath(place)) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if is_file and not os.path.isfile(place):
        near = [str(path) for path in Path(place).parent.glob("*.py")] if Path(place).parent.is_dir() else []
        raise CoordCheckError(f"there is no file {place!r}{suggestion(place, near)}.")
    name = Path(place).stem if is_file else place
    try:
        with user_code(repr(place)):
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CoordCheckError(f"cannot import {place!r}: {error}.") from error
    except Exited as error:
        raise CoordCheckError(
            f"{error} while it was imported. Let what a script does when it is started stand under "
            '`if __name__ == "__main__":`, so that its functions can be imported.'
        ) from error
    except Exception as error:  # the user's own module
        last = "".join(traceback.format_exception(error)).strip().splitlines()[-3:]
        raise CoordCheckError(f"{place!r} raised when it was imported:\n" + "\n".join(last)) from error
    found = getattr(module, "__file__", None)
    if is_file and (found is None or os.path.realpath(found) != os.path.realpath(place)):
        raise CoordCheckError(f"{place!r} has the name of another module ({found}). Rename the file.")
    return module
