"""Names of labels, layers and parameters: when two are one, and what many have in common."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Mapping

from coordcheck.common.escaping import printable as printable


def same_label(label: str) -> str:
    r"""The form in which labels are compared: NFKC, so that the two Unicode mu signs are one.

    Two halves of a surrogate pair are one character, as they are when JSON is read.

    >>> same_label("\u00b5P") == same_label("\u03bcP")
    True
    """
    pairs_joined = label.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return unicodedata.normalize("NFKC", pairs_joined)


def distinct(name: str, taken: Container[str]) -> str:
    """A name that is made here, such as `fc#2`, where the user has given that very name to something else.

    >>> distinct("fc#2", {"fc"}), distinct("fc#2", {"fc", "fc#2"})
    ('fc#2', 'fc#2~2')
    """
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}~{count}"
    return found


def pattern(name: str) -> str:
    r"""A name with its numbers left out: parameters of repeated blocks are alike.

    >>> pattern("blocks.12.mlp.up.weight")
    'blocks.*.mlp.up.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs between two runs' settings, one text each.

    >>> differences({"steps": "4", "loss": "mse"}, {"steps": "3", "loss": "mse"})
    ['steps was 4, is 3']
    """
    return [
        f"{name} was {before.get(name, 'not set')}, is {after.get(name, 'not set')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
