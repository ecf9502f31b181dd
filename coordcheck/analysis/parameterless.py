"""What is judged that holds no parameter: the scale of an attention's logits, and modules that only compute."""

from __future__ import annotations

from coordcheck.analysis.deviations import compare_known, nearest_half, nearest_quarter, size_verdict
from coordcheck.analysis.exponents import Exponents
from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.analysis.targets import Targets
from coordcheck.analysis.verdicts import Answer, Verdict


def judge_attention(use: UseAcrossWidths, found: Exponents, targets: Targets, tolerance: float) -> Finding:
    """The scale of attention logits: n ** (attention * slope of the head size) beyond those of query and key."""
    gain, target = found.gain_weight, targets.attention * use.fan_in
    if not gain.stderr > 0:  # scalars and head sizes are known exactly, also at two widths: a quarter counts, too
        gain, tolerance = Exponent(gain.value, 0.0, gain.value, gain.value), tolerance / 2
    finding = Finding(use, found, Verdict.OK, gain=gain, gain_target=target)
    scale = gain.value - use.fan_in / 2
    finding = finding._replace(explanation=f"its scale is m^{scale:.2f}, its head size m^{use.fan_in:.2f}")
    excess, answer = gain.value - target, compare_known(gain, target, tolerance)
    if answer is Answer.UNDECIDED:
        return finding._replace(verdict=Verdict.UNDECIDED)
    if answer is None:
        return finding._replace(verdict=Verdict.UNDECIDED, explanation="its scale could not be measured")
    if answer is Answer.OK:
        return finding
    return finding._replace(
        verdict=size_verdict(excess), cause=Cause.ATTENTION_SCALE, multiplier=-nearest_quarter(excess)
    )


def judge_function(use: UseAcrossWidths, found: Exponents, tolerance: float) -> Finding:
    """A module without parameters: what it gives must not scale with the width when what it takes does not."""
    finding = Finding(use, found, Verdict.OK, gain=found.gain, gain_target=0.0, explanation="")
    answers = compare_known(found.gain, 0.0, tolerance), compare_known(found.output, 0.0, tolerance)
    if None in answers:
        return finding._replace(verdict=Verdict.UNDECIDED, explanation="its output has no scale")
    if answers[0] is not answers[1] or answers[0] not in (Answer.GROWS, Answer.SHRINKS):
        return finding
    return finding._replace(
        verdict=size_verdict(found.gain.value),
        cause=Cause.FORWARD_SCALE,
        multiplier=-nearest_half(found.gain.value),
        explanation=f"its output / its input ~ m^{found.gain.value:.2f}",
    )
