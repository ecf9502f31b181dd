"""Print how `coordcheck.check` judges the architectures: `python -m sweep [names] [--jobs 2]` from `tests/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from loky import get_reusable_executor
from rich.console import Console
from rich.table import Table

from sweep.catalogue import ARCHITECTURES
from sweep.judging import Row, judged

COUNTS: dict[str, Callable[[Row], bool]] = {
    "healthy and not violated": lambda row: row.clean,
    "broken and found": lambda row: row.found,
    "exactly": lambda row: row.exact,
    "not passed": lambda row: row.honest,
}


def rows(names: Sequence[str], jobs: int, draw: int) -> Iterable[Row]:
    """Every architecture's row, in the order of the names."""
    if jobs == 1:
        yield from map(partial(judged, draw=draw), names)
    else:
        with get_reusable_executor(max_workers=jobs) as pool:
            yield from pool.map(partial(judged, draw=draw), names)


def written(found: Sequence[Row]) -> Table:
    """The table."""
    table = Table("architecture", "healthy", "exit", "planted fault", "found", "exact", "exit", "seconds")
    for row in found:
        seconds = f"{row.healthy.seconds:.1f} {row.broken.seconds:.1f}"
        healthy = row.healthy.status if row.clean else f"{row.healthy.status}: {', '.join(row.healthy.violated[:3])}"
        answer = "; ".join(f"{name} {sorted(powers)}" for name, powers in row.broken.answer.items())
        table.add_row(
            row.name,
            healthy,
            str(row.healthy.exit_code),
            str(row.fault) if row.exact else f"{row.fault}\n  told (init, lr): {answer or 'nothing'}",
            "yes" if row.found else "NO",
            "yes" if row.exact else "NO",
            str(row.broken.exit_code),
            seconds,
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="architectures; all of them without")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--draw", type=int, default=0, help="another fault for each")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"no architecture {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    found = list(rows(arguments.names or list(ARCHITECTURES), arguments.jobs, arguments.draw))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(written(found))
    console.print(", ".join(f"{name}: {sum(map(good, found))} / {len(found)}" for name, good in COUNTS.items()))


if __name__ == "__main__":
    main()
