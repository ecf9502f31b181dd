"""Names of labels, layers and parameters: when two are one, and how one that is made here stays apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Container


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
