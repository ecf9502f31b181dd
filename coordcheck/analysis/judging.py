"""Slopes -> a verdict per layer: what is beyond the tolerance, and what may be."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from coordcheck.analysis.verdicts import OF_SITES, TOLERANCE, TRANSIENT, Answer, Evidence, Expectation, Verdict, compare
from coordcheck.runs.words import Quantity, Status


@dataclass(frozen=True)
class Judgement:
    """One layer's verdict with the evidence behind it."""

    verdict: Verdict
    evidence: Evidence | None
    explanation: str


def judge(
    slopes: pd.DataFrame,
    growing: Mapping[tuple[str, str], bool],
    *,
    partial: Mapping[tuple[str, str], Sequence[int]] | None = None,
    expect: Expectation | None = None,
    tolerance: float = TOLERANCE,
    trained: bool = True,
    outside: Mapping[tuple[str, str], float] | None = None,
    rerouted: Container[tuple[str, str]] = (),
) -> pd.DataFrame:
    """One verdict per (label, layer), from the table of `fit_slopes`.

    A layer is judged on its activation at t=0, and on its change at the first step at which it moved (the first
    update after a zero initialisation or a warm-up); growth at a later step is reported too, and a change that
    shrinks with width at first but no longer at the last step is transient: gradients that are random at
    initialisation align within a few updates. Outputs with a fixed number of coordinates (`growing` is False:
    readouts, attention logits) may shrink at initialisation without limit and in training down to n ** -1/2.
    When `trained` is False the change in training is not judged: in other parametrizations than µP it depends on the
    depth, and their exponents are judged parameter by parameter. `outside` is what a scalar in the code around a layer
    adds to its expected exponent. Layers in `rerouted` see other rows at other steps, as experts do: their change is
    not compared.
    Layers in `partial` that were seen at too few widths are not compared, and do not keep a label from being ok.

    Returns:
        Columns `label, layer, order, verdict, quantity, step, expected, slope, stderr, low, high, growth,
        power_law, explanation`, in data-flow order.
    """
    layers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in slopes[slopes["quantity"].isin(OF_SITES)].to_dict("records"):
        layers.setdefault((row["label"], row["layer"]), []).append({str(key): value for key, value in row.items()})
    rows = []
    for (label, layer), fits in layers.items():
        expected = _expected(layer, expect or {}) + (outside or {}).get((label, layer), 0.0)
        followed = trained and (label, layer) not in rerouted
        found = _judge_layer(fits, expected, tolerance, growing.get((label, layer), True), followed)
        if found.verdict is Verdict.UNDECIDED and (label, layer) in rerouted:
            found = Judgement(Verdict.NOT_COMPARED, None, "the rows that it sees change from step to step")
        if found.verdict is Verdict.UNDECIDED and (label, layer) in (partial or {}):
            found = Judgement(Verdict.NOT_COMPARED, None, "it was seen at too few widths")
        evidence: dict[str, Any] = dict.fromkeys(Evidence._fields, math.nan)
        if found.evidence is not None:
            evidence = found.evidence._asdict()
        head = {"label": label, "layer": layer, "order": fits[0]["order"], "verdict": found.verdict.value}
        if found.evidence is None:
            evidence |= {"step": -1, "power_law": False}
        evidence["quantity"] = found.evidence.quantity.value if found.evidence else None
        rows.append({**head, "expected": expected, **evidence, "explanation": found.explanation})
    return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = [
    *("label", "layer", "order", "verdict", "quantity", "step", "expected"),
    *("slope", "stderr", "low", "high", "growth", "power_law", "explanation"),
]


def _expected(layer: str, expect: Expectation) -> float:
    """The exponent of the last glob that matches, so that later entries refine earlier ones."""
    found = [exponent for glob, exponent in expect.items() if fnmatchcase(layer, glob)]
    return found[-1] if found else 0.0


