"""The loop of `fix`: diagnose, apply what the diagnosis asks for, diagnose again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.prescriptions import Prescription, positions, prescribe, unjudged
from coordcheck.reporting.report import Report
from coordcheck.runs.rules import Rule

Diagnose = Callable[[tuple[Rule, ...]], Report]
"""The report of a model under some rules."""
STILL = 0.25  # of a power: a response that moved by less than this was not moved


class Found(NamedTuple):
    """What the loop ended with."""

    rules: tuple[Rule, ...]
    before: Report
    after: Report
    obstacles: tuple[str, ...]
    """What no rule mends, each with what stands in the way."""


def search(diagnose: Diagnose, rounds: int, label: Callable[[Report], str]) -> Found:
    """Rules under which nothing is to blame, or the least.

    Args:
        diagnose: gives the report under some rules.
        rounds: diagnoses whose rules are applied, at most.
        label: of the model in a report.

    Returns:
        The rules of the best diagnosis, with the first and that one.
    """
    report = before = diagnose(())
    rules: tuple[Rule, ...] = ()
    asked = prescribe(before.findings.get(label(before), ()), 1)
    best = Found(rules, before, before, asked.obstacles)
    least, visited, told = asked.size, [positions(rules)], list[str]()
    for number in range(2, rounds + 2):
        swings = _swinging(asked, rules, visited)
        told += [f"{name}: its powers go back and forth between diagnoses ({of}): left as they are" for name, of in swings]
        new = tuple(rule for rule in asked.rules if rule.name not in dict(swings))
        if not new:
            break
        tried = rules + new
        report = diagnose(tried)
        found = report.findings.get(label(report), ())
        told += _without_effect(new, best.after.findings[label(best.after)], found)
        asked = prescribe(found, number)
        if asked.size >= least and report.exit_code:
            told += [f"{rule.name}: still {rule.cause} after × m^{_power(rule):g} more" for rule in asked.rules]
            break
        rules, least = tried, asked.size
        visited.append(positions(rules))
        best = Found(rules, before, report, asked.obstacles)
        if not asked.rules:
            break
    after = best.after.findings.get(label(best.after), ())
    named = {rule.name for rule in prescribe(after, 1).rules}
    told += [f"{name}: still to blame after {rounds} rounds" for name in named if not any(name in text for text in told)]
    return best._replace(obstacles=tuple(dict.fromkeys([*best.obstacles, *told, *unjudged(after)])))


def _power(rule: Rule) -> float:
    return rule.init or rule.learning_rate or rule.multiplier or rule.eps


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


def _without_effect(rules: Sequence[Rule], before: Sequence[Finding], after: Sequence[Finding]) -> list[str]:
    """Whose update is what it was though its learning rate became another."""
    responses = {f.use.name: f.response.value for f in before if f.response.known}
    later = {f.use.name: f for f in after}
    found = []
    for rule in rules:
        finding = later.get(rule.name)
        plain = rule.learning_rate and not rule.init and not rule.multiplier
        if not plain or finding is None or finding.cause is not Cause.LEARNING_RATE or rule.name not in responses:
            continue
        moved = finding.response.value - responses[rule.name]
        if abs(moved) < STILL and abs(rule.learning_rate) >= 2 * STILL:
            found.append(
                f"{rule.name}: its learning rate became another (× m^{rule.learning_rate:g}), and its update did not: "
                "the optimizer does not use its groups' lr"
            )
    return found
