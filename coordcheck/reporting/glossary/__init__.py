"""What the words of a report mean: `coordcheck explain blows-up`. Needs nothing but Python."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.output import TEXT_WIDTH
from coordcheck.reporting.glossary.columns import FRAMES, Column
from coordcheck.reporting.glossary.terms import KINDS, TERMS, Term
from coordcheck.runs.arguments import suggestion

ALSO = {
    **{"mup": "µP", "muµp": "µP", "learning rate": "lr", "blow up": "blows up", "vanish": "vanishes"},
    **{"@linear": "@", "/sdpa": "/", "/forward": "/", "t": "step", "violation": "violated", "exponent": "slope"},
    **{"fan in": "fan-in", "fan out": "fan-out", "standard parametrization": "SP", "base width": "m"},
    **{"attention": "attention scale", "initialisation": "init", "initialization": "init", "culprits": "culprit"},
    **{"initialized too large": "initialised too large", "initialized too small": "initialised too small"},
}


def found(word: str) -> list[Term | Column]:
    """The entries of a word, however it is spelled: `blows-up`, `BLOWS UP`, `own_update`; empty when there is none."""
    form = _form(ALSO.get(_form(word), word))
    terms: list[Term | Column] = [term for term in TERMS if _form(term.name) == form]
    return terms + [column for columns in FRAMES.values() for column in columns if _form(column.name) == form]


def _form(word: str) -> str:
    """The form in which words are compared."""
    plain = unicodedata.normalize("NFKC", word).casefold().strip()
    return re.sub(r"[\s_-]+", " ", plain).strip() or plain


def explain(words: Sequence[str]) -> str:
    """The meaning of each word, or of all of them as one: `blows up` may be typed as two.

    Raises:
        CoordCheckError: a word that is not in the glossary, with the nearest one that is.
    """
    together = " ".join(words)
    chosen = [together] if found(together) else list(words)
    return "\n\n".join(_entry(word) for word in chosen)


def _entry(word: str) -> str:
    entries = found(word)
    if not entries:
        known = dict.fromkeys([*(term.name for term in TERMS), *_column_names(), *ALSO])
        near = suggestion(_form(word), known)
        raise CoordCheckError(f"{word!r} is not in the glossary{near}; `coordcheck explain` lists what is.")
    return "\n".join(_paragraph(entry) for entry in entries)


def _column_names() -> list[str]:
    return [column.name for columns in FRAMES.values() for column in columns]


def _paragraph(entry: Term | Column) -> str:
    """One entry, with what it belongs to and what to read next."""
    if isinstance(entry, Column):
        text = f"{entry.name} (column of {entry.frame}; {entry.holds}): {entry.meaning}"
    else:
        see = f" See {', '.join(entry.see)}." if entry.see else ""
        kind = "" if entry.kind == "word" else f" ({entry.kind})"
        text = f"{entry.name}{kind}: {entry.meaning}{see}"
    return textwrap.fill(text, TEXT_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def listing() -> str:
    """All terms, by kind, and the frames whose columns are explained."""
    parts = ["coordcheck explain TERM says what a word of a report means:"]
    for kind, title in KINDS.items():
        names = ", ".join(term.name for term in TERMS if term.kind == kind)
        parts.append(_listed(title, names))
    parts += [_listed(f"columns of {frame}", ", ".join(c.name for c in columns)) for frame, columns in FRAMES.items()]
    return "\n".join(parts)


def _listed(title: str, names: str) -> str:
    options = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}
    return f"\n{title}\n" + textwrap.fill(names, TEXT_WIDTH, **options)  # type: ignore[arg-type]  # of these types


def names(kinds: Iterable[str] = KINDS) -> set[str]:
    """The names of the terms of some kinds."""
    return {term.name for term in TERMS if term.kind in set(kinds)}
