"""Mend the matrix and print what became of it: `python -m fixmatrix [names] [--widths 64 128 256]` from `tests/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

if not __package__:  # run as a folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from fixmatrix.catalogue import ENTRIES
from fixmatrix.entries import WIDTHS
from fixmatrix.judging import Row, judged


def written(rows: Sequence[Row], longest: int) -> Table:
    """The table."""
    table = Table("model, optimizer", "before", "to blame", "rounds", "after: new seeds and data", "seconds", "note")
    for row in rows:
        note = row.note if len(row.note) <= longest else f"{row.note[:longest]}..."
        table.add_row(row.name, row.before, str(row.blamed), str(row.rounds), row.after, f"{row.seconds:.0f}", note)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="fixmatrix", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="globs of entries, such as 'gpt2*, adam'")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--note", type=int, default=120, help="characters of a note (default: %(default)s)")
    arguments = parser.parse_args()
    names = [name for name in ENTRIES if any(fnmatchcase(name, glob) for glob in arguments.names or ["*"])]
    if not names:
        parser.error(f"no such entry; there are {'; '.join(ENTRIES)}")
    rows = []
    for name in names:
        rows.append(judged(ENTRIES[name], arguments.widths))
        print(f"{name}: {rows[-1].before} -> {rows[-1].after}", file=sys.stderr, flush=True)
    Console(width=None if sys.stdout.isatty() else 200).print(written(rows, arguments.note))
    broken = [row for row in rows if row.violated]
    print(f"violated before: {len(broken)} / {len(rows)}; ok after at most 2 rounds: {sum(r.mended for r in broken)}")


if __name__ == "__main__":
    main()
