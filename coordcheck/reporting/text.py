"""The report as text: rich renderables, plain wherever the output is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from coordcheck.analysis.audits import LIMITS
from coordcheck.analysis.findings import Cause
from coordcheck.analysis.measurements import judged
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.escaping import legible, printable
from coordcheck.common.output import plain_text
from coordcheck.reporting.summaries import (
    Headline,
    blames,
    cause_text,
    expected_text,
    growth_text,
    headline,
    measured,
    of_label,
    provisional,
    slope_text,
    worst,
)
from coordcheck.runs.words import Quantity

WORST = 8  # layers shown per label
SYMPTOMS = 5  # layers shown where their causes are shown, too
TO_BLAME = 40  # culprits shown per label, those that differ in a number only as one
NOTES = 8  # notes shown
NOTE_LENGTH = 2000  # characters of one


def plain(report: Result) -> str:
    """The report as it is printed where the output is no terminal."""
    return plain_text(render(report))


def render(report: Result, most_notes: int = NOTES) -> Group:
    """The report on one screen: a verdict line and the worst layers per label, then the notes, at most so many."""
    parts: list[Any] = []
    for label in report.labels:
        line = headline(report, label)
        if label in report.too_few_widths:
            parts.append(Text(f"{legible(label)}: {printable(line.text)}"))
            parts += [scale_table(report, label)] if report.widths_of(label) else []
            continue
        table, parameters = of_label(report, label)
        parts.append(_headline(line))
        culprits = blames(parameters)
        if culprits:
            parts.append(_blame_table(parameters))
            if provisional(parameters):
                parts.append(Text("  learning rates are provisional: check again once the rest is right", style="dim"))
        shown = worst(table)
        if len(shown):
            parts.append(_verdict_table(shown, report.widths_of(label), SYMPTOMS if culprits else WORST))
        open_questions = parameters[parameters["verdict"] == Verdict.UNDECIDED.value]
        if len(open_questions) and not culprits:
            parts.append(_open_table(open_questions))
    words = _words(report)
    if words:
        parts.append(Text(f"what these words mean: coordcheck explain {' '.join(words)}", style="dim"))
    notes = report.notes
    parts += [Text(f"note: {legible(note, NOTE_LENGTH)}") for note in notes[:most_notes]]
    if len(notes) > most_notes:
        parts.append(Text(f"note: and {len(notes) - most_notes} more: report.notes, --notes"))
    if report.findings and any(status.passes for status in report.status.values()):
        parts.append(Text(LIMITS, style="dim"))
    return Group(*parts)


def _words(report: Result) -> list[str]:
    """The words that stand in the tables of culprits and layers, and that a reader need not know."""
    blamed = report.culprits
    if blamed.empty:
        return []
    found = {
        "inherited": report.layers["cause"].astype(str).str.startswith("inherited").any(),
        "provisional": provisional(blamed),
        "multiplier": (blamed["cause"] == Cause.MULTIPLIER.value).any(),
        "attention-scale": (blamed["cause"] == Cause.ATTENTION_SCALE.value).any(),
        "forward-scale": (blamed["cause"] == Cause.FORWARD_SCALE.value).any(),
        "gradient-fan-in": (blamed["cause"] == Cause.GRADIENT_FAN_IN.value).any(),
        "eps": (blamed["cause"] == Cause.EPS.value).any(),
        "@": blamed["layer"].str.contains("@", regex=False).any(),
    }
    return [word for word, there in found.items() if there]


def _headline(line: Headline) -> Text:
    colour = "red" if line.failed else "green" if line.verdict.passes else "yellow"
    return Text.assemble(
        (f"{legible(line.label)}: ", "bold"), (line.word, f"bold {colour}"), f"  {printable(line.text)}"
    )


def _blame_table(parameters: pd.DataFrame) -> Group:
    """What to change, with m = width / base_width; parameters that differ in a number only are one row."""
    found = blames(parameters)
    rows = [
        Row(_counted(blame.name, len(blame.parameters)), (Text(blame.verdict, style="red"), Text(blame.change)))
        for blame in found[:TO_BLAME]
    ]
    heads = [Head("verdict"), Head("change, m = width/base")]
    return _with_rest(NamedRows("to blame", heads, rows), len(found) - TO_BLAME, "culprits")


def _counted(name: str, count: int) -> str:
    return name if count == 1 else f"{name} ({count})"


def _open_table(found: pd.DataFrame) -> Group:
    """Parameters of which the exponents do not decide."""
    shown: list[Any] = list(found.head(WORST).itertuples())
    rows = [Row(row.layer, (Text(legible(row.explanation, NOTE_LENGTH)),)) for row in shown]
    heads = [Head("measured, m = width/base", wraps=True)]
    return _with_rest(NamedRows("undecided", heads, rows), len(found) - WORST, "verdicts")


def _verdict_table(found: pd.DataFrame, widths: Sequence[int], most: int) -> Group:
    shown: list[Any] = list(found.head(most).itertuples())
    expected, caused = any(map(expected_text, shown)), found["cause"].notna().any()
    heads = [Head("verdict"), Head("measured", wraps=True), Head("slope", right=True)]
    heads += [Head("expected", right=True)] if expected else []
    heads += [Head(f"{widths[0]} → {widths[-1]}", right=True)] + ([Head("cause")] if caused else [])
    rows = []
    for row in shown:
        word = Text(row.verdict, style="red" if Verdict(row.verdict).violated else "yellow")
        cells = [word, Text(printable(measured(row))), Text(slope_text(row))]
        cells += [Text(expected_text(row))] if expected else []
        cells += [Text(growth_text(row))] + ([Text(cause_text(row))] if caused else [])
        rows.append(Row(row.layer, tuple(cells)))
    return _with_rest(NamedRows("layer", heads, rows), len(found) - most, "verdicts")


class Head(NamedTuple):
    """The head of a column."""

    text: str
    right: bool = False
    wraps: bool = False


class Row(NamedTuple):
    """A name, and its cells."""

    name: str
    cells: tuple[Text, ...]


class NamedRows:
    """A table whose names are never broken, so that they can be searched for and copied.

    Where they leave too little room for the columns, each stands on a line of its own, above its cells.
    """

    def __init__(self, title: str, heads: Sequence[Head], rows: Sequence[Row]) -> None:
        self.title, self.heads = title, heads
        self.rows = [row._replace(name=legible(row.name)) for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's own hook: the widest layout that fits."""
        if self._least_width() <= options.max_width:
            yield self._table()
            return
        yield Text(f"  {self.title}: {', '.join(head.text for head in self.heads)}", style="dim")
        for row in self.rows:
            yield Text(f"  {row.name}", overflow="fold")
            cells = Text("  ").join(cell for cell in row.cells if cell.plain)
            yield Padding(cells, (0, 0, 0, 4))

    def _least_width(self) -> int:
        """Of the table, in columns of the terminal: names and numbers on one line, sentences by their longest word."""
        columns = [[f"  {self.title}", *(f"  {row.name}" for row in self.rows)]]
        for place, head in enumerate(self.heads):
            texts = [head.text, *(row.cells[place].plain for row in self.rows)]
            columns.append([word for text in texts for word in text.split()] if head.wraps else texts)
        return sum(max(map(cell_len, texts)) for texts in columns) + 2 * len(self.heads)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        table.add_column(f"  {self.title}", no_wrap=True)
        for head in self.heads:
            table.add_column(head.text, justify="right" if head.right else "left", no_wrap=not head.wraps)
        for row in self.rows:
            table.add_row(Text(f"  {row.name}"), *row.cells)
        return table


def _with_rest(table: NamedRows, count: int, where: str) -> Group:
    """A table, and under it how many rows it leaves out, and where they are: in Python, and on the command line."""
    rest = [Text(f"  and {count} more: report.{where}, --html page.html", style="dim")] if count > 0 else []
    return Group(table, *rest)


def scale_table(report: Result, label: str) -> Table:
    """The scales themselves: what is shown when there are too few widths for a verdict."""
    rows = judged(report.measurements)
    rows = rows[(rows["label"] == label) & (rows["quantity"] == Quantity.ACTIVATION.value)]
    means = rows.groupby(["layer", "order", "width", "step"], sort=False)["value"].mean().unstack("step")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("  layer", overflow="fold")
    for name in (report.criteria.axis, *(f"t={step}" for step in means.columns)):
        table.add_column(Text(legible(name)), justify="right")
    for (layer, _, width), values in means.sort_index(level=["order", "width"]).iterrows():
        table.add_row(Text(f"  {legible(layer)}"), Text(str(width)), *(Text(f"{value:.3g}") for value in values))
    return table
