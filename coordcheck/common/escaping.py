r"""Text that leaves the package, made fit for the place it goes to.

Names, labels, notes, reasons and paths come from users' models and from files of unknown origin, and hold whatever a
string can: escape sequences of terminals, line ends, marks that turn the direction of text around, halves of surrogate
pairs (as Python gives them for file names that are not of the locale's encoding), a hundred thousand characters.

    terminal, log, warning, traceback   `printable` of one line, `told` of several
    table, figure                       `legible`
    JSON                                `json_text`

HTML, Markdown, XML, workflow commands and file names escape what `printable` leaves, each where it is written.
"""

from __future__ import annotations

import json
import re
from typing import Any

NAME_LENGTH = 200  # characters of a name in a line of text
MESSAGE_LENGTH = 20_000  # characters of a message; a report of many layers on one screen has some thousand
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text on one line, with every character written out that is not seen as itself.

    Those are control characters, line ends, marks without width or of direction, and halves of surrogate pairs.

    >>> printable("a\nb"), printable("\x1b[31m"), printable("\udcff")
    ('a\\nb', '\\x1b[31m', '\\udcff')
    """
    if type(text) is str and text.isprintable():  # a member of an enumeration would be printed by its Python name
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def told(message: str) -> str:
    r"""A message of several lines, each of them printable; of a very long one, its beginning and its end.

    >>> told("one\ntwo\x1b[2J")
    'one\ntwo\\x1b[2J'
    """
    # not splitlines, which takes other characters for line ends as well
    lines = message.replace("\r\n", "\n").split("\n")
    return shortened("\n".join(map(printable, lines)), MESSAGE_LENGTH)


def shortened(text: str, most: int = NAME_LENGTH) -> str:
    """The text, or its beginning and its end where it has more than `most` characters.

    >>> shortened("blocks.0.attention.query", 11)
    'block…query'
    """
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def legible(name: str, most: int = NAME_LENGTH) -> str:
    r"""A name as it stands in a line of text, a table or a figure: printable, and not longer than can be read.

    >>> legible("fc\n1"), len(legible("x" * 100_000))
    ('fc\\n1', 200)
    """
    return shortened(printable(shortened(name, 4 * most)), most)


def well_formed(text: str) -> str:
    r"""The text as Unicode can encode it: halves of surrogate pairs are written out.

    >>> well_formed("caf\udce9")
    'caf\\udce9'
    """
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_text(value: Any) -> str:
    r"""A value as strict JSON on one line (no NaN), in which every reader finds the same texts.

    Letters of all languages stand as they are. What is not printable is an escape of JSON, so that it does nothing to
    a terminal; halves of surrogate pairs, which are no text for most readers of JSON, are written out.

    Raises:
        ValueError: a number that is not finite.

    >>> print(json_text({"µP": ["\x9b", "\udcff"]}))
    {"µP": ["\u009b", "\\udcff"]}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if text.isprintable():
        return text
    # outside of strings JSON is printable, so that all of this stands in strings
    return "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    if _SURROGATES.match(character):
        return f"\\\\u{ord(character):04x}"
    return json.dumps(character)[1:-1]
