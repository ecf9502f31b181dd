"""The loop of `fix`: diagnose, apply what the diagnosis asks for, diagnose again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coordcheck.analysis.deviations import deviation
from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.prescriptions import Prescription, positions, prescribe, unjudged
from coordcheck.analysis.verdicts import Verdict
from coordcheck.reporting.fixes import change
from coordcheck.reporting.report import Report
from coordcheck.runs.rules import Rule
from coordcheck.runs.words import Role

Diagnose = Callable[[tuple[Rule, ...]], Report]
"""The report of a model under some rules."""
SWINGS = "its powers go back and forth between diagnoses"
VECTORS = Role.VECTOR, Role.CONSTANT
STILL = 0.25  # of a power: a response that moved by less than this was not moved


class Found(NamedTuple):
    """What the loop ended with."""

    rules: tuple[Rule, ...]
    before: Report
    after: Report
    obstacles: tuple[str, ...]
    """What no rule mends, each with what stands in the way."""
    unjudged: tuple[str, ...] = ()
    """The parameters that no measurement decides, each with the reason."""


def search(diagnose: Diagnose, rounds: int, look: Diagnose, again: Diagnose) -> Found:
    """Rules under which nothing is to blame, or the least.

    Args:
        diagnose: gives the report under some rules.
        rounds: diagnoses whose rules are applied, at most.
        look: likewise, with the outputs of layers before training, beside which a bias is seen.
        again: likewise, with more seeds, beside whose chance a gradient that sums over more and more terms is seen.

    Returns:
        The rules of the best diagnosis, with the first and that one.
    """
    before = _decided(diagnose(()), (), again)
    asked = _asked(before, (), look, 1)
    best, least = Found((), before, before, asked.obstacles), _Score.of(before, asked)
    rules: tuple[Rule, ...] = ()
    visited, told, stuck = [positions(rules)], list[str](), dict[str, str]()
    previous = before
    for number in range(2, rounds + 2):
        swings = dict(_swinging(asked, rules, visited))
        told += [f"{name}: {SWINGS} ({of}): it is left as it is" for name, of in swings.items()]
        new = tuple(rule for rule in asked.rules if rule.name not in {**swings, **stuck})
        if not new:
            break
        rules += new
        visited.append(positions(rules))
        report = _decided(diagnose(rules), rules, again)
        asked = _asked(report, rules, look, number)
        stuck |= _without_effect(new, asked.rules, _findings(previous), _findings(report))
        previous = report
        score = _Score.of(report, asked)
        if score < least:
            best, least = Found(rules, before, report, asked.obstacles), score
        elif swings:  # nothing improves any more
            break
    told += stuck.values()
    after = _findings(best.after)
    left = [f"{rule.name}: still to blame ({rule.cause}) under these rules" for rule in prescribe(after, 1).rules]
    left = [one for one in left if not any(text.startswith(one.partition(": ")[0] + ":") for text in told)]
    obstacles = dict.fromkeys([*best.obstacles, *told, *left])
    return best._replace(obstacles=tuple(obstacles), unjudged=tuple(unjudged(after, best.rules)))


def _decided(report: Report, rules: Sequence[Rule], again: Diagnose) -> Report:
    """The diagnosis, and that with more seeds where nothing is in question but gradients that may sum."""
    findings = _findings(report)
    asked, summing = prescribe(findings, 1), Cause.GRADIENT_FAN_IN.value
    summed = {rule.name for rule in rules if rule.cause == summing}
    if asked.obstacles or any(rule.cause != summing and rule.name not in summed for rule in asked.rules):
        return report
    doubted = asked.rules or any(_may_sum(finding, report.criteria.tolerance) for finding in findings)
    return again(tuple(rules)) if doubted else report


def _asked(report: Report, rules: tuple[Rule, ...], look: Diagnose, number: int) -> Prescription:
    """What a diagnosis asks for, or, where that is nothing, what the outputs say of biases of another scale."""
    findings = _findings(report)
    asked = prescribe(findings, number)
    if asked.rules or asked.obstacles or not any(_may_shrink(f, report.criteria.tolerance) for f in findings):
        return asked
    seen = prescribe(_findings(look(rules)), number)
    return seen._replace(rules=tuple(rule for rule in seen.rules if rule.role in VECTORS))


def _may_sum(finding: Finding, tolerance: float) -> bool:
    """Whether a right parameter's update may grow with the width for its gradient's sake, but for noise."""
    found = finding.exponents
    return finding.verdict is Verdict.OK and found.degree > 0.5 and found.growth.value > tolerance


def _may_shrink(finding: Finding, tolerance: float) -> bool:
    """Whether a bias has another scale at other widths: beside most outputs, that makes no difference."""
    return finding.use.role in VECTORS and deviation(finding.exponents.gain, 0.0, tolerance) is not None


class _Score(NamedTuple):
    """How far a model is from passing; the smaller the better."""

    fails: bool
    size: float
    obstacles: int

    @classmethod
    def of(cls, report: Report, asked: Prescription) -> _Score:
        return cls(report.exit_code != 0, asked.size, len(asked.obstacles))


def _findings(report: Report) -> Sequence[Finding]:
    return report.findings.get(report.labels[0], ())


def _swinging(
    asked: Prescription, rules: Sequence[Rule], visited: Sequence[dict[str, tuple[float, float, float, float]]]
) -> list[tuple[str, str]]:
    """The names whose powers would come back to where they were before the last diagnosis, with these powers."""
    there, back = positions(rules), positions((*rules, *asked.rules))
    found = []
    for name in {rule.name: None for rule in asked.rules}:
        earlier = [at.get(name, (0.0, 0.0, 0.0, 0.0)) for at in visited[:-1]]
        if back[name] in earlier:
            words = zip(("init", "lr", "multiplier", "eps"), there.get(name, back[name]), back[name], strict=True)
            moved = (f"{word} m^{one:g} and m^{other:g}" for word, one, other in words if one != other)
            found.append((name, ", ".join(moved)))
    return found


def _without_effect(
    rules: Sequence[Rule], again: Sequence[Rule], before: Sequence[Finding], after: Sequence[Finding]
) -> dict[str, str]:
    """The names of which what was done is asked for once more, each with why."""
    asked = {rule.name: rule._replace(round=0) for rule in again}
    responses = {f.use.name: f.response.value for f in before if f.response.known}
    later = {f.use.name: f.response.value for f in after if f.response.known}
    found = {}
    for rule in rules:
        if asked.get(rule.name) != rule._replace(round=0):
            continue
        moved = abs(later.get(rule.name, math.nan) - responses.get(rule.name, math.nan))
        rate = rule.cause == Cause.LEARNING_RATE.value and moved < STILL
        why = "and its update did not: the optimizer does not use its groups' lr" if rate else "and as much is left"
        what = (
            f"its learning rate became another (× m^{rule.learning_rate:g})" if rate else f"{change(rule)} was applied"
        )
        found[rule.name] = f"{rule.name}: {what}, {why}"
    return found
