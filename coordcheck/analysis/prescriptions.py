"""Findings -> rules: what to change of each parameter, and what no rule mends, with what stands in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.repeats import PARTS, starred
from coordcheck.runs.rules import OFF, Linear, Rule
from coordcheck.runs.words import Role, Side, Through

MODULE_WORDS = "no module's input or output is that alone"
OPERATIONS = (Cause.ATTENTION_SCALE, Cause.FORWARD_SCALE)


class Prescription(NamedTuple):
    """What one diagnosis asks for."""

    rules: tuple[Rule, ...]
    obstacles: tuple[str, ...]

    @property
    def size(self) -> float:
        """The sum of all powers that it asks for."""
        return sum(abs(r.init) + abs(r.learning_rate) + abs(r.multiplier) + abs(r.eps) for r in self.rules)


def prescribe(findings: Sequence[Finding], number: int) -> Prescription:
    """The rules of one label's findings.

    Args:
        findings: one per parameter and use.
        number: of the diagnosis, from 1 on.

    Returns:
        The rules, and what none of them mends.
    """
    rules: list[Rule] = []
    obstacles: list[str] = []
    for finding in findings:
        if not finding.culprit:
            continue
        rule, why = _rule(finding, number)
        if why:
            obstacles.append(f"{finding.use.name}: {why}")
        else:
            rules.append(rule)
    rules += _of_unseen(rules, findings, number)
    rules = [_placed(rule, obstacles) for rule in _with_one_learning_rate(_once(rules), findings)]
    rules = [rule for rule in rules if rule.init or rule.learning_rate or rule.multiplier or rule.eps]
    return Prescription(tuple(rules), tuple(dict.fromkeys(obstacles)))


OPEN = (Verdict.NOT_VISIBLE, Verdict.UNDECIDED, Verdict.NOT_FINITE)


def unjudged(findings: Iterable[Finding], rules: Iterable[Rule]) -> list[str]:
    """The trained parameters that no measurement decides, each with the reason; not those that repeats stand for."""
    ruled, found = {rule.name for rule in rules}, []
    for finding in findings:
        use = finding.use
        told = use.name in ruled and finding.verdict is not Verdict.UNDECIDED
        if finding.verdict in OPEN and use.trained and use.role is not Role.FUNCTION and not told:
            found.append(f"{use.name}: {finding.verdict.value}: {finding.explanation}")
    return found


def _rule(finding: Finding, number: int) -> tuple[Rule, str]:
    """The rule of a culprit, and why there is none."""
    use, cause = finding.use, finding.cause
    rule = Rule(
        *(use.name, use.parameter, use.role, finding.init, finding.learning_rate, finding.multiplier, finding.eps),
        degree=0 if finding.exponents.degree < 0.5 else 1,
        cause="" if cause is None else cause.value,
        round=number,
    )
    if cause is Cause.FROZEN:
        return rule, "it has a gradient and never moves: give it to the optimizer, with a learning rate above 0"
    channels, irregular = _channels(use.channels)
    if irregular and (channels or use.channels):
        return rule, irregular
    block = use.name.startswith(f"{use.parameter}[")
    second = bool(use.parameter) and not block and use.name != use.parameter
    rule = rule._replace(channels=channels)
    if cause is Cause.FORWARD_SCALE:
        return rule._replace(module=use.layer, side=Side.OUTPUT), ""
    if block and not channels:
        return rule, "which of its rows that is, is not known"
    at_use = cause in OPERATIONS or (finding.multiplier and (second or use.through is Through.NORMED))
    if at_use and not use.module:
        attends = cause is Cause.ATTENTION_SCALE
        what = "the attention scale" if attends else "a multiplier"
        where = "where its queries, or keys, are made" if attends else "at this use"
        return rule, f"{what} × m^{finding.multiplier:g} is needed {where}, and {MODULE_WORDS}"
    if at_use or block:
        return rule._replace(module=use.module, side=use.side), ""
    return rule, ""


def _of_unseen(rules: Sequence[Rule], findings: Sequence[Finding], number: int) -> list[Rule]:
    """Rules of parameters without a gradient, such as those of experts without tokens: those of all their repeats.

    Repeats are of the same size, with names that differ in numbers alone, and need the same.
    """
    ruled = {rule.name: rule for rule in rules if rule.name == rule.parameter}
    repeats: dict[tuple[str, tuple[int, ...]], list[Finding]] = {}
    for finding in findings:
        sizes = tuple(finding.use.sizes.values())
        repeats.setdefault((starred(finding.use.name, PARTS), sizes), []).append(finding)
    found = []
    for alike in repeats.values():
        unseen = [f for f in alike if f.verdict is Verdict.NOT_VISIBLE and f.use.trained and f.use.parameter]
        seen = [ruled.get(f.use.name) for f in alike if f.verdict is not Verdict.NOT_VISIBLE]
        first = seen[0] if seen else None
        if first is None or any(rule is None or rule[3:] != first[3:] for rule in seen):
            continue
        cause = f"{first.cause}, as of its repeats"
        found += [first._replace(name=f.use.name, parameter=f.use.parameter, cause=cause, round=number) for f in unseen]
    return found


def _placed(rule: Rule, obstacles: list[str]) -> Rule:
    """A rule without a learning rate of some rows, where no module gives what these make."""
    axis = rule.channels[1].start if rule.channels else 1.0
    if not rule.channels or not rule.parameter or not rate_of(rule) or (rule.module and axis):
        return rule
    obstacles.append(
        f"{rule.name}: a learning rate × m^{rate_of(rule):g} of these rows alone is needed, and no module gives what "
        "they make: make them a parameter of their own"
    )
    return rule._replace(init=rule.init + rule.multiplier, learning_rate=0.0, multiplier=0.0)


def _channels(at: Mapping[int, tuple[int, ...]]) -> tuple[tuple[Linear, ...], str]:
    """Which channels a block is at any width, from those that it is at several, and why that is not known."""
    numbers = {width: found for width, found in at.items() if found}
    if not numbers:
        return (), ""
    lengths = {len(found) for found in numbers.values()}
    if len(numbers) < len(at) or len(lengths) > 1:
        return (), "its channels are not laid out alike at all widths"
    (first, one), (last, other) = min(numbers.items()), max(numbers.items())
    found = []
    for place in range(lengths.pop()):
        slope = (other[place] - one[place]) / (last - first) if last > first else 0.0
        linear = Linear(one[place] - slope * first, slope)
        if any(abs(linear.start + linear.slope * width - numbers[width][place]) > OFF for width in numbers):
            return (), "its channels do not grow in proportion to the width"
        found.append(linear)
    return tuple(found), ""


def _once(rules: Sequence[Rule]) -> list[Rule]:
    """Uses of one parameter share its initial values and its learning rate: what they ask for alike is done once."""
    asked: dict[str, Rule] = {}
    found = []
    for rule in rules:
        first = asked.get(rule.parameter)
        if not rule.parameter or rule.channels or first is None:
            if rule.parameter and not rule.channels:
                asked[rule.parameter] = rule
            found.append(rule)
            continue
        rule = rule._replace(
            init=_beyond(rule.init, first.init), learning_rate=_beyond(rule.learning_rate, first.learning_rate)
        )
        if rule.init or rule.learning_rate or rule.multiplier or rule.eps:
            found.append(rule)
    return found


def _beyond(power: float, done: float) -> float:
    """What is left of a power, where some of the same sign is done already."""
    if power * done <= 0:
        return power
    return power - done if abs(power) > abs(done) else 0.0


def _with_one_learning_rate(rules: Sequence[Rule], findings: Sequence[Finding]) -> list[Rule]:
    """With the learning rate that most blocks of a parameter ask for as the parameter's own."""
    blocks = Counter(
        finding.use.parameter
        for finding in findings
        if finding.use.name.startswith(f"{finding.use.parameter}[") and finding.verdict not in OPEN
    )
    powers: dict[str, Counter[float]] = {}
    for rule in rules:
        if rule.channels and rule.parameter:
            powers.setdefault(rule.parameter, Counter())[rate_of(rule)] += 1
    common = {}
    for parameter, found in powers.items():
        found[0.0] += blocks[parameter] - sum(found.values())
        common[parameter] = found.most_common(1)[0][0]
    kept: list[Rule] = []
    told: set[str] = set()
    for rule in rules:
        shared = common.get(rule.parameter, 0.0) if rule.channels else 0.0
        if shared and rule.parameter not in told:
            told.add(rule.parameter)
            whole = Rule(rule.parameter, rule.parameter, rule.role, learning_rate=shared, degree=rule.degree)
            kept.append(whole._replace(cause=rule.cause, round=rule.round))
        rule = rule._replace(learning_rate=rule.learning_rate - shared)
        if rule.init or rule.multiplier or rule.learning_rate or rule.eps:
            kept.append(rule)
    for parameter, shared in common.items():  # blocks that nothing was asked for take the parameter's rate back
        kept += _others(parameter, shared, rules, findings) if shared else []
    return kept


