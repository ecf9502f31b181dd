"""The report as text: rich renderables, plain wherever the output is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordcheck.audits import LIMITS
from coordcheck.measurements import judged
from coordcheck.records import Quantity, printable
from coordcheck.summaries import (
    Headline,
    blames,
    cause_text,
    growth_text,
    headline,
    measured,
    of_label,
    provisional,
    slope_text,
    worst,
)
from coordcheck.verdicts import Verdict

if TYPE_CHECKING:
    from coordcheck.report import Report

WORST = 8  # layers shown per label
SYMPTOMS = 5  # layers shown where their causes are shown, too
TO_BLAME = 40  # culprits shown per label, those that differ in a number only as one
NOTES = 8  # notes shown


def render(report: Report, most_notes: int = NOTES) -> Group:
    """The report on one screen: a verdict line and the worst layers per label, then the notes, at most so many."""
    parts: list[Any] = []
    for label in report.labels:
        line = headline(report, label)
        if label in report.too_few_widths:
            parts.append(Text(printable(f"{label}: {line.text}")))
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
    notes = report.notes
    parts += [Text(printable(f"note: {note}")) for note in notes[:most_notes]]
    if len(notes) > most_notes:
        parts.append(Text(f"note: and {len(notes) - most_notes} more: report.notes, --notes"))
    if report.findings and any(status is Verdict.OK for status in report.status.values()):
        parts.append(Text(LIMITS, style="dim"))
    return Group(*parts)


def _headline(line: Headline) -> Text:
    colour = "red" if line.failed else "green" if line.verdict is Verdict.OK else "yellow"
    return Text.assemble(
        (f"{printable(line.label)}: ", "bold"), (line.word, f"bold {colour}"), f"  {printable(line.text)}"
    )


def _blame_table(parameters: pd.DataFrame) -> Group:
    """What to change, with m = width / base_width; parameters that differ in a number only are one row."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("  to blame", overflow="fold", min_width=7)
    table.add_column("verdict", no_wrap=True)
    table.add_column("change, m = width/base", no_wrap=True)
    found = blames(parameters)
    for blame in found[:TO_BLAME]:
        count = len(blame.parameters)
        name = blame.name if count == 1 else f"{blame.name} ({count})"
        table.add_row(Text(f"  {printable(name)}"), Text(blame.verdict, style="red"), Text(blame.change))
    return _with_rest(table, len(found) - TO_BLAME, "culprits")


def _open_table(rows: pd.DataFrame) -> Group:
    """Parameters of which the exponents do not decide."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("  undecided", overflow="fold", min_width=7)
    table.add_column("measured")
    for row in rows.head(WORST).itertuples():
        values: Any = row
        table.add_row(Text(f"  {printable(values.layer)}"), Text(values.explanation))
    return _with_rest(table, len(rows) - WORST, "verdicts")


def _verdict_table(shown: pd.DataFrame, widths: Sequence[int], most: int) -> Group:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("  layer", overflow="fold", min_width=7)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured")
    table.add_column("slope", justify="right", no_wrap=True)
    table.add_column(f"{widths[0]} → {widths[-1]}", justify="right", no_wrap=True)
    caused = shown["cause"].notna().any()
    if caused:
        table.add_column("cause")
    for row in shown.head(most).itertuples():
        values: Any = row
        table.add_row(
            Text(f"  {printable(values.layer)}"),
            Text(values.verdict, style="red" if Verdict(values.verdict).violated else "yellow"),
            Text(measured(values)),
            Text(slope_text(values)),
            Text(growth_text(values)),
            *([Text(cause_text(values))] if caused else []),
        )
    return _with_rest(table, len(shown) - most, "verdicts")


def _with_rest(table: Table, count: int, where: str) -> Group:
    """A table, and under it how many rows it leaves out."""
    rest = [Text(f"  and {count} more: report.{where}, --html or --format json", style="dim")] if count > 0 else []
    return Group(table, *rest)


def scale_table(report: Report, label: str) -> Table:
    """The scales themselves: what is shown when there are too few widths for a verdict."""
    rows = judged(report.measurements)
    rows = rows[(rows["label"] == label) & (rows["quantity"] == Quantity.ACTIVATION.value)]
    means = rows.groupby(["layer", "order", "width", "step"], sort=False)["value"].mean().unstack("step")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("  layer", overflow="fold")
    for name in (report.criteria.axis, *(f"t={step}" for step in means.columns)):
        table.add_column(name, justify="right")
    for (layer, _, width), values in means.sort_index(level=["order", "width"]).iterrows():
        table.add_row(Text(f"  {printable(layer)}"), Text(str(width)), *(Text(f"{value:.3g}") for value in values))
    return table
