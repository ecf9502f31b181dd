"""The report as text: rich renderables, plain wherever the output is no terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordcheck.measurements import judged
from coordcheck.records import Quantity, printable
from coordcheck.verdicts import Verdict, summary

if TYPE_CHECKING:
    from coordcheck.report import Report

WORST = 8  # layers shown per label
NOTES = 8  # notes shown


def render(report: Report) -> Group:
    """The report on one screen: a verdict line and the worst layers per label, then the notes."""
    parts: list[Any] = []
    for label in report.labels:
        if label in report.too_few_widths:
            parts.append(Text(printable(f"{label}: {report.too_few_widths[label]}")))
            parts += [scale_table(report, label)] if report.widths_of(label) else []
            continue
        table = report.verdicts[report.verdicts["label"] == label]
        parts.append(_headline(label, table, report))
        shown = _worst(table)
        if len(shown):
            parts.append(_verdict_table(shown, report.widths_of(label)))
    notes = report.notes
    parts += [Text(printable(f"note: {note}")) for note in notes[:NOTES]]
    if len(notes) > NOTES:
        parts.append(Text(f"note: and {len(notes) - NOTES} more (report.notes)"))
    return Group(*parts)


def _headline(label: str, table: pd.DataFrame, report: Report) -> Text:
    status, widths = report.status[label], report.widths_of(label)
    words = [Verdict(word) for word in table["verdict"]]
    text = Text.assemble((f"{printable(label)}: ", "bold"))
    if status.violated:
        text.append("VIOLATED", "bold red")
    else:
        text.append(status.value.upper(), "bold green" if status is Verdict.OK else "bold yellow")
    text.append(f"  {summary(words)} from {report.criteria.axis} {widths[0]} to {widths[-1]}")
    if status.violated:
        first = next(layer for layer, word in zip(table["layer"], words, strict=True) if word.violated)
        text.append(f"; first {printable(first)}")
    elif (table.loc[table["verdict"] == Verdict.UNDECIDED.value, "step"] >= 0).any():
        text.append("; add seeds, or a wider range of widths")
    return text


def _worst(table: pd.DataFrame) -> pd.DataFrame:
    """The violated layers and then the undecided ones, farthest from their expected exponent first."""
    words = table["verdict"].map(Verdict)
    shown = table[words.map(lambda verdict: verdict.violated or verdict is Verdict.UNDECIDED)]
    if shown.empty:
        return shown
    distance = (shown["slope"] - shown["expected"]).abs().fillna(math.inf)
    undecided = shown["verdict"] == Verdict.UNDECIDED.value
    order = pd.DataFrame({"undecided": undecided, "nearness": -distance}).sort_values(
        ["undecided", "nearness"], kind="stable"
    )
    return shown.loc[order.index]


def _verdict_table(shown: pd.DataFrame, widths: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("  layer", overflow="fold", min_width=7)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured")
    table.add_column("slope", justify="right", no_wrap=True)
    table.add_column(f"{widths[0]} → {widths[-1]}", justify="right", no_wrap=True)
    for row in shown.head(WORST).itertuples():
        values: Any = row
        table.add_row(
            Text(f"  {printable(values.layer)}"),
            Text(values.verdict, style="red" if Verdict(values.verdict).violated else "yellow"),
            Text(f"{values.quantity} at t={values.step}" if values.step >= 0 else values.explanation),
            Text("" if math.isnan(values.slope) else f"{values.slope:+.2f} ± {(values.high - values.low) / 2:.2f}"),
            Text("" if math.isnan(values.growth) else f"×{values.growth:.3g}"),
        )
    if len(shown) > WORST:
        table.add_row(Text(f"  and {len(shown) - WORST} more (report.verdicts)", style="dim"))
    return table


def scale_table(report: Report, label: str) -> Table:
    """The scales themselves: what is shown when there are too few widths for a verdict."""
    rows = judged(report.measurements)
    rows = rows[(rows["label"] == label) & (rows["quantity"] == Quantity.ACTIVATION.value)]
    means = rows.groupby(["layer", "order", "width", "step"], sort=False)["value"].mean().unstack("step")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("  layer", overflow="fold")
    for name in (report.criteria.axis, *(f"t={step}" for step in means.columns)):
        table.add_column(name, justify="right")
    for (layer, _, width), values in means.sort_index(level=["order", "width"]).iterrows():
        table.add_row(Text(f"  {printable(layer)}"), Text(str(width)), *(Text(f"{value:.3g}") for value in values))
    return table
