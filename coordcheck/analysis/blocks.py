"""Findings of a parameter's uses, and of a matrix' blocks -> those that are told."""

from __future__ import annotations

from collections.abc import Sequence

from coordcheck.analysis.findings import Cause, Finding
from coordcheck.analysis.verdicts import Verdict

BESIDE = ", ...]"  # the end of the name of one of several stacked matrices, each of which has parts


def choose_blocks(findings: Sequence[Finding]) -> list[Finding]:
    """Blocks that agree with one another say no more than the whole; the whole says less than blocks that differ.

    A stack of fused matrices has blocks of two kinds: its matrices, and the parts of all of them.
    """
    kinds: dict[str, dict[bool, list[Finding]]] = {}
    for finding in findings:
        if _is_block(finding):
            of_parameter = kinds.setdefault(finding.use.parameter, {})
            of_parameter.setdefault(finding.use.name.endswith(BESIDE), []).append(finding)
    differing = {name: [blocks for blocks in found.values() if _differ(blocks)] for name, found in kinds.items()}
    kept = []
    for finding in findings:
        shown = differing.get(finding.use.parameter, [])
        is_block = any(finding in blocks for blocks in kinds.get(finding.use.parameter, {}).values())
        if len(shown) > 1 and not is_block:
            why = "some of its matrices differ from the others, and so do the parts of all of them"
            kept.append(Finding(finding.use, finding.exponents, Verdict.UNDECIDED, explanation=why))
        elif finding in shown[0] if len(shown) == 1 else not is_block:
            kept.append(finding)
    return kept


def _differ(blocks: Sequence[Finding]) -> bool:
    return len({(found.cause, found.init, found.learning_rate, found.multiplier) for found in blocks}) > 1


def _is_block(finding: Finding) -> bool:
    name, parameter = finding.use.name, finding.use.parameter
    return name != parameter and name.startswith(f"{parameter}[")


def with_one_rate(findings: Sequence[Finding]) -> list[Finding]:
    """With uses of a parameter undecided that ask for a power of its learning rate that another rules out: it has one.

    Another that asks for the opposite does, and the first one, where that is right as it is.
    """
    asked: dict[tuple[str, float], str] = {}
    right: dict[str, str] = {}
    for finding in findings:
        if finding.cause is Cause.LEARNING_RATE and not _is_block(finding):
            asked.setdefault((finding.use.parameter, finding.learning_rate), finding.use.name)
        elif finding.verdict is Verdict.OK and finding.response.known and not (finding.use.tied or _is_block(finding)):
            right.setdefault(finding.use.parameter, finding.use.name)
    found = []
    for finding in findings:
        if finding.cause is Cause.LEARNING_RATE and finding.use.parameter and not _is_block(finding):
            opposite = asked.get((finding.use.parameter, -finding.learning_rate))
            why = f"{opposite} asks for the opposite" if opposite is not None else ""
            why = why or (f"{right[finding.use.parameter]} is right" if finding.use.parameter in right else "")
            if why:
                why = f"{finding.explanation}; it has one learning rate, and {why}"
                finding = Finding(finding.use, finding.exponents, Verdict.UNDECIDED, explanation=why)
        found.append(finding)
    return found
