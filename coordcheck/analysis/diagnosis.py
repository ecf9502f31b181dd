"""Exponents -> the cause: which parameter is to blame, what for, and the power of the width that mends it.

Every exponent is local to one parameter, so one fault flags one parameter however far its symptoms spread:

    gain off                            its initialisation
    response off                        its learning rate
    both off, by e and (1 + k) e        the scalar that multiplies it
    no movement under any gradient      frozen
    growth off, gain and response right its gradient sums over a number of terms that grows with the width

Exponents of practical parametrizations are multiples of 1/2: a deviation is one when it lies beyond `tolerance` with
its whole 95 % interval, and is rounded to a half: the nearest, or that to which it goes with the width.

Where the exponents should be, and from which papers, stands in `targets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from coordcheck.analysis.blocks import choose_blocks, with_one_rate
from coordcheck.analysis.deviations import compare_known, deviation, nearest_half, nearest_power, size_verdict
from coordcheck.analysis.explained import waiting, without_factors, without_lengths
from coordcheck.analysis.exponents import Exponents
from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.logs import UNKNOWN, Exponent
from coordcheck.analysis.measured import UNSIZED, on_whole_batch, without_fault
from coordcheck.analysis.parameterless import judge_attention, judge_function
from coordcheck.analysis.roles import GROWS, UseAcrossWidths
from coordcheck.analysis.targets import Targets
from coordcheck.analysis.verdicts import Answer, Verdict
from coordcheck.runs.records import is_between
from coordcheck.runs.words import Role, Through

LARGE_VOCABULARY = 4  # times the widest fan-in: from here on a readout of SP's scale is harmless in practice
COMMON = 0.4  # growth shared by all updates up to which it is put down to chance
# functions in which a vector multiplies what it meets, and the one that stands for a table that is an input itself
SCALES = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "mul", "multiply", "clone"})
AGREES = 0.3, 2  # distance, and standard errors, up to which the update of a computed weight tells its response
SUMS = "its gradient sums over terms whose number grows with the width: a learning rate lower by as much is right"
WEAK = 0.2  # distance of alignment from 1 from which on it is told


def diagnose(
    uses: Sequence[UseAcrossWidths], exponents: Mapping[str, Exponents], targets: Targets, tolerance: float
) -> list[Finding]:
    """One finding per use of one label.

    Blocks of a fused matrix replace the whole where they do not agree with one another. A second use of a parameter is
    judged by what the first that is visible leaves to explain. The growth is looked at last, where nothing else is
    wrong.
    """
    if not any(found.moved or found.not_finite for found in exponents.values()):
        idle = not any(found.has_gradient for found in exponents.values())
        why = "every gradient is zero: is any target in the batch?" if idle else "is the learning rate zero?"
        why = f"nothing moved: {why}"
        return [Finding(use, exponents[use.name], Verdict.UNDECIDED, explanation=why) for use in uses]
    trained = [use for use in uses if use.parameter and use.trained]
    finite = not any(found.not_finite for found in exponents.values())
    if trained and finite and all(use.degree is None for use in trained):
        why = "the degree of the optimizer's update in the gradient was not measured"
        return [Finding(use, exponents[use.name], Verdict.UNDECIDED, explanation=why) for use in uses]
    findings: list[Finding] = []
    firsts: dict[str, Finding] = {}
    for use in uses:
        first = firsts.get(use.parameter) if use.tied else None
        alone = use if first is not None else use._replace(tied=False)
        findings.append(_judge(alone, exponents[use.name], targets, tolerance, first))
        if not use.hidden:
            firsts.setdefault(use.parameter, findings[-1])
    findings = without_lengths(choose_blocks(with_one_rate(findings)), tolerance)
    findings = without_factors(findings, tolerance)
    if all(finding.cause in (None, Cause.LEARNING_RATE) for finding in findings) and targets.name == "µP":
        shift = _common_growth(findings)
        findings = [_judge_growth(finding, shift, tolerance) for finding in findings]
    return waiting(findings, tolerance)


def _judge(
    use: UseAcrossWidths, found: Exponents, targets: Targets, tolerance: float, first: Finding | None
) -> Finding:
    if use.role is Role.ATTENTION and not use.hidden:
        return judge_attention(use, found, targets, tolerance)
    if use.role is Role.FUNCTION:
        return judge_function(use, found, tolerance)
    if use.hidden:
        return Finding(use, found, Verdict.NOT_VISIBLE, explanation=use.hidden)
    if found.not_finite:
        return Finding(use, found, Verdict.NOT_FINITE, explanation="NaN or Inf on the probe")
    if not use.trained:
        gain, target = _gain(use, found, targets, first)
        fixed = Finding(use, found, Verdict.FROZEN, gain=gain, gain_target=target, explanation="it is not trained")
        return _decide(fixed, tolerance) if deviation(gain, target, tolerance) else fixed
    if not found.has_gradient or found.faint:
        why = found.faint or "the loss on the probe does not depend on it: its gradient is zero or rounding error"
        return Finding(use, found, Verdict.NOT_VISIBLE, explanation=why)
    if not found.moved and not found.frozen:
        why = "no update moved it in every run that gave it a gradient: such runs are too few, or too short"
        return Finding(use, found, Verdict.UNDECIDED, explanation=why)
    if not found.moved:
        rate = "its learning rate is 0" if use.of_rate_zero else "is it in an optimizer, with a learning rate?"
        why = f"it has a gradient and never moves: {rate}"
        return Finding(use, found, Verdict.FROZEN, Cause.FROZEN, explanation=why)
    gain, gain_target = _gain(use, found, targets, first)
    response, response_target = _response(use, found, targets, first)
    response, why = on_whole_batch(response, found, response_target, tolerance, summed=use.fan_in > GROWS)
    if _sums_enough(use, found, response, response_target, tolerance):
        response, why = _of_halves(found.response, response_target, tolerance), SUMS
    judged = Finding(use, found, Verdict.OK, None, 0.0, 0.0, 0.0, why, gain, gain_target, response, response_target)
    return _decide(judged, tolerance)


def _gain(use: UseAcrossWidths, found: Exponents, targets: Targets, first: Finding | None) -> tuple[Exponent, float]:
    """The gain to judge, and what it should be; unknown where there is none to judge."""
    vector = use.role is Role.VECTOR
    if use.role is Role.CONSTANT or found.zero_init or not found.gain_weight.known:
        return UNKNOWN, math.nan
    if use.operation in UNSIZED:
        return UNKNOWN, math.nan if vector else targets.gain.get(use.role, 0.0)
    if vector and use.operation not in SCALES and found.gain_weight.low < 0.25:  # a bias may vanish, but not grow
        return UNKNOWN, math.nan
    target = targets.gain.get(use.role, 0.0)
    weight, measured = found.gain_weight, found.gain
    if first is not None:  # a shared matrix: what its first use already explains
        weight = weight.shifted(first.init)
    if use.tied or vector or not use.exact or not measured.known:
        return weight, target
    gap = measured.value - weight.value
    margin = (measured.high - measured.low) / 2
    # weights that are not drawn independently of one another: what they do counts, not their size
    return (measured if abs(gap) - margin > 0.25 else weight), target


def _response(
    use: UseAcrossWidths, found: Exponents, targets: Targets, first: Finding | None
) -> tuple[Exponent, float]:
    """The response to judge, and what it should be: the parameter's own side, where its operation tells all of it."""
    target = targets.response(use.role, round(found.degree))
    own_side = use.exact or use.role in (Role.VECTOR, Role.CONSTANT) or use.operation != "module"
    if is_between(found.degree):  # and there is no target in between
        return UNKNOWN, target
    weight = found.response_weight.shifted(first.learning_rate if first is not None else 0.0)
    if use.through is not Through.ITSELF and not found.even:  # of another kind than a plain matrix's: as of two factors
        own_side = found.degree < 0.5 and _agree(weight, found.response)
    if use.operation == "embedding" and found.response.known:  # other uses of a table move rows that are not looked up
        own_side = own_side and _agree(weight, found.response)
    return (weight if own_side and weight.known else found.response), target


