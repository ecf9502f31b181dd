"""The report as text: rich renderables, plain wherever the output is no terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordcheck.audits import LIMITS
from coordcheck.diagnosis import Cause
from coordcheck.measurements import judged
from coordcheck.records import Quantity, pattern, printable
from coordcheck.verdicts import Verdict, summary

if TYPE_CHECKING:
    from coordcheck.report import Report

WORST = 8  # layers shown per label
SYMPTOMS = 5  # layers shown where their causes are shown, too
TO_BLAME = 10  # culprits shown per label, those that differ in a number only as one
NOTES = 8  # notes shown


def render(report: Report) -> Group:
    """The report on one screen: a verdict line and the worst layers per label, then the notes."""
    parts: list[Any] = []
    for label in report.labels:
        if label in report.too_few_widths:
            parts.append(Text(printable(f"{label}: {report.too_few_widths[label]}")))
            parts += [scale_table(report, label)] if report.widths_of(label) else []
            continue
        own = report.verdicts[report.verdicts["label"] == label]
        table, parameters = own[own["role"].isna()], own[own["role"].notna()]
        parts.append(_headline(label, table, parameters, report))
        if parameters["culprit"].any():
            culprits = parameters[parameters["culprit"].astype(bool)]
            parts.append(_blame_table(culprits))
            if culprits["remedy"].str.contains("provisional", regex=False).any():
                parts.append(Text("  learning rates are provisional: check again once the rest is right", style="dim"))
        shown = _worst(table)
        if len(shown):
            most = SYMPTOMS if parameters["culprit"].any() else WORST
            parts.append(_verdict_table(shown, report.widths_of(label), most))
        open_questions = parameters[parameters["verdict"] == Verdict.UNDECIDED.value]
        if len(open_questions) and not parameters["culprit"].any():
            parts.append(_open_table(open_questions))
    notes = report.notes
    parts += [Text(printable(f"note: {note}")) for note in notes[:NOTES]]
    if len(notes) > NOTES:
        parts.append(Text(f"note: and {len(notes) - NOTES} more (report.notes)"))
    if report.findings and any(status is Verdict.OK for status in report.status.values()):
        parts.append(Text(LIMITS, style="dim"))
    return Group(*parts)


def _headline(label: str, table: pd.DataFrame, parameters: pd.DataFrame, report: Report) -> Text:
    status, widths = report.status[label], report.widths_of(label)
    words = [Verdict(word) for word in table["verdict"]]
    blamed = int(parameters["culprit"].sum())
    text = Text.assemble((f"{printable(label)}: ", "bold"))
    if status.violated or blamed:
        text.append("VIOLATED", "bold red")
    else:
        text.append(status.value.upper(), "bold green" if status is Verdict.OK else "bold yellow")
    if words:
        text.append(f"  {summary(words)} from {report.criteria.axis} {widths[0]} to {widths[-1]}")
    if len(parameters):
        text.append(f"{'; ' if words else '  '}{blamed or 'none'} of {len(parameters)} parameters to blame")
        name = report.parametrizations.get(label)
        text.append(f" (exponents of {name})" if name else "")
    if status.violated and not blamed:
        first = next((layer for layer, word in zip(table["layer"], words, strict=True) if word.violated), "")
        text.append(f"; first {printable(first)}")
    elif not blamed and (table.loc[table["verdict"] == Verdict.UNDECIDED.value, "step"] >= 0).any():
        text.append("; add seeds, or a wider range of widths")
    return text


def _blame_table(culprits: pd.DataFrame) -> Table:
    """What to change, with m = width / base_width; parameters that differ in a number only are one row."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("  to blame", overflow="fold", min_width=7)
    table.add_column("verdict", no_wrap=True)
    table.add_column("change, m = width/base", no_wrap=True)
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in culprits.itertuples():
        values: Any = row
        key = pattern(values.layer), values.verdict, change(values)
        alike.setdefault(key, []).append(values.layer)
    for (alike_name, verdict, what), names in list(alike.items())[:TO_BLAME]:
        name = names[0] if len(names) == 1 else f"{alike_name} ({len(names)})"
        table.add_row(Text(f"  {printable(name)}"), Text(verdict, style="red"), Text(what))
    if len(alike) > TO_BLAME:
        table.add_row(Text(f"  and {len(alike) - TO_BLAME} more (report.culprits)", style="dim"))
    return table


def change(row: Any) -> str:
    """A culprit's remedy in short, in powers of m = width / base width."""
    if row.cause == Cause.FROZEN.value:
        return "give it to the optimizer, with a learning rate"
    what = {Cause.ATTENTION_SCALE.value: "attention scale", Cause.FORWARD_SCALE.value: "output"}
    named = ("init", row.init_exponent), (what.get(row.cause, "multiplier"), row.multiplier_exponent)
    steps = [f"{name} × m^{exponent:g}" for name, exponent in (*named, ("lr", row.lr_exponent)) if exponent]
    return ", ".join(steps)


def _open_table(rows: pd.DataFrame) -> Table:
    """Parameters of which the exponents do not decide."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("  undecided", overflow="fold", min_width=7)
    table.add_column("measured")
    for row in rows.head(WORST).itertuples():
        values: Any = row
        table.add_row(Text(f"  {printable(values.layer)}"), Text(values.explanation))
    if len(rows) > WORST:
        table.add_row(Text(f"  and {len(rows) - WORST} more (report.verdicts)", style="dim"))
    return table


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


def _verdict_table(shown: pd.DataFrame, widths: Sequence[int], most: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
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
            Text(f"{values.quantity} at t={values.step}" if values.step >= 0 else values.explanation),
            Text("" if math.isnan(values.slope) else f"{values.slope:+.2f} ± {(values.high - values.low) / 2:.2f}"),
            Text("" if math.isnan(values.growth) else f"×{values.growth:.3g}"),
            *([Text(values.cause.partition(":")[0] if isinstance(values.cause, str) else "")] if caused else []),
        )
    if len(shown) > most:
        table.add_row(Text(f"  and {len(shown) - most} more (report.verdicts)", style="dim"))
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
