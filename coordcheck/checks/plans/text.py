"""The plan as text: rich renderables, plain wherever the output is no terminal."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordcheck.checks.plans.blueprints import Place
from coordcheck.checks.plans.obstacles import Level
from coordcheck.checks.plans.tables import PlanTables
from coordcheck.checks.plans.timings import Timing
from coordcheck.common.escaping import printable
from coordcheck.common.output import plain_text
from coordcheck.training.progress import duration

GROUPS = 24  # rows of parameters shown per label; those that differ in a number of their name only are one row
NOTES = 8  # notes shown per label; nothing worse is left out

WORDS = {Level.STOPS: ("CANNOT BE CHECKED", "red"), Level.MISSING: ("WIDTHS MISSING", "yellow")}
COLOURS = {Level.STOPS: "red", Level.MISSING: "yellow", Level.PROBLEM: "yellow", Level.NOTE: "default"}


def plain(plan: PlanTables) -> str:
    """The plan as it is printed where the output is no terminal."""
    return plain_text(render(plan))


def render(plan: PlanTables) -> Group:
    """Per label: what is built, its parameters, what stands in the way; then what the check costs."""
    parts: list[Any] = []
    for label in plan.labels:
        parts += [_headline(plan, label), _build_table(plan, label)]
        if (plan.parameters["label"] == label).any():
            parts.append(_parameter_table(plan, label))
        parts += _obstacle_lines(plan, label)
    if len(plan.parameters):
        parts.append(Text(_legend(plan), style="dim"))
    return Group(*parts, *(Text(printable(line), style="dim") for line in cost_lines(plan)))


def _headline(plan: PlanTables, label: str) -> Text:
    levels = {obstacle.level for obstacle in plan.obstacles if obstacle.label == label}
    word, colour = next((WORDS[level] for level in WORDS if level in levels), ("CAN BE CHECKED", "green"))
    rows = plan.parameters[plan.parameters["label"] == label]
    optimizer = next((blueprint.optimizer for blueprint in plan.of_label(label) if blueprint.place.built), "")
    where = f"{plan.axis} {plan.widths[0]} to {plan.widths[-1]}"
    decays = set(rows["weight_decay_text"]) - {"none", "0"}
    if len(rows):
        decay = f", weight decay {decays.pop()}" if not _decays_differ(rows) and decays else ""
        where = f"{where}; {len(rows)} parameter tensors, {optimizer}{decay}"
    return Text.assemble((f"{label}: ", "bold"), (word, f"bold {colour}"), printable(f"  {where}"))


def _build_table(plan: PlanTables, label: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column(Text(f"  {printable(plan.axis)}"), justify="right")
    for name in ("parameters", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    if plan.timings:
        table.add_column("a run takes", justify="right", no_wrap=True)
    table.add_column("built", no_wrap=True)
    for one in plan.of_label(label):
        seconds = [_seconds(plan.seconds(label, one.width))] if plan.timings else []
        size = [f"{one.size:,}", _memory(one.bytes)] if one.place.built else ["", ""]
        took = f", {one.seconds:.2g} s" if one.place is Place.REAL else ""
        table.add_row(
            f"  {one.width}", *size, *seconds, Text(one.place.value + took, style="" if one.place.built else "yellow")
        )
    return table


def _parameter_table(plan: PlanTables, label: str) -> Table:
    """Parameters with their settings; those that differ in a number of their name only are one row."""
    rows = plan.parameters[plan.parameters["label"] == label]
    decays = _decays_differ(rows)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("  parameter", overflow="fold", min_width=7)
    for name in ("role", "shape", "learning rate", *(["weight decay"] if decays else [])):
        table.add_column(name, no_wrap=True)
    settings = [_rate(row) for row in rows.to_dict("records")]
    alike = rows.assign(rate=settings, role=rows["role"].fillna("unclear" if plan.axis == "width" else ""))
    groups = list(alike.groupby(["pattern", "role", "shape", "rate", "weight_decay_text"], sort=False))
    for (name, role, shape, rate, decay), found in groups[:GROUPS]:
        shown = found["parameter"].iloc[0] if len(found) == 1 else f"{name} ({len(found)})"
        cells = [f"  {printable(shown)}", role, shape, rate, *([decay] if decays else [])]
        table.add_row(*(Text(cell, style="yellow" if cell == "unclear" else "") for cell in cells))
    if len(groups) > GROUPS:
        table.add_row(Text(f"  and {len(groups) - GROUPS} more kinds (plan.parameters)", style="dim"))
    return table


def _decays_differ(rows: pd.DataFrame) -> bool:
    return len(set(rows.loc[rows["held"] & rows["trainable"], "weight_decay_text"])) > 1


def _legend(plan: PlanTables) -> str:
    axis = printable(plan.axis)
    roles = "; roles by shapes and kinds of modules: a check sees how parameters are used" if axis == "width" else ""
    return f"n = {axis}, m = {axis}/{plan.base_width}{roles}"


def _rate(row: pd.Series | dict[Any, Any]) -> str:
    if not row["trainable"]:
        return "frozen"
    return str(row["learning_rate_text"]) if row["held"] else "no optimizer"


def _obstacle_lines(plan: PlanTables, label: str) -> list[Text]:
    own = [obstacle for obstacle in plan.obstacles if obstacle.label == label]
    notes = [obstacle for obstacle in own if obstacle.level is Level.NOTE]
    shown = [obstacle for obstacle in own if obstacle.level is not Level.NOTE] + notes[:NOTES]
    lines = [Text(printable(f"{o.level.value}: {o.text}"), style=COLOURS[o.level]) for o in shown]
    if len(notes) > NOTES:
        lines.append(Text(f"note: and {len(notes) - NOTES} more (plan.problems)"))
    return lines


def cost_lines(plan: PlanTables) -> list[str]:
    """What the check would do: runs, passes, parameters and memory, and how long it takes where that was measured."""
    cost = plan.cost
    grid = " × ".join(
        f"{count} {name}" + ("s" if count != 1 else "")
        for count, name in ((len(plan.labels), "label"), (len(plan.widths), plan.axis), (len(plan.seeds), "seed"))
    )
    lines = [f"cost: {cost.runs} runs ({grid}), {cost.forwards} forward passes, {cost.updates} updates"]
    if cost.diagnosed:
        lines[0] += f"; {cost.diagnosed} runs are also diagnosed (built again, an update or two on a few examples)"
    if cost.parameters:
        all_built = all(blueprint.place.built for blueprint in plan.blueprints)
        runs = "all runs" if all_built else "the runs whose model could be built"
        size = f"size: {_large(cost.parameters)} parameters trained in {runs}"
        if not math.isnan(cost.widest_ratio):
            size += f", {cost.widest_share:.0%} of them at {plan.axis} {cost.widest}"
            size += f" (a model of {cost.widest_ratio:.3g} times the smallest)"
        state = " and optimizer state" if cost.state_known else ""
        rest = "activations" if cost.state_known else "the optimizer's state and activations"
        memory = f"{_memory(cost.training_bytes)} for the parameters, gradients{state} of the largest model"
        lines.append(f"{size}; {memory}; {rest} come on top")
    return lines + _time_lines(plan)


def _time_lines(plan: PlanTables) -> list[str]:
    """How long all runs take, one after the other."""
    lines = [f"not timed: {one.label}: {one.reason}" for one in plan.untimed]
    if plan.timings:
        whole = sum(one.seconds for one in plan.timings) * len(plan.seeds)
        measured = ", ".join(str(width) for width in dict.fromkeys(t.width for t in plan.timings if t.measured))
        told = f"time: about {duration(whole)} for all runs, one after the other as here"
        lines.append(f"{told}; measured at {plan.axis} {measured}, the others by their parameters (~)")
    return lines


def _seconds(timing: Timing | None) -> str:
    """How long a run takes; `~` where it was not run.

    >>> _seconds(Timing("SP", 64, 0.1234, True)), _seconds(Timing("SP", 512, 75.0, False))
    ('0.12 s', '~ 1 min 15 s')
    """
    if timing is None:
        return ""
    told = f"{timing.seconds:.2g} s" if timing.seconds < 10 else duration(timing.seconds)
    return told if timing.measured else f"~ {told}"


def _memory(size: float) -> str:
    """A number of bytes.

    >>> _memory(105_400_000), _memory(512)
    ('105 MB', '512 bytes')
    """
    for unit, word in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {word}"
    return f"{size:.0f} bytes"


def _large(count: int) -> str:
    """A count in words of thousands.

    >>> _large(1_234_567), _large(950)
    ('1.23 million', '950')
    """
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"
