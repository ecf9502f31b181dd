"""Symptoms and causes in one table: a row per site, a row per parameter, and which explains which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from coordcheck.diagnosis import Cause, Finding, remedy
from coordcheck.records import Quantity, Role
from coordcheck.verdicts import TRANSIENT, Verdict

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
        if finding.part.role is Role.FUNCTION and not finding.culprit:  # modules without parameters, when they are fine
            continue
        found, part = finding.exponents, finding.part
        table.append(
            {
                **dict.fromkeys(_MEASURED, math.nan),
                "quantity": None,
                "power_law": False,
                "label": label,
                "layer": part.name,
                "parameter": part.parameter or None,
                "role": part.role.value,
                "module": part.layer,
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
        places = {f.part.layer: _place(f.part.layer, orders) for f in found}
        culprits = sorted((f for f in found if f.culprit), key=lambda f: places[f.part.layer])
        table = [_explained({str(k): v for k, v in row.items()}, found, culprits, places, tolerance) for row in own]
        last = max(orders.values(), default=0.0)
        for row in parameter_rows(str(label), found):
            row["order"] = min(places[row.pop("module")], last)
            table.append(row)
        tables.append(pd.DataFrame(table, columns=COLUMNS))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _all_right(found: Sequence[Finding]) -> bool:
    """Whether every parameter that is trained was measured, and is as it should be."""
    return all(f.verdict is Verdict.OK for f in found if f.part.trained and f.part.role is not Role.FUNCTION)


def _place(layer: str, orders: Mapping[str, float]) -> float:
    """Where in the data flow a module's operations stand: with its own site, or after those inside it."""
    if layer in orders:
        return orders[layer]
    return max((order for name, order in orders.items() if name.startswith(f"{layer}.")), default=math.inf)


def _explained(
    row: dict[str, Any],
    found: Sequence[Finding],
    culprits: Sequence[Finding],
    places: Mapping[str, float],
    tolerance: float,
) -> dict[str, Any]:
    """A site's row with what caused its symptom."""
    row |= {"parameter": None, "role": None, "culprit": False, "cause": None, "exponent": math.nan, "remedy": ""}
    verdict = Verdict(row["verdict"])
    if not found or not (verdict.violated or verdict is Verdict.UNDECIDED):
        return row
    own = [f for f in found if f.part.layer == row["layer"]]
    shrinks = verdict is Verdict.VANISHES or (verdict is Verdict.UNDECIDED and row["high"] < tolerance)
    transient = shrinks and row["low"] > -TRANSIENT - 2 * tolerance
    if transient and any(f.part.to_attention for f in own) and not any(f.culprit for f in own):
        why = f"{row['explanation']}; queries and keys may shrink at first (transient)"
        return row | {"verdict": Verdict.OK.value, "explanation": why}
    if transient and verdict is Verdict.VANISHES and row["quantity"] == Quantity.CHANGE and _all_right(found):
        return row | {"verdict": Verdict.UNDECIDED.value, "explanation": f"{row['explanation']}; {UNALIGNED}"}
    before = [] if verdict is Verdict.UNDECIDED else [f for f in culprits if places[f.part.layer] <= row["order"]]
    if before:
        mine = next((f for f in before if f.part.layer == row["layer"]), None)
        first = mine or before[0]
        word = "own" if mine else "inherited"
        row |= {
            "cause": f"{word}: {first.part.name}",
            "explanation": f"{row['explanation']}; {word}: {first.part.name}",
        }
    return row
