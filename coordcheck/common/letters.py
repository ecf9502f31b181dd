"""Signs in the letters of a stream that cannot hold them: `×` as `x`, `µP` as `muP`."""

from __future__ import annotations

import codecs
import os
import unicodedata

HANDLER = "coordcheck.common.letters"
LETTERS = {
    **{"\u00b5": "mu", "\u03bc": "mu", "\u03c0": "pi", "\u221a": "sqrt", "\u221e": "inf", "\u0394": "d"},
    **{"\u00d7": "x", "\u00b1": "+-", "\u2192": "->", "\u2190": "<-", "\u2212": "-", "\u2264": "<=", "\u2265": ">="},
    **{"\u2026": "...", "\u2013": "-", "\u2014": "-", "\u00b7": "*", "\u2022": "*", "\u2018": "'", "\u2019": "'"},
    **{"\u201c": '"', "\u201d": '"', "\u2248": "~", "\u223c": "~", "\u00bc": "1/4", "\u00bd": "1/2", "\u00b0": " deg"},
    **{"\u2500": "-", "\u2501": "-", "\u2578": "-", "\u257a": "-", "\u2502": "|", "\u2503": "|", "\u2588": "#"},
}


def in_letters(text: str) -> str:
    r"""The text in ASCII; what has no letters of its own becomes `?`.

    >>> in_letters("µP: lr × m^-1, ±0.1 → é, 層")
    'muP: lr x m^-1, +-0.1 -> e, ?'
    """
    return "".join(char if char.isascii() else LETTERS.get(char) or _plain(char) for char in text)


def _plain(char: str) -> str:
    decomposed = unicodedata.normalize("NFKD", char)
    return "".join(part for part in decomposed if part.isascii()) or "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    """The handler of Python's codecs, for what an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_letters(error.object[error.start : error.end]), error.end


codecs.register_error(HANDLER, _replace)


def recovered(word: str) -> str:
    r"""A word of the command line as it was typed: where the locale is C, Python takes UTF-8 for bytes it cannot read.

    >>> recovered("\udcc2\udcb5P"), recovered("\udcff")
    ('µP', '\udcff')
    """
    try:
        return os.fsencode(word).decode("utf-8") if not word.isprintable() else word
    except UnicodeError:
        return word
