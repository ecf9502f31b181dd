"""What every form of the report says, as plain values: headline per label, culprits alike grouped, worst layers first.

The text on a terminal, the page, the annotations of a CI job and a failing test show the same content; it is composed
here once, without any markup.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from coordcheck.analysis.designs import Design, by_design
from coordcheck.analysis.findings import Cause
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict, summary
from coordcheck.common.escaping import printable
from coordcheck.runs.repeats import PARTS, starred, together
from coordcheck.runs.words import Role


class Headline(NamedTuple):
    """One label's verdict in a line; names in it are as the user wrote them."""

    label: str
    verdict: Verdict
    """The label's own; ok also where a parameter is to blame that has no symptom yet."""
    failed: bool
    """A layer is violated, or a parameter is to blame."""
    brief: str
    """How many layers and parameters."""
    text: str
    """The same, over which widths, and what else belongs to it."""

    @property
    def word(self) -> str:
        return "VIOLATED" if self.failed else self.verdict.value.upper()


class Blame(NamedTuple):
    """Culprits that need the same change: one parameter, or those of repeated blocks."""

    name: str
    """The parameter's, or one that says which several there are, such as `blocks.{0..5}.mlp.up.weight`."""
    parameters: tuple[str, ...]
    verdict: str
    cause: str
    change: str
    """What to multiply by which power of m = width / base width."""
    explanation: str
    """Of the first of them."""
    remedy: str
    """What to change, in full: of the first of them, without its name."""


class Evidence(NamedTuple):
    """The exponent that a verdict was read from, beside the one that it should be."""

    what: str
    exponent: float
    half: float
    """Half of a layer's 95 % interval, two standard errors of a parameter's exponent."""
    expected: float