def _agree(structure: Exponent, measured: Exponent) -> bool:
    """Whether what the structure says is what was measured, but for noise: it may narrow that, and not overrule it."""
    distance, errors = AGREES
    return abs(structure.value - measured.value) < min(distance, errors * measured.stderr)


def _decide(judged: Finding, tolerance: float) -> Finding:
    """Which of init, learning rate and multiplier is off."""
    use, k = judged.use, round(judged.exponents.degree)
    answer = {
        "gain": compare_known(judged.gain, judged.gain_target, tolerance),
        "response": compare_known(judged.response, judged.response_target, tolerance),
    }
    gain_off = answer["gain"] in (Answer.GROWS, Answer.SHRINKS)
    response_off = answer["response"] in (Answer.GROWS, Answer.SHRINKS)
    notes: list[str] = []
    if answer["gain"] is Answer.SHRINKS and use.role is Role.NARROW:
        notes.append("warning: what it makes of a growing layer shrinks with the width")
        gain_off = False
    if gain_off and _harmless(judged):
        notes.append("warning: initialised as in SP, which a large vocabulary forgives; µP wants 1/fan_in")
        gain_off = False
    if response_off and use.role is Role.NARROW and k and not _agrees(judged, answer["response"], tolerance):
        notes.append("its own update does not show it: the loss sees its output directly")
        response_off = False
    excess, lead = judged.gain.value - judged.gain_target, judged.response.value - judged.response_target
    rate = -nearest_power(judged.response, judged.response_target) if response_off else 0.0
    judged = judged._replace(explanation="; ".join(filter(None, [_seen(judged), judged.explanation, *notes])))
    if gain_off and use.tied:  # its init and learning rate belong to the first use
        return judged._replace(verdict=size_verdict(excess), cause=Cause.MULTIPLIER, multiplier=-nearest_half(excess))
    shrinks = _shrinks(judged.exponents, tolerance)
    if gain_off and response_off and abs(lead - shrinks - (1 + k) * excess) < 0.25 * (1 + k):
        judged = judged._replace(multiplier=-nearest_half(excess), learning_rate=-nearest_half(shrinks))
        return judged._replace(verdict=size_verdict(excess), cause=Cause.MULTIPLIER)
    if gain_off and use.through is Through.NORMED:  # its initial size makes no difference
        rate = rate + (1 + k) * nearest_half(excess)
        judged = judged._replace(multiplier=-nearest_half(excess), learning_rate=rate)
        return judged._replace(verdict=size_verdict(excess), cause=Cause.MULTIPLIER)
    if gain_off:
        return judged._replace(
            verdict=size_verdict(excess), cause=Cause.INIT, init=-nearest_half(excess), learning_rate=rate
        )
    if response_off:
        verdict = Verdict.LEARNS_TOO_FAST if lead > 0 else Verdict.LEARNS_TOO_SLOWLY
        return judged._replace(verdict=verdict, cause=Cause.LEARNING_RATE, learning_rate=rate)
    grows = deviation(judged.exponents.response, judged.response.value, tolerance) is Answer.GROWS
    if grows and _follows_gradient(use, judged.exponents):
        beyond = judged.exponents.response.value - judged.response.value
        why = f"its gradient is m^{beyond:.2f} times that of its own use of the input"
        return _gradient_fan_in(judged, beyond, f"{judged.explanation}; {why}")
    return without_fault(judged, tolerance)


