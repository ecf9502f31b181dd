"""Deviations of one parameter that are no fault of its own: another parameter's fault explains them."""

from __future__ import annotations

from collections.abc import Sequence

from coordcheck.analysis.deviations import deviation, nearest_power
from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.measured import without_fault
from coordcheck.runs.words import Through


def without_lengths(findings: Sequence[Finding], tolerance: float) -> list[Finding]:
    """Without that part of directions' learning rates by which the lengths beside them are off, which are to blame.

    Rows that are e longer than they should be move that much further when they are turned: once they are right, the
    directions are, at the learning rate that they have.
    """
    lengths = {f.use.layer: f for f in findings if f.use.through is Through.MADE and f.init + f.multiplier}
    found = []
    for finding in findings:
        longer = lengths.get(finding.use.layer) if finding.use.through is Through.NORMED else None
        if longer is not None and finding.cause is Cause.LEARNING_RATE:
            beyond = -(1 + round(finding.exponents.degree)) * (longer.init + longer.multiplier)
            finding = _without(finding, beyond, longer, tolerance)
        found.append(finding)
    return found


def without_factors(findings: Sequence[Finding], tolerance: float) -> list[Finding]:
    """Without what the learning rate of a factor that starts at zero does to the one that it multiplies.

    Until the first has moved, the second makes nothing, as in a merged LoRA; then it makes as much as that has moved.
    """
    firsts = {
        finding.use.layer: finding
        for finding in findings
        if finding.cause is Cause.LEARNING_RATE
        and finding.use.through is Through.MADE
        and finding.exponents.zero_init
        and finding.exponents.step == 1
    }
    found = []
    for finding in findings:
        first = firsts.get(finding.use.layer) if finding.cause is Cause.LEARNING_RATE else None
        later = finding.use.through is Through.MADE and finding.exponents.zero_init and finding.exponents.step > 1
        if first is not None and later:
            beyond = -(1 + round(finding.exponents.degree)) * first.learning_rate
            finding = _without(finding, beyond, first, tolerance)
        found.append(finding)
    return found


def _without(finding: Finding, beyond: float, other: Finding, tolerance: float) -> Finding:
    """A learning rate that is off without the power of the width that another parameter's fault makes of it."""
    left = finding.response.shifted(-beyond)
    why = f"{finding.explanation}, m^{beyond:g} of it as {other.use.name} is off"
    rate = -nearest_power(left, finding.response_target)
    finding = finding._replace(response=left, learning_rate=rate, explanation=why)
    if deviation(left, finding.response_target, tolerance) is None:
        return without_fault(finding._replace(cause=None), tolerance)
    return finding


def waiting(findings: Sequence[Finding], tolerance: float) -> list[Finding]:
    """Without gradients that are off where a parameter behind has a fault of its own: they come from there.

    A learning rate that is off acts as an initialisation that is, once that parameter has moved.
    """
    found, behind, of_rate = [], "", ""
    for finding in reversed(findings):
        fault = of_rate if finding.exponents.step > 1 and of_rate else behind
        if finding.cause is Cause.GRADIENT_FAN_IN and fault:
            why = f"{finding.explanation}, which may come from {fault} behind it: check again once that is right"
            finding = without_fault(finding._replace(explanation=why), tolerance)
        elif finding.cause is Cause.LEARNING_RATE:
            of_rate = finding.use.name
        elif finding.cause not in (None, Cause.FROZEN, Cause.GRADIENT_FAN_IN):
            behind = finding.use.name
        found.append(finding)
    return found[::-1]