def of_label(report: Result, label: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One label's verdicts: those of its layers, and those of its parameters."""
    own = report.verdicts[report.verdicts["label"] == label]
    return own[own["role"].isna()], own[own["role"].notna()]


def headline(report: Result, label: str) -> Headline:
    """One label's verdict in a line.

    Raises:
        KeyError: no such label.
    """
    status = report.status[label]
    if label in report.too_few_widths:
        return Headline(label, status, False, "no verdict: too few widths", report.too_few_widths[label])
    table, parameters = of_label(report, label)
    words, widths = [Verdict(word) for word in table["verdict"]], report.widths_of(label)
    span = f"from {report.criteria.axis} {widths[0]} to {widths[-1]}"
    symptoms, causes = summary(words) if words else "", blamed_text(parameters)
    name = report.parametrizations.get(label)
    named = f"{causes} (exponents of {name})" if name and causes else causes
    blamed = bool(parameters["culprit"].any())
    if blamed and words and not any(word.violated for word in words):  # what fails comes first
        brief = [causes, "no layer shows it yet"]
        parts = [named, f"no layer shows it yet: {symptoms} {span}"]
    else:
        brief = [symptoms, causes]
        parts = [f"{symptoms} {span}" if symptoms else "", named]
    if status.passes:  # what visibly falls and is right
        parts.append(design_text(by_design(report, label)))
    if status.violated and not blamed:
        first = next((layer for layer, word in zip(table["layer"], words, strict=True) if word.violated), "")
        parts.append(f"first {first}")
    elif not blamed and (table.loc[table["verdict"] == Verdict.UNDECIDED.value, "step"] >= 0).any():
        parts.append("add seeds, or a wider range of widths")
    failed = status.violated or blamed
    return Headline(label, status, failed, "; ".join(filter(None, brief)), "; ".join(filter(None, parts)))


def counts(parameters: pd.DataFrame) -> tuple[int, int, int]:
    """Parameters to blame, all parameters, and what else is to blame: attention scales, modules without parameters.

    A parameter that is used twice, or is judged in blocks, is one.
    """
    own = parameters[parameters["parameter"].notna()]
    blamed = own["culprit"].astype(bool)
    others = int(parameters["culprit"].astype(bool).sum()) - int(blamed.sum())
    return int(own.loc[blamed, "parameter"].nunique()), int(own["parameter"].nunique()), others


def blamed_text(parameters: pd.DataFrame) -> str:
    """How many parameters are to blame, in words; empty where nothing was diagnosed."""
    if parameters.empty:
        return ""
    blamed, total, others = counts(parameters)
    roles = set(parameters.loc[parameters["culprit"].astype(bool) & parameters["parameter"].isna(), "role"])
    where = ("attention ", "") if roles == {Role.ATTENTION.value} else ("", " in the code")
    scales = f"{others} {where[0]}scale{'s' * (others > 1)}{where[1]}"
    if others and not blamed:
        return f"{scales} to blame, none of {total} parameters"
    return f"{blamed or 'none'} of {total} parameters{f' and {scales}' if others else ''} to blame"


def design_text(found: Sequence[Design]) -> str:
    """The scales at initialisation that are not flat, by design: `by design: head m^-0.5 at t=0`."""
    powers: dict[float, list[str]] = {}
    for design in found:
        powers.setdefault(design.exponent, []).append(design.layer)
    told = [
        f"{layers[0] if len(layers) == 1 else f'{len(layers)} layers'} "
        + (f"m^{power:g}" if math.isfinite(power) else "zero")
        for power, layers in powers.items()
    ]
    return f"by design: {', '.join(told)} at t=0" if told else ""


def status(report: Result) -> str:
    """The whole check in one word, or two: "ok", "violated", "undecided", "incomplete", "too few widths"."""
    if report.exit_code == 3:
        return "incomplete" if report.missing or report.unsaved else "undecided"
    return {0: "ok", 1: "violated", 2: "too few widths"}[report.exit_code]


def failure(report: Result) -> str:
    """Why a check did not pass, on one screen: what failed, the report, and the rule.

    The first line, which stands alone in many places, says how much failed.
    """
    bad = [printable(label) for label in report.labels if _guilty(report, label)]
    word = {"too few widths": "with too few widths"}.get(status(report), status(report))
    lines = [f"{len(bad)} of {len(report.labels)} models {word}: {', '.join(bad)}"] if len(report.labels) > 1 else []
    if word == "incomplete":
        for records, what in ((report.missing, "did not finish"), (report.unsaved, "could not be saved")):
            lines += [f"{len(records)} of {len(report.records)} runs {what}"] if records else []
    return "\n".join([*lines, str(report), *([rule(report)] if report.exit_code != 2 else [])])


def _guilty(report: Result, label: str) -> bool:
    """Whether the check failed because of this label."""
    if report.exit_code == 1:
        return headline(report, label).failed
    if report.exit_code == 2:
        return label in report.too_few_widths
    lost = any(record.key.label == label for record in [*report.missing, *report.unsaved])
    return not report.status[label].harmless or lost


def rule(report: Result) -> str:
    """What a slope is held against."""
    steps = max(map(int, report.slopes["step"]), default=0)
    seeds = len({record.key.seed for record in report.records})
    return (
        f"rule: each slope within {report.criteria.tolerance:g} of its exponent, with its whole 95 % interval "
        f"(t = 0..{steps}, {seeds} seed{'s' * (seeds > 1)})"
    )


def blames(parameters: pd.DataFrame) -> list[Blame]:
    """The culprits among a label's parameters; those that differ in a number of their name only are one.

    Blocks of a parameter that all need the same change are told as the parameter.
    """
    alike: dict[tuple[str, ...], dict[str, list[Any]]] = {}
    culprits: list[Any] = list(parameters[parameters["culprit"].astype(bool)].itertuples())
    layers = zip(parameters["parameter"], parameters["layer"], strict=True)
    blocks = Counter(name for name, layer in layers if _is_part(name, layer))
    needs = Counter((row.parameter, row.verdict, change(row)) for row in culprits if _is_part(row.parameter, row.layer))
    for row in culprits:
        what = change(row)
        whole = _is_part(row.parameter, row.layer) and needs[row.parameter, row.verdict, what] == blocks[row.parameter]
        name = row.parameter if whole else row.layer
        rows = alike.setdefault((starred(name, PARTS), row.verdict, what), {})
        rows.setdefault(name, []).append(row)
    return [
        _blame(name, names, [row for each in names for row in rows[each]])
        for rows in alike.values()
        for name, names in together(list(rows))
    ]


def _is_part(parameter: Any, layer: str) -> bool:
    """Whether a row is about one block of a parameter, such as the queries of a fused matrix."""
    return isinstance(parameter, str) and layer.startswith(f"{parameter}[")


def _blame(name: str, names: Sequence[str], rows: Sequence[Any]) -> Blame:
    first = rows[0]
    told = change(first), first.explanation, remedy_text(first)
    return Blame(name, tuple(names), first.verdict, first.cause, *told)


def change(row: Any) -> str:
    """A culprit's remedy in short, in powers of m = width / base width."""
    if row.cause == Cause.FROZEN.value:
        return "give it to the optimizer, with a learning rate"
    if row.cause == Cause.EPS.value:
        return f"eps × m^{row.exponent:g}"
    what = {Cause.ATTENTION_SCALE.value: "attention scale", Cause.FORWARD_SCALE.value: "output"}
    named = ("init", row.init_exponent), (what.get(row.cause, "multiplier"), row.multiplier_exponent)
    steps = [f"{name} × m^{exponent:g}" for name, exponent in (*named, ("lr", row.lr_exponent)) if exponent]
    return ", ".join(steps)


def remedy_text(row: Any) -> str:
    """A culprit's remedy in full, without the name that it starts with."""
    names = [name for name in (row.layer, row.parameter) if isinstance(name, str)]
    return next((row.remedy[len(name) + 2 :] for name in names if row.remedy.startswith(f"{name}: ")), row.remedy)


def provisional(parameters: pd.DataFrame) -> bool:
    """Whether a learning rate is only known once the rest is right."""
    return bool(parameters["remedy"].str.contains("provisional", regex=False).any())


def worst(table: pd.DataFrame) -> pd.DataFrame:
    """The violated layers and then the undecided ones, farthest from their expected exponent first."""
    words = table["verdict"].map(Verdict)
    shown = table[words.map(lambda verdict: verdict.violated or verdict is Verdict.UNDECIDED)]
    if shown.empty:
        return shown
    distance = (shown["slope"] - shown["expected"]).abs().fillna(math.inf)
    undecided = shown["verdict"] == Verdict.UNDECIDED.value
    order = pd.DataFrame({"undecided": undecided, "nearness": -distance}).sort_values(
        ["undecided", "nearness"], kind="stable"
    )
    return shown.loc[order.index]


def measured(row: Any) -> str:
    """What decided a layer's verdict: the quantity and step, or the reason why nothing did."""
    return f"{row.quantity} at t={row.step}" if row.step >= 0 else row.explanation


def slope_text(row: Any) -> str:
    """A layer's slope with half its 95 % interval; empty where there is none."""
    return "" if math.isnan(row.slope) else f"{_signed(row.slope)} ± {(row.high - row.low) / 2:.2f}"


def expected_text(row: Any) -> str:
    """The exponent that a layer's slope was held against, where that is another than 0."""
    return f"{row.expected:+g}" if row.expected and not math.isnan(row.slope) else ""


def _signed(value: float) -> str:
    """With a sign and two digits, and never as -0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def growth_text(row: Any) -> str:
    """By which factor the scale grows from the smallest to the largest width; empty where there is no slope."""
    return "" if math.isnan(row.growth) else f"×{row.growth:.3g}"


def cause_text(row: Any) -> str:
    """`own` or `inherited`: whether the layer's own parameter explains its symptom; empty where nothing does."""
    return row.cause.partition(":")[0] if isinstance(row.cause, str) else ""


def evidence(row: Any) -> Evidence | None:
    """What decided a verdict, of a layer or of a parameter; None where nothing was measured that could."""
    if not isinstance(row.role, str):
        what = Evidence(f"{row.quantity} at t={row.step}", row.slope, (row.high - row.low) / 2, row.expected)
        return what if row.step >= 0 else None
    gain = Evidence("gain", row.gain, 2 * row.gain_stderr, row.gain_target)
    response = Evidence("response", row.response, 2 * row.response_stderr, row.response_target)
    if row.cause == Cause.GRADIENT_FAN_IN.value:
        return Evidence("own update", row.own_update, 2 * row.own_update_stderr, 0.0)
    if row.cause == Cause.EPS.value:  # the diagnosis works without it
        return None
    known = [found for found in (gain, response) if not math.isnan(found.exponent - found.expected)]
    off = {Cause.LEARNING_RATE.value: "response"}.get(row.cause, "gain") if row.culprit else ""
    return max(known, key=lambda found: (found.what == off, abs(found.exponent - found.expected)), default=None)
