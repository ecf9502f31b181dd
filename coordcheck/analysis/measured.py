"""Whether a parameter without a fault is right: by what was measured, and not by what its shape alone says."""

from __future__ import annotations

import math

from coordcheck.analysis.deviations import compare_known, deviation
from coordcheck.analysis.exponents import Exponents
from coordcheck.analysis.findings import Finding
from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.spectra import CLOSE, ERRORS
from coordcheck.analysis.verdicts import Answer, Verdict
from coordcheck.runs.words import Role

UNSIZED = frozenset({"module", "curve"})  # where a parameter's own size does not tell what it does


def _not_decided(judged: Finding, tolerance: float) -> str:
    """Why a parameter is not right though nothing is to blame; empty where it is.

    What a vector does is its own coordinates: its size, and its own update. What starts at zero has no gain.
    """
    found, vector = judged.exponents, judged.use.role in (Role.VECTOR, Role.CONSTANT)
    measured = {
        "gain": found.gain.known or vector or found.zero_init,
        "response": found.response.known or (vector and found.growth.known),
    }
    missing = [name for name, known in measured.items() if not known]
    if missing:
        return f"its {' and '.join(missing)} could not be measured"
    off = compare_known(found.gain, judged.gain_target, tolerance) not in (None, Answer.OK)
    if judged.use.operation in UNSIZED and off:
        target = f"(should be {judged.gain_target:g})"
        return f"gain ~ m^{found.gain.value:.2f} {target}, of which its size may be the cause"
    return ""


def without_fault(judged: Finding, tolerance: float) -> Finding:
    """Right, where gain and response were measured and decide."""
    answers = (
        compare_known(judged.gain, judged.gain_target, tolerance),
        compare_known(judged.response, judged.response_target, tolerance),
    )
    missing = _not_decided(judged, tolerance)
    if missing or Answer.UNDECIDED in answers or not judged.response.known or judged.exponents.clipped:
        why = "; ".join(filter(None, (judged.explanation, missing))) or "its exponents could not be measured"
        return judged._replace(verdict=Verdict.UNDECIDED, explanation=why)
    return judged._replace(verdict=Verdict.OK, cause=None, learning_rate=0.0)


def on_whole_batch(
    response: Exponent, found: Exponents, target: float, tolerance: float, *, summed: bool
) -> tuple[Exponent, str]:
    """The response to judge, where that on a few examples and that on the whole batch are known.

    The update of an optimizer that looks at a whole matrix, as one that makes it orthonormal or of a given rank does,
    depends on the number of examples, and may begin with others than those of training.

    Args:
        response: on the probe, at the first update.
        found: the use's exponents.
        target: what the response should be.
        tolerance: how far from it still counts as being it.
        summed: whether the operation sums over a growing axis: there an update of many examples is less aligned with
            its input than training makes it. Where only one of the two is off, nothing is decided then, nor where it
            is that on the whole batch. Where both are, it is that on the whole batch whose first update already does
            not do what that on the probe does, for want of examples; updates that only become others later do not tell
            which is right.

    Returns:
        The response to judge, and why; nothing where it is the one that was given.
    """
    whole = found.on_batch
    if round(found.degree) or not whole.known or not response.known:
        return response, ""
    off, also = (deviation(one, target, tolerance) for one in (response, whole))
    noise = ERRORS * math.hypot(response.stderr, whole.stderr)
    if abs(response.value - whole.value) < (noise if off else max(noise, CLOSE)):  # nobody is accused on the verge
        return response, ""
    if off is also:
        lacks_examples = abs(response.value - found.first_on_batch.value) > max(noise, CLOSE)
        return (whole if lacks_examples or not summed else response), ""
    why = f"response ~ m^{response.value:.2f} at its first update on the few examples of the probe, "
    why += f"and m^{whole.value:.2f} {'after more ' if summed else ''}on the whole batch"
    if not summed and also is None:
        return whole, why
    both = Exponent(whole.value, whole.stderr, min(response.low, whole.low), max(response.high, whole.high))
    return both, f"{why}: such an optimizer needs examples as many as the rank of its update, give them as probe="
