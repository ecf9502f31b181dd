"""Symptoms and causes in one table: a row per site, a row per parameter, and which explains which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from coordcheck.diagnosis import Cause, Finding, remedy
from coordcheck.verdicts import TRANSIENT, Verdict

COLUMNS = [
    *("label", "layer", "parameter", "role", "order", "verdict", "culprit", "cause", "exponent", "remedy"),
    *("quantity", "step", "expected", "slope", "stderr", "low", "high", "growth", "power_law"),
    *("init_exponent", "lr_exponent", "multiplier_exponent"),
    *("gain", "gain_stderr", "gain_target", "gain_measured", "response", "response_stderr", "response_target"),
    *("response_measured", "alignment", "degree", "own_update", "own_update_stderr", "inherited", "inherited_stderr"),
    "explanation",
]


_MEASURED = ("expected", "slope", "stderr", "low", "high", "growth")


def parameter_rows(label: str, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as rows of the table of verdicts."""
    provisional = any(f.cause in (Cause.INIT, Cause.MULTIPLIER, Cause.ATTENTION_SCALE) for f in findings)
    table = []
    for finding in findings:
        found, part = finding.exponents, finding.part
        table.append(
            dict.fromkeys(_MEASURED, math.nan)
            | {
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
    falls as n ** -1/2 until it aligns (Yang et al. 2022, appendix on attention).
    """
    tables = []
    for label in dict.fromkeys([*sites["label"], *findings]):
        own = sites[sites["label"] == label].to_dict("records")
        orders = {str(row["layer"]): float(row["order"]) for row in own}
        found = findings.get(label, [])
        culprits = sorted((f for f in found if f.culprit), key=lambda f: orders.get(f.part.layer, -1.0))
        table = [_explained({str(k): v for k, v in row.items()}, found, culprits, orders, tolerance) for row in own]
        last = max(orders.values(), default=0.0)
        for row in parameter_rows(str(label), found):
            row["order"] = orders.get(row.pop("module"), last)
            table.append(row)
        tables.append(pd.DataFrame(table, columns=COLUMNS))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _explained(
    row: dict[str, Any],
    found: Sequence[Finding],
    culprits: Sequence[Finding],
    orders: Mapping[str, float],
    tolerance: float,
) -> dict[str, Any]:
    """A site's row with what caused its symptom."""
    row |= {"parameter": None, "role": None, "culprit": False, "cause": None, "exponent": math.nan, "remedy": ""}
    if not found or not Verdict(row["verdict"]).violated:
        return row
    own = [f for f in found if f.part.layer == row["layer"]]
    transient = row["verdict"] == Verdict.VANISHES.value and row["low"] > -TRANSIENT - 2 * tolerance
    if transient and own and all(f.part.to_attention or not f.part.parameter or f.verdict.harmless for f in own):
        if any(f.part.to_attention for f in own) and not any(f.culprit for f in own):
            why = f"{row['explanation']}; queries and keys may shrink at first (transient)"
            return row | {"verdict": Verdict.OK.value, "explanation": why}
    before = [f for f in culprits if orders.get(f.part.layer, -1.0) <= row["order"]]
    if before:
        mine = next((f for f in before if f.part.layer == row["layer"]), None)
        first = mine or before[0]
        word = "own" if mine else "inherited"
        row |= {
            "cause": f"{word}: {first.part.name}",
            "explanation": f"{row['explanation']}; {word}: {first.part.name}",
        }
    return row
