"""What the settings themselves tell, without a slope: notes for the reader of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.remedies import BASE, power
from coordcheck.analysis.slopes import exponent_of
from coordcheck.analysis.small_gradients import soon
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.records import RunRecord
from coordcheck.runs.repeats import PARTS, starred, together
from coordcheck.runs.words import Quantity, Status

NAMES = 3  # named of many
EPS_VISIBLE = 0.05  # degree in the gradient from which on Adam's eps (or a clipped SGD) is seen

LIMITS = (
    "not seen by any coordinate check: constants that do not depend on the width, weight decay equilibria, schedules, "
    "depth, loss of alignment late in training. Passing does not prove that learning rates transfer."
)


def audit(records: Sequence[RunRecord], findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Notes on every label: its decay, degrees and first movement; and labels that are one and the same."""
    notes = []
    for label, found in findings.items():
        own = [record for record in records if record.key.label == label]
        mended = {f.use.parameter: f.learning_rate for f in found if f.culprit}
        of_eps = list(soon(found, own))
        told = (
            *_common(found),
            *decay_notes(own, mended),
            *_movement(found),
            *(of_eps if of_eps or any(f.cause is Cause.EPS for f in found) else _degrees(own, found)),
            *_clipped(found),
            *_not_visible(found),
        )
        notes += [f"{label}: {note}" for note in told]
    return [*notes, *_identical(records), *_same_seeds(records)]


def _same_seeds(records: Sequence[RunRecord]) -> Iterator[str]:
    """Several seeds of a label that gave the same numbers: they are one run, and its intervals mean nothing."""
    runs: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        if record.finished and record.parameters:
            runs.setdefault((record.key.label, record.key.width), []).append(record)
    same: dict[str, set[int]] = {}
    for (label, width), several in runs.items():
        if len(several) > 1 and all(record.rows == several[0].rows for record in several[1:]):
            same.setdefault(label, set()).add(width)
    for label, widths in same.items():
        if len(widths) == sum(key[0] == label for key in runs):
            yield (
                f"{label}: all seeds gave the same numbers, so the intervals say nothing: does build set a seed "
                "itself? Leave that to the check"
            )


def _common(found: Sequence[Finding]) -> Iterator[str]:
    """Every response off by one and the same power."""
    judged = [f for f in found if not math.isnan(f.response_target) and f.response.known]
    rates = {f.learning_rate for f in judged}
    if len(judged) > 1 and len(rates) == 1 and all(f.cause is Cause.LEARNING_RATE for f in judged):
        factor = f"{power(rates.pop())}, {BASE}"
        yield f"all learning rates are off by one factor: multiply the base learning rate by {factor}"


def decay_notes(records: Sequence[RunRecord], mended: Mapping[str, float] | None = None) -> Iterator[str]:
    """The slope of learning rate times weight decay, which a decay acts by that no gradient is normalised with.

    Args:
        records: the runs of one label.
        mended: by parameter, the power of the width by which its learning rate is to be multiplied: with it done.

    Yields:
        A note per set of parameters whose decay is off.
    """
    mended = mended or {}
    by_name: dict[str, dict[int, float]] = {}
    for record in records:
        for info in record.parameters:
            if info.learning_rate and info.weight_decay and info.pulled is not False:
                by_name.setdefault(info.name, {})[record.key.width] = info.learning_rate * info.weight_decay
    found = {name: exponent_of(at) + mended.get(name, 0.0) for name, at in by_name.items()}
    slopes = {name: round(slope * 2) / 2 for name, slope in found.items() if math.isfinite(slope)}
    for slope in sorted({slope for slope in slopes.values() if slope}):
        names = [name for name, found in slopes.items() if found == slope]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        then = ", once the learning rates are as said," if any(mended.get(name) for name in names) else ""
        yield (
            f"learning rate x weight decay of {names[0]}{more}{then} scales as m^{slope:g} ({BASE}): a decoupled decay "
            "(AdamW), or that of SGD, then pulls less or more with the width; multiply weight_decay by "
            f"{power(-slope)} to keep its pull"
        )


def _movement(found: Sequence[Finding]) -> Iterator[str]:
    steps = {f.exponents.step for f in found if f.exponents.moved}
    if steps and min(steps) > 1:
        yield f"nothing moved before t={min(steps)}: is the learning rate zero at first? Judged there"


