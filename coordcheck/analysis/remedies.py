"""Findings in the words of what to do: what to multiply by which power of the width."""

from __future__ import annotations

from coordcheck.analysis.findings import Cause, Finding


def remedy(finding: Finding, provisional: bool) -> str:
    """What to change, with the exact factor."""
    name = finding.use.parameter or finding.use.name
    name = finding.use.name if "[" in finding.use.name else name
    steps = []
    if finding.cause is Cause.FROZEN:
        return f"{name}: give it to the optimizer, with a learning rate above 0"
    if finding.init:
        steps.append(f"multiply its initial standard deviation by {power(finding.init)}")
    if finding.multiplier:
        what = {Cause.ATTENTION_SCALE: "the attention scale", Cause.FORWARD_SCALE: "its output"}.get(
            finding.cause or Cause.MULTIPLIER, "its forward multiplier"
        )
        steps.append(f"multiply {what} by {power(finding.multiplier)}")
    if finding.learning_rate:
        later = " (provisional: check again once the initialisation is right)" if provisional else ""
        steps.append(f"multiply its learning rate by {power(finding.learning_rate)}{later}")
    if finding.eps:
        steps.append(f"multiply the optimizer's eps for it by {power(finding.eps)}")
    return f"{name}: {' and '.join(steps)}, {BASE}" if steps else ""


BASE = "m = width / base width"  # said once in every text that has powers


def power(exponent: float) -> str:
    """The factor of a remedy, as a power of m = width / base width."""
    return f"m^{exponent:g}"
