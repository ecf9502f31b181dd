"""Which side decided an exponent: what was measured, or what is read off the structure, and who was right.

The measured side is a gain or response on the probe; the structure's is the same from the parameter's own values, its
fans and scalars. The right value is known: a parameter's target, moved by the power of the width that was planted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import coordcheck
from coordcheck.analysis.findings import Finding
from faultbench.faults import Fault

APART = 0.25
"""Distance from which on two exponents are two answers: exponents are multiples of 1/2."""


class Decision(NamedTuple):
    """One exponent of one parameter."""

    how: str
    """ "measured alone", "structure alone", "agreed, measured", "agreed, structure narrowed", or "disagreed, ..."."""
    judged: bool
    """Whether the value that was judged is right."""
    measured: bool
    structure: bool


def decisions(case: Fault, report: coordcheck.Report) -> list[Decision]:
    """Every gain and every response that was judged; blocks and second uses of one parameter are left out."""
    found = []
    for finding in (finding for findings in report.findings.values() for finding in findings):
        if finding.use.parameter and not finding.use.tied and finding.use.name == finding.use.parameter:
            found += [decision for what in ("gain", "response") if (decision := _decision(finding, what, case.truth))]
    return found


def _decision(finding: Finding, what: str, truth: Mapping[str, tuple[str, float]]) -> Decision | None:
    judged, target = getattr(finding, what), getattr(finding, f"{what}_target")
    measured, structure = getattr(finding.exponents, what), getattr(finding.exponents, f"{what}_weight")
    cause, exponent = truth.get(finding.use.parameter, ("", 0.0))
    if not judged.known or math.isnan(target) or math.isnan(exponent):
        return None
    both = 1 if what == "gain" else 1 + round(finding.exponents.degree)
    planted = {"init": what == "gain", "lr": what == "response", "multiplier": both}.get(cause, 0) * exponent
    right = [abs(side.value - (target - planted)) <= APART for side in (judged, measured, structure)]
    nearer = abs(judged.value - measured.value) < abs(judged.value - structure.value)
    if not structure.known:
        how = "measured alone"
    elif not measured.known:
        how = "structure alone"
    elif abs(measured.value - structure.value) <= APART:
        how = "agreed, measured" if nearer else "agreed, structure narrowed"
    else:
        how = "disagreed, measured decided" if nearer else "disagreed, structure decided"
    return Decision(how, *right)


HOW = (
    *("measured alone", "structure alone", "agreed, measured", "agreed, structure narrowed"),
    *("disagreed, measured decided", "disagreed, structure decided"),
)


def count(found: Iterable[Decision]) -> str:
    """The table of how often each side decided, and which was right."""
    by_how: dict[str, list[Decision]] = {how: [] for how in HOW}
    for decision in found:
        by_how[decision.how].append(decision)
    lines = [
        f"{'gains and responses':32}{'number':>8}{'right':>8}{'measured only':>16}{'structure only':>16}{'neither':>10}"
    ]
    for how, own in by_how.items():
        who = Counter((decision.measured, decision.structure) for decision in own)
        cells = (
            len(own),
            sum(decision.judged for decision in own),
            who[True, False],
            who[False, True],
            who[False, False],
        )
        lines += [
            f"{how:32}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, (8, 8, 16, 16, 10), strict=True))
        ]
    return "\n".join(lines)