def _degrees(records: Sequence[RunRecord], found: Sequence[Finding]) -> Iterator[str]:
    """Updates that follow the gradient in part: beside a large eps, or some of whose coordinates are clipped."""
    shares = _shares_of_eps(records, found)
    between = {
        f.use.parameter: degree
        for f in found
        if f.exponents.has_gradient
        and f.verdict is not Verdict.NOT_VISIBLE
        and EPS_VISIBLE < (degree := max(f.exponents.degree, shares.get(f.use.name, 0.0))) < 1 - EPS_VISIBLE
        and f.use.parameter
    }
    if between:
        name, degree = next(iter(between.items()))
        more = f" and {len(between) - 1} more" if len(between) > 1 else ""
        yield (
            f"the update of {name}{more} is of degree {degree:.2f} in the "
            "gradient, neither 0 (Adam) nor 1 (SGD): is eps as large as the gradient? "
            "Or are some of its coordinates clipped?"
        )


def _shares_of_eps(records: Sequence[RunRecord], found: Sequence[Finding]) -> dict[str, float]:
    """The largest eps / (eps + RMS(g)) by use, at its first movement: the degree in g of Adam's g / (|g| + eps)."""
    steps = {f.use.name: f.exponents.step - 1 for f in found if f.exponents.moved and f.exponents.degree < EPS_VISIBLE}
    shares: dict[str, float] = {}
    for record in records:
        eps = {info.name: info.eps for info in record.parameters if info.eps}
        uses = {use.site: use.parameter for use in record.uses if use.parameter in eps}
        for row in record.rows:
            if row.quantity is Quantity.WEIGHT_GRADIENT and row.site in uses and row.value:
                name, added = record.sites[row.site].layer, eps[uses[row.site]]
                if steps.get(name) == row.step:
                    shares[name] = max(shares.get(name, 0.0), added / (added + row.value))
    return shares


def _clipped(found: Sequence[Finding]) -> Iterator[str]:
    """What stands between gradients and updates, such as clipping, and depends on the width."""
    own = [f for f in found if f.use.parameter and f.use.trained and f.verdict is not Verdict.NOT_VISIBLE]
    some = [f for f in own if f.exponents.clipped]
    if some:
        widths = sorted({width for f in some for width in f.exponents.clipped})
        yield (
            f"something shrinks the updates of {listed([f.use.name for f in some])} at width "
            f"{', '.join(map(str, widths))} and not at others, such as clipping: that is no power of the width. Raise "
            "its threshold until it never acts, or lower it until it always does"
        )
        return
    slopes = [f.exponents.shrinking.value for f in own if f.exponents.shrinking.known]
    slope = round(float(np.median(slopes)) * 2) / 2 if slopes else 0.0
    if slope:
        yield (
            f"updates are m^{np.median(slopes):.2f} times learning rate x gradient ({BASE}): something shrinks them, "
            f"{'more' if slope < 0 else 'less'} at larger widths, such as clipping. Multiply its threshold by "
            f"{power(-slope)}, or the learning rates as said"
        )


def _not_visible(found: Sequence[Finding]) -> Iterator[str]:
    """Parameters of which nothing is said, with the reason."""
    reasons: dict[str, list[str]] = {}
    for finding in found:
        if finding.verdict is Verdict.NOT_VISIBLE:
            reasons.setdefault(finding.explanation, []).append(finding.use.name)
    for reason, names in reasons.items():
        yield f"not visible: {listed(names)}: {reason}"


def listed(names: Sequence[str]) -> str:
    """Some names: those of repeated blocks as one that says which, and at most three.

    >>> listed(["a", "blocks.0.b", "blocks.1.b", "blocks.2.b"])
    'a, blocks.{0..2}.b (3)'
    """
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(starred(name, PARTS) if len(names) > NAMES else name, []).append(name)
    groups = [group for same in alike.values() for group in together(same)]
    texts = [f"{name} ({len(group)})" if len(group) > 1 else name for name, group in groups]
    return ", ".join(texts[:NAMES]) + (f" and {len(texts) - NAMES} more" if len(texts) > NAMES else "")


def _identical(records: Sequence[RunRecord]) -> Iterator[str]:
    """Labels all of whose runs gave the same numbers: one of them was never switched on."""
    values: dict[str, dict[tuple[int, int], list[tuple[int, int, str, float]]]] = {}
    for record in records:
        if record.finished:
            rows = [
                (row.site, row.step, row.quantity.value, row.value)
                for row in record.rows
                if row.status is Status.OK and row.value is not None
            ]
            values.setdefault(record.key.label, {})[record.key.width, record.key.seed] = rows
    labels = list(values)
    for number, label in enumerate(labels):
        for other in labels[:number]:
            if values[label] and any(values[label].values()) and values[label] == values[other]:
                yield f"{other} and {label} gave identical numbers: was the difference between them switched on?"
