"""What the page's table holds: every layer and every parameter as a short list of JSON values.

Thousands of layers must stay a page of a few megabytes: numbers are rounded to what a reader sees, and words that
repeat are told by their position in a list.
"""

from __future__ import annotations

import math
from itertools import chain, product
from typing import Any

from coordcheck.analysis.designs import decisive, spread
from coordcheck.analysis.measurements import judged
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.escaping import printable
from coordcheck.reporting.summaries import cause_text, change, evidence, remedy_text
from coordcheck.runs.words import Quantity, Role, Status

CURVES = {Quantity.ACTIVATION: "RMS of the output h_t", Quantity.CHANGE: "RMS of the change h_t − h_0"}
"""The scales that are shown per layer, with their titles."""
MOST_STEPS = 12  # of a layer's table
LAYER = "layer"
GROWS, SHRINKS = "▲", "▼"
SYMBOLS = {
    Verdict.NOT_FINITE: "✕",
    Verdict.TOO_LARGE: GROWS,
    Verdict.TOO_SMALL: SHRINKS,
    Verdict.BLOWS_UP: GROWS,
    Verdict.VANISHES: SHRINKS,
    Verdict.LEARNS_TOO_FAST: GROWS,
    Verdict.LEARNS_TOO_SLOWLY: SHRINKS,
    Verdict.UNDECIDED: "?",
    Verdict.FROZEN: "■",
    Verdict.NOT_VISIBLE: "–",
    Verdict.NOT_COMPARED: "–",
    Verdict.NOT_JUDGED: "✓",
    Verdict.OK: "✓",
}
"""What stands before a verdict's word; the word is always there."""


def tone(verdict: Verdict, culprit: bool = False) -> str:
    """How a verdict is coloured: "bad", "warn", "good" or "mute"."""
    if culprit or verdict.violated:
        return "bad"
    return {Verdict.UNDECIDED: "warn", Verdict.OK: "good"}.get(verdict, "mute")


def table_data(report: Result) -> dict[str, Any]:
    """Everything that the page's script needs, as JSON data whose texts are fit to be shown.

    A row is [place in the data flow, name, label, kind, verdict, tone, what was judged, exponent, ±, expected, growth
    or change, cause, explanation, remedy, detail]; label, kind and verdict are positions in the lists beside the rows.
    The detail of a layer is that of `layer_details`, that of a parameter `exponents_of`.
    """
    kinds, words = [LAYER, *(role.value for role in Role)], list(Verdict)
    rows, grids = [], []
    for number, label in enumerate(report.labels):
        own = report.verdicts[report.verdicts["label"] == label]
        grid, details = layer_details(report, label)
        grids.append(grid)
        flow = own.assign(after=own["role"].notna()).sort_values(["order", "after"], kind="stable").index
        places = {index: place for place, index in enumerate(flow, 1)}
        for row in own.itertuples():
            values: Any = row
            layer, verdict = not isinstance(values.role, str), Verdict(values.verdict)
            head = [places[values.Index], printable(values.layer), number, 0 if layer else kinds.index(values.role)]
            head += [words.index(verdict), tone(verdict, values.culprit)]
            rows.append([*head, *_cells(values, layer), details.get(values.layer) if layer else exponents_of(values)])
    return {
        "axis": printable(report.criteria.axis),
        "labels": [printable(label) for label in report.labels],
        "kinds": kinds,
        "verdicts": [[word.value, SYMBOLS[word]] for word in words],
        "curves": list(CURVES.values()),
        "grids": grids,
        "rows": rows,
    }


def _cells(row: Any, layer: bool) -> list[Any]:
    """A row's cells from what was judged to the remedy."""
    found = evidence(row)
    cells = [found.what, *map(exponent, found[1:])] if found else ["", None, None, None]
    effect = rounded(row.growth, 3) if layer else change(row) if row.culprit else None
    return [*cells, effect, cause_text(row), printable(row.explanation), printable(remedy_text(row))]


def exponents_of(row: Any) -> list[list[Any]]:
    """What the diagnosis measured of one parameter: [what, measured, two standard errors, expected]."""
    table = [
        ("gain", row.gain, row.gain_stderr, row.gain_target),
        ("response", row.response, row.response_stderr, row.response_target),
        ("own update", row.own_update, row.own_update_stderr, math.nan),
        ("inherited change", row.inherited, row.inherited_stderr, math.nan),
        ("alignment of the update", row.alignment, math.nan, math.nan),
        ("degree of the optimizer", row.degree, math.nan, math.nan),
    ]
    return [
        [what, exponent(value), exponent(2 * error), exponent(expected)]
        for what, value, error, expected in table
        if not math.isnan(value)
    ]


def layer_details(report: Result, label: str) -> tuple[dict[str, list[int]], dict[str, list[Any]]]:
    """One label's widths and steps, and per layer and quantity of `CURVES` its scales and slopes.

    Scales are means over the seeds, step by step and within a step width by width: null where nothing was measured,
    a word where a seed's value was none. Slopes are [slope, half of its 95 % interval] by step, or why there is none.
    Of more than `MOST_STEPS` steps those are told that tell most, so that the page stays small and its tables readable.
    """
    table = judged(report.measurements)
    table = table[(table["label"] == label) & table["quantity"].isin(CURVES)]
    widths, steps = (sorted(map(int, table[name].unique())) for name in ("width", "step"))
    steps = spread(steps, MOST_STEPS, decisive(report)) if steps else steps
    table = table[table["step"].isin(steps)]
    slot = {key: place for place, key in enumerate(product(steps, widths))}
    details: dict[str, list[Any]] = {
        layer: [[[None] * len(slot), [None] * len(steps)] for _ in CURVES] for layer in table["layer"].unique()
    }
    known = table["status"].isin([Status.OK.value, Status.ZERO.value])
    keys = ["layer", "quantity", "step", "width"]
    means = table[known].groupby(keys, sort=False)["value"].mean()
    words = table[~known].groupby(keys, sort=False)["status"].first()
    number = {quantity.value: place for place, quantity in enumerate(CURVES)}
    for (layer, quantity, step, width), value in chain(means.items(), words.items()):
        shown = value if isinstance(value, str) else rounded(value)
        details[layer][number[quantity]][0][slot[step, width]] = shown
    slopes = report.slopes[(report.slopes["label"] == label) & report.slopes["quantity"].isin(CURVES)]
    slopes = slopes[slopes["step"].isin(steps)]
    for row in slopes.itertuples():
        fit: Any = row
        found = fit.status if math.isnan(fit.slope) else [exponent(fit.slope), exponent((fit.high - fit.low) / 2)]
        details[fit.layer][number[fit.quantity]][1][steps.index(fit.step)] = found
    return {"widths": widths, "steps": steps}, details


def rounded(value: float, digits: int = 4) -> float | None:
    """The value to so many significant digits; None where there is none.

    >>> rounded(0.123456), rounded(64.0), rounded(float("nan"))
    (0.1235, 64, None)
    """
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short


def exponent(value: float) -> float | None:
    """The exponent to a thousandth; None where there is none.

    >>> exponent(0.98765), exponent(-1e-9), exponent(float("inf"))
    (0.988, 0, None)
    """
    if not math.isfinite(value):
        return None
    short = round(value, 3)
    return int(short) if short.is_integer() else short
