"""Whatever a string can hold leaves the package as text: on a terminal, in JSON, XML, HTML, Markdown, in file names."""

from __future__ import annotations

import json
import logging
import pickle
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import power_law_records
from hypothesis import given, settings
from hypothesis import strategies as st

import coordcheck
from coordcheck import CoordCheckError, Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.errors import SweepInterrupted
from coordcheck.common.escaping import (
    MESSAGE_LENGTH,
    NAME_LENGTH,
    json_text,
    legible,
    printable,
    shortened,
    told,
    well_formed,
)
from coordcheck.pytest_plugin.baselines import baseline_of, compare
from coordcheck.pytest_plugin.baselines.files import read_baseline, write_baseline
from coordcheck.reporting.ci import github, junit, markdown
from coordcheck.reporting.page import render_fragment
from coordcheck.runs.files import slug
from coordcheck.runs.records import ParameterInfo, RunKey, RunRecord, kept
from coordcheck.runs.words import Outcome

FLAT, GROWING = {"activation": 0.0, "change": 0.0}, {"activation": 0.0, "change": 1.0}
PAIR = "\ud800" + "\udc00"  # which JSON cannot tell from the character that it stands for
AWKWARD = [
    *("\udcff", PAIR, "caf\udce9", "\x00", "a\nb", "a\r\nb", "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J"),
    *("\u202egnp", "\u2066x\u2069", "\u200b", "\ufeff", "\u2028", "\x7f", "\x85", "$\\frac{$", "[bold]x[/]", "[/]"),
    *("e\u0301", "\u0301", "\U0001f600", "\U0001f468\u200d\U0001f469", "\uffff", "\U0010ffff", "<b>", "&", "|", "`"),
    *("../../x", "a/b", ".", "", " "),
]
LONG = ["x" * 100_000, "\u0301" * 5000, "\x1b" * 5000, "\udcff" * 3000]
anything = st.text(st.characters(codec=None, categories=None), max_size=40) | st.sampled_from(AWKWARD)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def hostile(text: str) -> Report:
    """A report whose label, layers, parameters, notes, reasons, settings and axis hold a text."""
    records = power_law_records({text: GROWING, f"a {text}": GROWING, "fine": FLAT}, label=f"l{text}", seeds=2)
    for record in records:
        record.notes, record.settings = [text], {text: text}
        record.parameters = [ParameterInfo(text, (2,), None, None, False)]
        record.outside = {text: 2.0}
    failed = RunRecord(RunKey(f"l{text}", 64, 7), {text: text}, Outcome.FAILED, f"one\n{text}")
    return Report([*records, failed], Criteria(axis=text, roles={text: "input"}))


# ---- each function


@given(anything)
def test_a_printable_text_is_printable_and_stays_what_it_is(text: str):
    found = printable(text)
    assert found.isprintable()
    assert printable(found) == found
    assert not text.isprintable() or found == text


@given(anything | st.sampled_from(LONG))
def test_a_message_is_printable_line_by_line(text: str):
    found = told(f"{text}\n{text}")
    assert CONTROL.search(found) is None
    assert told(found) == found
    assert len(found) <= MESSAGE_LENGTH


@given(anything)
def test_json_is_read_as_what_was_written(text: str):
    found = json_text({text: [text, 1.5, None]})
    assert found.isprintable()
    found.encode()
    assert json.loads(found) == {well_formed(text): [well_formed(text), 1.5, None]}


def test_json_keeps_letters_as_they_are():
    assert json_text({"µP": "注意力 🙂"}) == '{"µP": "注意力 🙂"}'


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))


@pytest.mark.parametrize("most", [1, 2, 3, 10, 11])
def test_a_shortened_text_has_as_many_characters_as_may_be(most: int):
    assert len(shortened("abcdefghijkl", most)) == most
    assert shortened("abcdefghij", 10) == "abcdefghij"


@given(anything | st.sampled_from(LONG))
def test_a_legible_name_is_short(text: str):
    assert len(legible(text)) <= NAME_LENGTH
    assert legible(text).isprintable()


@given(anything)
def test_a_folder_name_is_ascii_for_every_label(text: str):
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,50}", slug(text))


