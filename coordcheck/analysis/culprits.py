"""Symptoms and causes in one table: a row per site, a row per parameter, and which explains which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.remedies import remedy
from coordcheck.analysis.verdicts import TRANSIENT, Verdict
from coordcheck.runs.words import Quantity, Role

COLUMNS = [
    *("label", "layer", "parameter", "role", "order", "verdict", "culprit", "cause", "exponent", "remedy"),
    *("quantity", "step", "expected", "slope", "stderr", "low", "high", "growth", "power_law"),
    *("init_exponent", "lr_exponent", "multiplier_exponent"),
    *("gain", "gain_stderr", "gain_target", "gain_measured", "response", "response_stderr", "response_target"),
    *("response_measured", "alignment", "degree", "own_update", "own_update_stderr", "inherited", "inherited_stderr"),
    "explanation",
]


UNALIGNED = (
    "yet every parameter's own update keeps its scale: those of a large batch are less aligned with their input the "
    "wider the model is; fewer examples decide"
)
_MEASURED = ("expected", "slope", "stderr", "low", "high", "growth")


def parameter_rows(label: str, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as rows of the table of verdicts."""
    provisional = any(f.cause in (Cause.INIT, Cause.MULTIPLIER, Cause.ATTENTION_SCALE) for f in findings)
    table = []
    for finding in findings:
        if finding.use.role is Role.FUNCTION and not finding.culprit:  # modules without parameters, when they are fine
            continue
        found, use = finding.exponents, finding.use
        table.append(
            {
                **dict.fromkeys(_MEASURED, math.nan),
                "quantity": None,
                "power_law": False,
                "label": label,
                "layer": use.name,
                "parameter": use.parameter or None,
                "role": use.role.value,
                "module": use.layer,
                "verdict": finding.verdict.value,
                "culprit": finding.culprit,
                "cause": finding.cause.value if finding.cause else None,
                "exponent": finding.exponent,
                "remedy": remedy(finding, provisional),
                "init_exponent": finding.init,
                "lr_exponent": finding.learning_rate,
                "multiplier_exponent": finding.multiplier,
                "gain": finding.gain.value,
                "gain_stderr": finding.gain.stderr,
                "gain_target": finding.gain_target,
                "gain_measured": found.gain.value,
                "response": finding.response.value,
                "response_stderr": finding.response.stderr,
                "response_target": finding.response_target,
                "response_measured": found.response.value,
                "alignment": found.alignment,
                "degree": found.degree,
                "own_update": found.growth.value,
                "own_update_stderr": found.growth.stderr,
                "inherited": found.inherited.value,
                "inherited_stderr": found.inherited.stderr,
                "step": found.step,
                "explanation": finding.explanation,
            }
        )
    return table


def combined(sites: pd.DataFrame, findings: Mapping[str, Sequence[Finding]], tolerance: float) -> pd.DataFrame:
    """The table of verdicts: a row per site, and after them a row per parameter.

    A site's symptom is put down to the first culprit at or before it in the data flow. Queries and keys may shrink at
    first: the gradient of the logits is random at initialisation, so under an optimizer of degree 1 their first update
    falls as n ** -1/2 until it aligns (Yang et al. 2022, appendix on attention). A change that falls by no more than a
    loss of alignment explains, where every parameter is measured and right, decides nothing.
    """
    tables = []
    for label in dict.fromkeys([*sites["label"], *findings]):
        own = sites[sites["label"] == label].to_dict("records")
        orders = {str(row["layer"]): float(row["order"]) for row in own}
        found = findings.get(label, [])
        causes = _Causes.of(found, orders)
        table = [_explained({str(k): v for k, v in row.items()}, causes, tolerance) for row in own]
        last = max(orders.values(), default=0.0)
        for row in parameter_rows(str(label), found):
            row["order"] = min(causes.places[row.pop("module")], last)
            table.append(row)
        tables.append(pd.DataFrame(table, columns=COLUMNS))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


class _Causes(NamedTuple):
    """The findings of one label, as the sites ask for them."""

    places: Mapping[str, float]
    """Where in the data flow each module's operations stand."""
    of_layer: Mapping[str, Sequence[Finding]]
    first: Finding | None
    """The culprit that stands first."""
    all_right: bool
    """Whether every parameter that is trained was measured, and is as it should be."""

    @classmethod
    def of(cls, found: Sequence[Finding], orders: Mapping[str, float]) -> _Causes:
        of_layer: dict[str, list[Finding]] = {}
        for finding in found:
            of_layer.setdefault(finding.use.layer, []).append(finding)
        after = _after_what_is_inside(orders)
        places = {layer: orders.get(layer, after.get(layer, math.inf)) for layer in of_layer}
        first = min((f for f in found if f.culprit), key=lambda f: places[f.use.layer], default=None)
        trained = (f for f in found if f.use.trained and f.use.role is not Role.FUNCTION)
        return cls(places, of_layer, first, all(f.verdict is Verdict.OK for f in trained))


def _after_what_is_inside(orders: Mapping[str, float]) -> dict[str, float]:
    """The last place of the sites inside each module: there its own operations stand, where it has no site itself."""
    found: dict[str, float] = {}
    for name, order in orders.items():
        while name := name.rpartition(".")[0]:
            found[name] = max(order, found.get(name, order))
    return found


def _explained(row: dict[str, Any], causes: _Causes, tolerance: float) -> dict[str, Any]:
    """A site's row with what caused its symptom."""
    row |= {"parameter": None, "role": None, "culprit": False, "cause": None, "exponent": math.nan, "remedy": ""}
    verdict = Verdict(row["verdict"])
    if not causes.of_layer or not (verdict.violated or verdict is Verdict.UNDECIDED):
        return row
    own = causes.of_layer.get(row["layer"], [])
    shrinks = verdict is Verdict.VANISHES or (verdict is Verdict.UNDECIDED and row["high"] < tolerance)
    transient = shrinks and row["low"] > -TRANSIENT - 2 * tolerance
    if transient and any(f.use.attends for f in own) and not any(f.culprit for f in own):
        why = f"{row['explanation']}; queries and keys may shrink at first (transient)"
        open_ = any(f.verdict in (Verdict.UNDECIDED, Verdict.NOT_FINITE) for f in own)
        right = Verdict.UNDECIDED if open_ else Verdict.OK
        return row | {"verdict": right.value, "explanation": why}
    if transient and verdict is Verdict.VANISHES and row["quantity"] == Quantity.CHANGE and causes.all_right:
        return row | {"verdict": Verdict.UNDECIDED.value, "explanation": f"{row['explanation']}; {UNALIGNED}"}
    culprits = [f for f in (*own, causes.first) if f is not None and f.culprit]  # its own comes before the first
    before = [f for f in culprits if causes.places[f.use.layer] <= row["order"]]
    if before and verdict is not Verdict.UNDECIDED:
        first = before[0]
        word = "own" if first.use.layer == row["layer"] else "inherited"
        row |= {
            "cause": f"{word}: {first.use.name}",
            "explanation": f"{row['explanation']}; {word}: {first.use.name}",
        }
    return row
