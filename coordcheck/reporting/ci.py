"""The report in the forms that other programs read: GitHub's annotations and job summary, and JUnit's XML."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from coordcheck.analysis.audits import LIMITS
from coordcheck.analysis.findings import Cause
from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.escaping import printable
from coordcheck.reporting.summaries import (
    blames,
    cause_text,
    expected_text,
    growth_text,
    headline,
    measured,
    of_label,
    slope_text,
    worst,
)

ANNOTATIONS = 10  # GitHub shows so many of one kind per step
SUMMARY_BYTES = 900 * 1024  # GitHub drops a job summary of more than 1 MiB as a whole
SUMMARY_ROWS = 40  # layers per label in the summary
Place = tuple[str, int]
"""A file and a line of it."""


class _Annotation(NamedTuple):
    level: str
    label: str
    text: str


def github(report: Result, places: dict[str, Place] | None = None, told: str = "") -> str:
    """Workflow commands for a GitHub Actions job: at most ten annotations, and the report in a group that is folded.

    Args:
        report: what to say.
        places: label -> file and line that its annotations stand at, such as those of its factory.
        told: what stands in the group; without it, the report.

    Returns:
        Lines for standard output.
    """
    found = list(_annotations(report))
    shown = found if len(found) <= ANNOTATIONS else found[: ANNOTATIONS - 1]
    if len(shown) < len(found):
        rest = f"and {len(found) - len(shown)} more findings; the report in this step's log has the worst of all"
        shown.append(_Annotation("warning", found[len(shown)].label, rest))
    lines = [_command(note, (places or {}).get(note.label)) for note in shown]
    token = secrets.token_hex(16)  # so that no line of the report, whatever names are in it, is taken for a command
    return "\n".join(
        [*lines, "::group::coordcheck", f"::stop-commands::{token}", told or str(report), f"::{token}::", _END]
    )


_END = "::endgroup::"


def _annotations(report: Result) -> Iterator[_Annotation]:
    """Culprits first, then what is violated without one, then what is open."""
    open_ones: list[_Annotation] = []
    for label in report.labels:
        line = headline(report, label)
        if label in report.too_few_widths:
            open_ones.append(_Annotation("warning", label, line.text))
            continue
        table, parameters = of_label(report, label)
        culprits = blames(parameters)
        for blame in culprits:
            what = "attention scales" if blame.cause == Cause.ATTENTION_SCALE.value else "parameters"
            count = f" ({len(blame.parameters)} {what})" if len(blame.parameters) > 1 else ""
            text = f"{blame.name}{count} {blame.verdict}: {blame.change}, with m = width / base width"
            yield _Annotation("error", label, text)
        shown = worst(table)
        for row in shown.itertuples():
            values: Any = row
            aim = f", expected {expected_text(values)}" if expected_text(values) else ""
            text = f"{values.layer} {values.verdict}: {measured(values)}, slope {slope_text(values) or '-'}{aim}"
            if not Verdict(values.verdict).violated:
                open_ones.append(_Annotation("warning", label, text))
            elif not culprits:
                yield _Annotation("error", label, text)
    for record in report.missing:
        open_ones.append(_Annotation("warning", record.key.label, f"{record.key} {record.outcome.value}"))
    for record in report.unsaved:
        open_ones.append(_Annotation("warning", record.key.label, f"{record.key} not saved: {record.unsaved}"))
    yield from open_ones


def _command(note: _Annotation, place: Place | None) -> str:
    where = {} if place is None else {"file": place[0], "line": str(place[1])}
    properties = {**where, "title": f"coordcheck: {note.label}"}
    told = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    return f"::{note.level} {told}::{_escaped(note.text)}"


def _escaped(text: str, more: str = "") -> str:
    """A workflow command's text, or a property's, with what would end it written in percent."""
    return re.sub(f"[%\r\n{more}]", lambda found: f"%{ord(found[0]):02X}", printable(text))


def markdown(report: Result) -> str:
    """The report as GitHub-flavoured Markdown, short enough for a job summary; names in it are never markup."""
    parts = ["## coordcheck\n"]
    for label in report.labels:
        line = headline(report, label)
        parts.append(f"### {_plain(label)}: {line.word}\n\n{_plain(line.text)}\n")
        if label in report.too_few_widths:
            continue
        table, parameters = of_label(report, label)
        culprits = blames(parameters)
        if culprits:
            rows = [(_count(blame.name, len(blame.parameters)), blame.verdict, blame.change) for blame in culprits]
            parts.append(_table(("to blame", "verdict", "change, m = width / base"), rows))
        shown = worst(table)
        if len(shown):
            layers = [_cells(row) for row in shown.head(SUMMARY_ROWS).itertuples()]
            parts.append(_table(("layer", "verdict", "measured", "slope", "expected", "growth", "cause"), layers))
        if len(shown) > SUMMARY_ROWS:
            parts.append(f"and {len(shown) - SUMMARY_ROWS} more layers\n")
    parts += [f"* {_plain(note)}" for note in report.notes]
    parts.append(f"\n{_plain(LIMITS)}\n")
    text = "\n".join(parts)
    encoded = text.encode()
    return text if len(encoded) <= SUMMARY_BYTES else encoded[:SUMMARY_BYTES].decode(errors="ignore") + "\n\n(cut)\n"


def _cells(row: Any) -> tuple[str, ...]:
    told = measured(row), slope_text(row), expected_text(row), growth_text(row), cause_text(row)
    return row.layer, row.verdict, *told


def _count(name: str, count: int) -> str:
    return name if count == 1 else f"{name} ({count})"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in rows)]) + "\n"


def _plain(text: str) -> str:
    """Text without any meaning in Markdown or HTML: marks become character references."""
    return re.sub(
        r"[^\w .,]|_", lambda found: f"&#{ord(found[0])};" if found[0].isascii() else found[0], printable(text)
    )


def junit(report: Result) -> str:
    """JUnit XML: a suite per label, a case per layer and parameter.

    What is violated, or to blame, is a failure; what is undecided, and a run that did not finish, is an error; what is
    not visible, or exists at some widths only, is skipped.
    """
    suites = ElementTree.Element("testsuites", name="coordcheck")
    for label in report.labels:
        suite = ElementTree.SubElement(suites, "testsuite", name=printable(label))
        line, properties = headline(report, label), ElementTree.SubElement(suite, "properties")
        told = printable(f"{line.word}: {line.text}")
        ElementTree.SubElement(properties, "property", name="coordcheck.headline", value=told)
        for row in report.verdicts[report.verdicts["label"] == label].itertuples():
            _case(suite, row)
        lost = [(record, record.outcome.value, record.reason) for record in report.missing]
        lost += [(record, "not saved", record.unsaved) for record in report.unsaved]
        for record, what, why in (one for one in lost if one[0].key.label == label):
            case = ElementTree.SubElement(
                suite, "testcase", classname=printable(label), name=printable(str(record.key))
            )
            error = ElementTree.SubElement(case, "error", message=what)
            error.text = "\n".join(printable(line) for line in why.splitlines())
        if label in report.too_few_widths:
            case = ElementTree.SubElement(suite, "testcase", classname=printable(label), name="widths")
            ElementTree.SubElement(case, "error", message=printable(report.too_few_widths[label]))
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            suite.set(plural, str(sum(case.find(kind) is not None for case in cases)))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


def _case(suite: ElementTree.Element, row: Any) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=suite.get("name", ""), name=printable(row.layer))
    verdict, numbers = Verdict(row.verdict), {"slope": row.slope, "gain": row.gain, "response": row.response}
    known = {name: value for name, value in numbers.items() if value == value}  # not NaN
    if known:
        properties = ElementTree.SubElement(case, "properties")
        for name, value in known.items():
            ElementTree.SubElement(properties, "property", name=f"coordcheck.{name}", value=f"{value:.4f}")
    text = printable(f"{row.verdict}: {row.explanation}")
    if verdict.violated or row.culprit:
        failure = ElementTree.SubElement(case, "failure", message=text, type=printable(row.verdict))
        failure.text = printable(row.remedy or row.explanation)
    elif verdict is Verdict.UNDECIDED:
        ElementTree.SubElement(case, "error", message=text, type=printable(row.verdict))
    elif verdict in (Verdict.NOT_VISIBLE, Verdict.NOT_COMPARED):
        ElementTree.SubElement(case, "skipped", message=text)