def _shrinks(found: Exponents, tolerance: float) -> float:
    """By which power of the width clipping shrinks all updates, which is no multiplier's doing."""
    shrinking = found.shrinking
    return 0.0 if found.clipped or not deviation(shrinking, 0.0, tolerance) else shrinking.value


def _agrees(judged: Finding, answer: Answer | None, tolerance: float) -> bool:
    """Whether the own update grows or shrinks as the response says: a narrow output's gradient may not."""
    growth = deviation(judged.exponents.growth, 0.0, tolerance)
    return growth is answer


def _follows_gradient(use: UseAcrossWidths, found: Exponents) -> bool:
    """A matrix or vector whose update is one of its gradient, of which both sides are known."""
    role = use.role in (Role.INPUT, Role.HIDDEN, Role.VECTOR)
    return role and use.exact and not use.tied and found.degree > 0.5


def _sums_enough(use: UseAcrossWidths, found: Exponents, own_side: Exponent, target: float, tolerance: float) -> bool:
    """Whether a gradient that sums over a growing number of terms may make up for a learning rate that is too low.

    Its own side, which takes the gradient as it is, then asks for more than what was measured does.
    """
    less = deviation(own_side, target, tolerance) is Answer.SHRINKS
    more = deviation(found.response, own_side.value, tolerance) is Answer.GROWS
    return less and more and _follows_gradient(use, found) and deviation(found.response, target, tolerance) is None