def _judge_layer(
    fits: Sequence[Mapping[str, Any]], expected: float, tolerance: float, grows: bool, trained: bool
) -> Judgement:
    lost = [fit["step"] for fit in fits if fit["not_finite"]]
    if lost:
        why = f"NaN or Inf from t={min(lost)} on" + (": lower the learning rate" if min(lost) else " (before training)")
        return Judgement(Verdict.NOT_FINITE, None, why)
    initial = next((e for e in _evidence(fits, Quantity.ACTIVATION) if e.step == 0), None)
    moved = _evidence(fits, Quantity.CHANGE) if trained else []
    findings = []
    if initial is not None:
        findings.append((initial, compare(initial, expected, tolerance, 0.0 if grows else math.inf)))
    if moved:
        allowed = 0.0 if grows else TRANSIENT
        fades = len(moved) > 1 and compare(moved[-1], expected, tolerance, allowed) is Answer.OK
        findings.append((moved[0], compare(moved[0], expected, tolerance, math.inf if fades else allowed)))
    later = [(e, a) for e in moved[1:] if (a := compare(e, expected, tolerance, math.inf)) is Answer.GROWS]
    for answer in (Answer.GROWS, Answer.SHRINKS):
        for evidence, found in (*findings, *later):
            if found is answer:
                return _symptom(evidence, answer, expected)
    unmoved = [fit for fit in fits if fit["quantity"] == Quantity.CHANGE.value and fit["zeros"]]
    if moved and any(fit["step"] == moved[0].step for fit in unmoved):
        why = f"its change at t={moved[0].step} is exactly zero at some widths or seeds"
        return Judgement(Verdict.UNDECIDED, None, why)
    for evidence, found in findings:
        if found is Answer.UNDECIDED:
            return Judgement(Verdict.UNDECIDED, evidence, _undecided(evidence, expected, tolerance))
    if not trained and initial is not None:
        return Judgement(Verdict.OK, initial, _seen(initial))
    if not moved:
        return _unmoved(fits, initial)
    shrinks = any(e.high - expected < -tolerance for e, _ in findings)
    why = "; shrinks at first (transient)" if shrinks else ""
    if any(fit["status"] == Status.ZERO_INPUT.value for fit in fits):
        why += "; its input at t=0 is zero, so that its scale there is that of a bias, and is not judged"
    return Judgement(Verdict.OK, moved[0], _seen(moved[0]) + why)


def _evidence(fits: Sequence[Mapping[str, Any]], quantity: Quantity) -> list[Evidence]:
    """The fitted slopes of one quantity, by step."""
    fitted = [fit for fit in fits if fit["quantity"] == quantity.value and fit["status"] == Status.OK.value]
    names = ("step", "slope", "stderr", "low", "high", "growth", "power_law")
    return sorted((Evidence(quantity, *(fit[name] for name in names)) for fit in fitted), key=lambda e: e.step)


def _unmoved(fits: Sequence[Mapping[str, Any]], initial: Evidence | None) -> Judgement:
    """The verdict of a layer none of whose changes has a slope."""
    reasons = {fit["status"] for fit in fits if fit["quantity"] == Quantity.CHANGE.value}
    if reasons == {Status.ZERO.value}:
        return Judgement(Verdict.FROZEN, initial, "its output never changed")
    if reasons:
        why = ", ".join(sorted(reasons))
        if Status.MOVED_INPUT.value in reasons and initial is not None:
            return Judgement(Verdict.NOT_JUDGED, initial, f"{_seen(initial)}; its change is not judged: {why}")
        return Judgement(Verdict.UNDECIDED, None, f"its change in training has no slope: {why}")
    if initial is None:
        statuses = {fit["status"] for fit in fits}
        if statuses == {Status.INTEGER.value}:  # as which experts a router chose
            return Judgement(Verdict.NOT_COMPARED, None, "integers have no scale")
        return Judgement(Verdict.UNDECIDED, None, "no slope: " + ", ".join(sorted(statuses)))
    return Judgement(Verdict.UNDECIDED, None, "no update was recorded, so nothing is known of its change")


def _symptom(evidence: Evidence, answer: Answer, expected: float) -> Judgement:
    initial = evidence.quantity is Quantity.ACTIVATION
    if answer is Answer.GROWS:
        verdict = Verdict.TOO_LARGE if initial else Verdict.BLOWS_UP
    else:
        verdict = Verdict.TOO_SMALL if initial else Verdict.VANISHES
    wanted = f"; expected m^{expected:g}" if expected else ""
    shape = "" if evidence.power_law else "; not a power law here"
    return Judgement(verdict, evidence, _seen(evidence) + wanted + shape)


def _seen(evidence: Evidence) -> str:
    what = "scale at initialisation" if evidence.quantity is Quantity.ACTIVATION else f"change at t={evidence.step}"
    return f"{what} ~ m^{evidence.slope:.2f} ± {(evidence.high - evidence.low) / 2:.2f}"


def _undecided(evidence: Evidence, expected: float, tolerance: float) -> str:
    return (
        f"{_seen(evidence)} does not tell whether it is within {tolerance:g} of {expected:g}: "
        "add seeds, or a wider range of widths"
    )