def _others(parameter: str, shared: float, rules: Sequence[Rule], findings: Sequence[Finding]) -> list[Rule]:
    asked = {rule.name for rule in rules}
    found = []
    for finding in findings:
        use = finding.use
        measured = use.name.startswith(f"{parameter}[") and finding.verdict not in OPEN
        if use.parameter == parameter and measured and use.name not in asked:
            like = next(rule for rule in rules if rule.parameter == parameter and rule.channels)
            rule = Rule(use.name, parameter, use.role, learning_rate=-shared, degree=like.degree, round=like.round)
            found.append(rule._replace(module=use.module, side=use.side, channels=_channels(use.channels)[0]))
    return found


def rate_of(rule: Rule) -> float:
    """The power of its learning rate where a multiplier stands in its initial values and learning rate."""
    return rule.learning_rate + (1 + rule.degree) * rule.multiplier


def positions(rules: Iterable[Rule]) -> dict[str, tuple[float, float, float, float]]:
    """By name, where all rules together have brought a parameter: powers of init, rate, multiplier and eps."""
    found: dict[str, tuple[float, float, float, float]] = {}
    for rule in rules:
        before = found.get(rule.name, (0.0, 0.0, 0.0, 0.0))
        powers = (rule.init, rule.learning_rate, rule.multiplier, rule.eps)
        found[rule.name] = tuple(a + b for a, b in zip(before, powers, strict=True))  # type: ignore[assignment]  # four
    return found
