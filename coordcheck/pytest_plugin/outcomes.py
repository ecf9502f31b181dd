"""What a check leaves behind in a test: properties for the summary and for JUnit files, a message, and files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from coordcheck.reporting.report import Report

SHOWN = 3  # of the worst layers of a check, in the summary
NAMED = 10  # culprits named in a property
FIELD = 60  # characters of a name in a property

Property = tuple[str, "str | float | int"]


def properties(report: Report) -> Iterator[Property]:
    """A check in a few plain values; `layers` is text for the terminal, a line per layer."""
    from coordcheck.common.escaping import printable
    from coordcheck.reporting.summaries import blames, status

    yield "status", status(report)
    worst = _worst(report)
    if worst:
        first = next((row for row in worst if row.slope == row.slope), worst[0])
        yield "worst_layer", _name(first, report)
        if first.slope == first.slope:
            yield "worst_slope", round(float(first.slope), 3) + 0.0
        yield "layers", "\n".join(_lines(worst[:SHOWN], report))
    culprits = [printable(blame.name) for blame in blames(report.parameters)]
    if culprits:
        more = f" and {len(culprits) - NAMED} more" if len(culprits) > NAMED else ""
        yield "culprits", ", ".join(name[:FIELD] for name in culprits[:NAMED]) + more


def _worst(report: Report) -> list[Any]:
    """The violated layers of all labels, then the undecided ones; else the one farthest from its exponent."""
    from coordcheck.reporting.summaries import of_label, worst

    failing = sorted(report.labels, key=lambda label: not report.status[label].violated)
    rows = [row for label in failing for row in worst(of_label(report, label)[0]).itertuples()]
    if rows:
        return rows
    layers = report.layers[report.layers["slope"].notna()]
    distance = (layers["slope"] - layers["expected"]).abs()
    return list(layers.loc[distance.sort_values(ascending=False, kind="stable").index[:1]].itertuples())


def _name(row: Any, report: Report) -> str:
    """A layer's name, with its label where there are several."""
    from coordcheck.common.escaping import printable

    name = f"{row.label}: {row.layer}" if len(report.labels) > 1 else row.layer
    shown = printable(name)
    return shown if len(shown) <= FIELD else f"{shown[: FIELD - 1]}…"


def _lines(rows: Sequence[Any], report: Report) -> list[str]:
    from coordcheck.common.escaping import legible
    from coordcheck.reporting.summaries import measured, slope_text

    cells = [(_name(row, report), row.verdict, slope_text(row), legible(measured(row))) for row in rows]
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, sizes)).rstrip() for line in cells]


class Files(NamedTuple):
    """What was written of a check, and what could not be."""

    folder: Path
    names: tuple[str, ...]
    problem: str = ""

    def text(self, start: Path) -> str:
        """Where the files are, as told in a message."""
        from coordcheck.common.escaping import printable

        folder = self.folder.relative_to(start) if self.folder.is_relative_to(start) else self.folder
        parts = [f"{printable(folder.as_posix())}/{{{','.join(self.names)}}}"] if self.names else []
        return "; ".join(parts + ([self.problem] if self.problem else []))


def write_files(report: Report, folder: Path) -> Files:
    """Figures, page and JSON of a check in a folder of its own. Never raises: the check has something else to say."""
    from coordcheck.common.escaping import printable
    from coordcheck.common.redaction import redacted
    from coordcheck.runs.files import replace_file

    kinds = ["divergence", *(["exponents"] if report.findings else [])]
    writers: dict[str, Any] = {f"{kind}.png": lambda path, kind=kind: report.figure(kind, path=path) for kind in kinds}
    writers["report.html"] = report.save_html
    writers["report.json"] = lambda path: replace_file(path, report.to_json().encode())
    written, problem = [], ""
    for name, write in writers.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / name)
            written.append(name)
        except Exception as error:  # of drawing, of the disk: told beside the check's own message
            why = printable(redacted((str(error) or type(error).__name__).splitlines()[0]))
            problem = problem or f"{name} could not be written: {why}"
    return Files(folder, tuple(written), problem)


def folder_name(nodeid: str) -> str:
    r"""The folder of a test: ASCII, short, and another one for every test.

    >>> folder_name("tests/test_gpt.py::TestSmall::test_µP[8/16]")
    'TestSmall-test_-P-8-16-0b72ad97cd'
    """
    words = re.sub(r"[^A-Za-z0-9_]+", "-", nodeid.partition("::")[2]).strip("-")[:40].strip("-") or "test"
    return f"{words}-{hashlib.sha256(nodeid.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"