# ---- errors


@given(anything)
def test_every_error_is_fit_for_a_terminal(text: str):
    for error in (CoordCheckError(f"cannot read {text}"), SweepInterrupted(f"{text} is done")):
        assert CONTROL.search(str(error)) is None
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_holds_no_secret():
    assert str(CoordCheckError("no https://me:hunter2@host")) == "no https://***@host"


def test_a_path_of_an_untrusted_folder_is_told_without_its_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from coordcheck.cli.main import main

    folder = tmp_path / "a\x1b[31mb\u202e" / "runs" / "SP"
    folder.mkdir(parents=True)
    (folder / "64-0\x1b]0;x\x07.json").write_text("no run file")
    assert main(["show", str(folder.parent.parent)]) == 4
    shown = capsys.readouterr().err
    assert CONTROL.search(shown) is None
    assert r"a\x1b[31mb\u202e" in shown
    assert r"64-0\x1b]0;x\x07.json is not a coordcheck file" in shown


def test_a_path_that_is_no_unicode_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from coordcheck.cli.main import main

    assert main(["show", str(tmp_path / "caf\udce9")]) == 2
    assert r"caf\udce9" in capsys.readouterr().err


def test_a_log_line_is_printable(caplog: pytest.LogCaptureFixture):
    import torch

    model = torch.nn.Linear(2, 2)
    recorder = coordcheck.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), width=2)
    with caplog.at_level(logging.WARNING, "coordcheck"):
        recorder._run.note_failure(ValueError("\x1b[31m 100% of https://me:hunter2@host\udcff"))
    assert [record.getMessage() for record in caplog.records] == [
        r"recording failed: ValueError: \x1b[31m 100% of https://***@host\udcff"
    ]


# ---- every sink


@settings(max_examples=12, deadline=None)
@given(anything)
def test_no_sink_of_a_report_shows_or_chokes_on_what_a_text_holds(text: str):
    report = hostile(text)
    for shown in (
        str(report),
        github(report),
        markdown(report),
        junit(report),
        json_text(json.loads(report.to_json())),
    ):
        assert CONTROL.search(shown) is None
        shown.encode()
    ElementTree.fromstring(junit(report))
    assert json.loads(report.to_json())["axis"] == well_formed(text)
    for html in (render_fragment(report), report._repr_html_()):
        assert CONTROL.search(html) is None
        html.encode()


@pytest.mark.parametrize("text", AWKWARD + LONG, ids=lambda text: ascii(text)[:30])
def test_awkward_texts_go_through_files_and_back(text: str, tmp_path: Path):
    report = hostile(text)
    report.save(tmp_path / "runs")
    loaded = coordcheck.load(tmp_path / "runs")
    for record in report.records:  # messages are cut, names and settings are not
        record.notes, record.reason = [*map(kept, record.notes)], kept(record.reason)
    assert text == PAIR or {repr(record) for record in loaded.records} == {repr(record) for record in report.records}
    assert text == PAIR or loaded.criteria == report.criteria
    write_baseline(tmp_path / "baseline.json", baseline_of(report))
    assert text == PAIR or compare(read_baseline(tmp_path / "baseline.json"), loaded).same


@pytest.mark.parametrize("text", ["\udcff\x1b[31m\u202e\x00\n$\\frac{$", "x" * 100_000], ids=["awkward", "long"])
def test_pages_and_figures_of_awkward_texts_are_drawn(text: str, tmp_path: Path):
    report = hostile(text)
    report.save_html(tmp_path / "page.html")
    assert CONTROL.search((tmp_path / "page.html").read_text(encoding="utf-8")) is None
    report.figure("divergence", path=tmp_path / "a.pdf")
    report.figure("slopes", path=tmp_path / "b.svg")
    ElementTree.parse(tmp_path / "b.svg")
    assert max(report.figure("slopes").get_size_inches()) < 20


def test_a_word_of_an_enumeration_is_printed_as_the_word():
    assert f"{printable(Verdict.BLOWS_UP)}, {legible(Verdict.BLOWS_UP)}" == "blows up, blows up"