def _of_halves(seen: Exponent, target: float, tolerance: float) -> Exponent:
    """An exponent that is a multiple of 1/2: near the target, where its interval holds no other one."""
    if abs(seen.value - target) >= tolerance or seen.low < target - 0.5 or seen.high > target + 0.5:
        return seen
    return seen._replace(low=min(seen.value, target), high=max(seen.value, target))


def _gradient_fan_in(finding: Finding, excess: float, explanation: str) -> Finding:
    return finding._replace(
        verdict=Verdict.LEARNS_TOO_FAST,
        cause=Cause.GRADIENT_FAN_IN,
        learning_rate=-nearest_half(excess),
        explanation=explanation,
    )


def _harmless(judged: Finding) -> bool:
    widest = max(judged.use.fan_ins.values(), default=1)
    excess = judged.gain.value - judged.gain_target
    return judged.use.role is Role.READOUT and excess < 0.75 and judged.use.largest_fan_out >= LARGE_VOCABULARY * widest


def _judge_growth(finding: Finding, shift: float, tolerance: float) -> Finding:
    """Under an optimizer of degree 1: an own update that grows though gain and response are right."""
    use, growth = finding.use, finding.exponents.growth.shifted(-shift)
    if finding.culprit or finding.verdict is not Verdict.OK or finding.exponents.degree < 0.5:
        return finding
    if use.role in (Role.CONSTANT, Role.ATTENTION) or deviation(growth, 0.0, tolerance) is not Answer.GROWS:
        return finding
    why = f"own update ~ m^{growth.value:.2f} though gain and response are right: its gradient sums over terms whose "
    return _gradient_fan_in(finding, growth.value, why + "number grows with the width")


def _common_growth(findings: Sequence[Finding]) -> float:
    """The growth that all updates share: chance in the loss's gradient, which is no parameter's own."""
    values = [f.exponents.growth.value for f in findings if f.exponents.growth.known]
    middle = float(np.median(values)) if values else 0.0
    return middle if abs(middle) < COMMON else 0.0


def _seen(judged: Finding) -> str:
    texts = []
    if judged.gain.known and not math.isnan(judged.gain_target):
        texts.append(f"gain ~ m^{judged.gain.value:.2f} (should be {judged.gain_target:g})")
    if judged.response.known:
        texts.append(f"response ~ m^{judged.response.value:.2f} (should be {judged.response_target:g})")
    found = judged.exponents
    if is_between(found.degree):
        texts.append(f"its update is of degree {found.degree:.2f} in the gradient, neither 0 (Adam) nor 1 (SGD)")
    if abs(found.alignment - 1) > WEAK:
        texts.append(f"weak alignment {found.alignment:.2f}")
    if found.clipped:
        at = ", ".join(map(str, found.clipped))
        texts.append(f"without what shrinks its update at width {at} alone, such as clipping: that is no power of m")
    return ", ".join(texts)
