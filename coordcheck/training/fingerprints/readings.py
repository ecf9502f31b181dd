"""What was read of a function, as the settings of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from coordcheck.runs.records import NOT_COMPARED

MAX_READS = 100  # values, files and variables that are listed one by one


SHORT = 12  # hexadecimal digits of a hash in a description


@dataclass
class Reading:
    """A function and all that it reads."""

    text: str
    """The function in one line; it changes when its source, a value bound to it, or code that it reaches does."""
    reads: dict[str, str] = field(default_factory=dict)
    """Full name -> the value, or its hash: globals, class attributes, files, environment variables, packages."""
    unread: dict[str, str] = field(default_factory=dict)
    """Name -> why its value could not be compared."""

    def settings(self, name: str) -> dict[str, str]:
        """The reading as settings of a run."""
        shown = dict(sorted(self.reads.items())[:MAX_READS])
        more = sorted(self.reads.items())[MAX_READS:]
        rest = {f"reads {len(more)} more": short_hash(repr(more).encode())} if more else {}
        return (
            {name: self.text}
            | {f"reads {key}": value for key, value in shown.items()}
            | rest
            | {NOT_COMPARED + key: why for key, why in sorted(self.unread.items())[:MAX_READS]}
        )


def short_hash(*pieces: bytes) -> str:
    """A hash as it is shown in a description."""
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(piece)
    return whole.hexdigest()[:SHORT]
