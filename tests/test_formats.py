"""What other programs read of a report: GitHub's commands and summary, JUnit's XML."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from conftest import power_law_records

from coordcheck import Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.reporting.ci import ANNOTATIONS, SUMMARY_BYTES, github, junit, markdown
from coordcheck.reporting.summaries import headline
from coordcheck.runs.words import Outcome

GROWING = {"activation": 0.0, "change": 1.0}
FLAT = {"activation": 0.0, "change": 0.0}
HOSTILE = [
    "a\n::error::b",
    "c|d",
    "<script>x</script>",
    "*e*",
    "100%",
    "f\x00g",
    "::stop-commands::x",
    "[h](http://i)",
    "@j",
]


def commands(text: str) -> list[str]:
    """The workflow commands in a step's output, as GitHub's runner reads them: lines that start with two colons."""
    found, stopped = [], None
    for line in text.splitlines():
        if stopped is not None:
            stopped = None if line == f"::{stopped}::" else stopped
        elif line.startswith("::stop-commands::"):
            stopped = line.removeprefix("::stop-commands::")
        elif line.startswith("::"):
            found.append(line)
    return found


def annotations(text: str) -> list[str]:
    return [line for line in commands(text) if line.startswith(("::error", "::warning"))]


def test_culprits_are_annotated_where_the_factory_stands(report):
    shown = annotations(github(report, {"SP": ("train.py", 7)}))
    assert shown == [
        "::error file=train.py,line=7,title=coordcheck%3A SP::hidden.{0,1}.weight (2 parameters) learns too fast: "
        "lr × m^-1, with m = width / base width",
        "::error file=train.py,line=7,title=coordcheck%3A SP::readout.weight initialised too large: init × m^-0.5, "
        "lr × m^-1, with m = width / base width",
    ]


def test_the_report_itself_is_in_the_log(report):
    text = github(report)
    assert str(report) in text
    assert [line for line in commands(text) if "group" in line] == ["::group::coordcheck", "::endgroup::"]


def test_there_are_at_most_ten_annotations():
    layers = {f"layer{index}": GROWING for index in range(40)}
    shown = annotations(github(Report(power_law_records(layers))))
    assert len(shown) == ANNOTATIONS
    assert "and 31 more findings" in shown[-1]
    ten = Report(power_law_records(dict(list(layers.items())[:ANNOTATIONS])))
    assert not any("more findings" in line for line in annotations(github(ten)))


def test_a_healthy_report_annotates_nothing():
    assert annotations(github(Report(power_law_records({"a": FLAT})))) == []


def test_runs_that_are_missing_are_warnings():
    records = power_law_records({"a": FLAT})
    records[0].outcome, records[0].reason = Outcome.FAILED, "Traceback\nValueError: no"
    assert [line.split(" ")[0] for line in annotations(github(Report(records)))] == ["::warning"]
    two_widths = Report(power_law_records({"a": FLAT}, widths=(64, 128)))
    assert "at least 3 distinct widths" in annotations(github(two_widths))[0]


def test_names_are_never_commands():
    report = Report(power_law_records(dict.fromkeys(HOSTILE, GROWING), label="x,y:z"))
    text = github(report, {"x,y:z": ("a,b:c.py", 1)})
    assert all(
        line.startswith("::error file=a%2Cb%3Ac.py,line=1,title=coordcheck%3A x%2Cy%3Az::")
        for line in annotations(text)
    )
    assert len(annotations(text)) == len(HOSTILE)
    assert "::error::b" not in {line.strip() for line in commands(text)}


def test_the_summary_is_tables_of_culprits_and_layers(report):
    text = markdown(report)
    assert "### SP: VIOLATED" in text
    assert "| to blame | verdict | change, m = width / base |" in text
    assert "| layer | verdict | measured | slope | expected | growth | cause |" in text
    assert re.search(r"\| hidden\.&#123;0,1&#125;\.weight &#40;2&#41; \| learns too fast \| lr × m&#94;&#45;1 \|", text)


def test_names_are_never_markup_in_the_summary():
    text = markdown(Report(power_law_records(dict.fromkeys(HOSTILE, GROWING))))
    for mark in ("<script>", "*e*", "[h](", "@j", "c|d", "\x00", "http://"):
        assert mark not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {8}


def test_a_summary_stays_below_githubs_limit():
    records = power_law_records({"a": FLAT})
    records[0].notes = [f"note {index} " + "x" * 1000 for index in range(2000)]
    text = markdown(Report(records))
    assert SUMMARY_BYTES < len(text.encode()) < SUMMARY_BYTES + 100
    assert text.endswith("(cut)\n")


def cases(report: Report) -> dict[str, list[str]]:
    """Per case of the XML, label and name, what it holds."""
    suites = ElementTree.fromstring(junit(report))
    return {
        f"{case.get('classname')}/{case.get('name')}": [child.tag for child in case if child.tag != "properties"]
        for case in suites.iter("testcase")
    }


def test_a_case_per_layer_and_parameter(report):
    found = cases(report)
    assert len(found) == len(report.verdicts) == len({*found})
    assert found["SP/hidden.0.weight"] == ["failure"]
    assert found["µP/hidden.0.weight"] == []
    suites = ElementTree.fromstring(junit(report))
    counted = {suite.get("name"): (suite.get("tests"), suite.get("failures")) for suite in suites}
    failed = sum(value == ["failure"] for name, value in found.items() if name.startswith("SP/"))
    assert counted["SP"] == (str(len(found) // 2), str(failed))
    assert counted["µP"][1] == "0"


def test_slopes_are_properties(report):
    suites = ElementTree.fromstring(junit(report))
    case = next(
        case for case in suites.iter("testcase") if (case.get("classname"), case.get("name")) == ("SP", "hidden.1")
    )
    properties = {entry.get("name"): float(entry.get("value", "nan")) for entry in case.iter("property")}
    assert properties["coordcheck.slope"] == pytest.approx(1.0, abs=0.2)


def test_what_is_open_is_an_error_and_what_is_missing_too():
    records = power_law_records({"a": {"activation": 0.0, "change": 0.25}}, noise=lambda w, s, n: 0.1 * (w == 64) * s)
    records[-1].outcome, records[-1].reason = Outcome.FAILED, "Traceback\nValueError: \x00no"
    found = cases(Report(records))
    assert found["model/a"] == ["error"]
    assert sum(value == ["error"] for value in found.values()) == 2
    assert cases(Report(power_law_records({"a": FLAT}, widths=(64, 128))))["model/widths"] == ["error"]


def test_hostile_names_are_valid_xml():
    names = [*HOSTILE, "\ud800", "\ufffe", "\x1b[31m", "]]>"]
    report = Report(power_law_records(dict.fromkeys(names, GROWING)))
    assert len(cases(report)) == len(names)


def test_every_suite_tells_its_headline(report):
    for suite, label in zip(ElementTree.fromstring(junit(report)), report.labels, strict=True):
        [entry] = suite.findall("properties/property")
        line = headline(report, label)
        assert (entry.get("name"), entry.get("value")) == ("coordcheck.headline", f"{line.word}: {line.text}")


def test_an_annotation_tells_the_exponent_that_was_expected():
    report = Report(power_law_records({"qkv": FLAT}), Criteria(expect={"qkv": -0.5}))
    assert "activation at t=0, slope +0.00 ± 0.00, expected -0.5" in github(report)
