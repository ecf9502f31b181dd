"""The headline and what stands below it: what failed comes first, and no verdict contradicts its own number."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

import pandas as pd
import pytest
from conftest import power_law_records
from rich.console import Console
from rich.text import Text

from coordcheck import Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.designs import by_design
from coordcheck.reporting.summaries import Headline, blames, headline
from coordcheck.reporting.text import Head, NamedRows, Row, render
from coordcheck.runs.words import Status

FLAT = {"activation": 0.0, "change": 0.0}
GROWING = {"activation": 0.0, "change": 0.5}


def with_parameters(report: Report, *rows: dict[str, Any]) -> Report:
    """The report as if it had been diagnosed with these findings."""
    usual = dict.fromkeys(report.verdicts.columns) | {"label": report.labels[0], "step": 1, "remedy": ""}
    usual |= {"explanation": "", "verdict": "ok", "culprit": False, "role": "hidden"}
    usual |= dict.fromkeys(("init_exponent", "lr_exponent", "multiplier_exponent", "slope"), math.nan)
    made = [usual | row | {"layer": row.get("layer", row["parameter"])} for row in rows]
    report.__dict__["verdicts"] = pd.concat(
        [report.verdicts.astype(object), pd.DataFrame(made, dtype=object)], ignore_index=True
    )
    return report


def fast(parameter: str | None, **more: Any) -> dict[str, Any]:
    """A finding: this parameter learns too fast."""
    told = {"verdict": "learns too fast", "culprit": True, "cause": "learning rate", "lr_exponent": -1.0}
    return {"parameter": parameter, **told, **more}


def fine(parameter: str, **more: Any) -> dict[str, Any]:
    return {"parameter": parameter, **more}


def line_of(report: Report) -> Headline:
    return headline(report, report.labels[0])


def synthetic(exponents: dict[str, dict[str, float]], criteria: Criteria | None = None, **options: Any) -> Report:
    return Report(power_law_records(exponents, **options), criteria)


def test_a_model_that_fails_by_its_learning_rates_alone_says_so_first():
    found = line_of(with_parameters(synthetic({"a": FLAT, "b": FLAT}), fast("a.weight"), fine("b.weight")))
    assert found.word == "VIOLATED"
    assert found.brief == "1 of 2 parameters to blame; no layer shows it yet"
    assert found.text.startswith(
        "1 of 2 parameters to blame; no layer shows it yet: all 2 layers keep their scale from "
    )


def test_symptoms_come_before_causes_where_there_are_both():
    found = line_of(with_parameters(synthetic({"a": GROWING, "b": FLAT}), fast("a.weight"), fine("b.weight")))
    assert found.brief == "1 of 2 layers blows up; 1 of 2 parameters to blame"


def test_a_parameter_in_two_uses_or_in_blocks_is_counted_once_and_a_scale_of_the_code_apart():
    rows = [fast("W", layer="W[0]"), fast("W", layer="W[1]"), fine("E"), fine("E", layer="E@linear")]
    found = line_of(with_parameters(synthetic({"a": FLAT}), *rows, fast(None, layer="a/sdpa", role="attention logits")))
    assert found.brief.startswith("1 of 2 parameters and 1 attention scale to blame")
    alone = with_parameters(synthetic({"a": FLAT}), fine("E"), fast(None, layer="a", role="function"))
    assert line_of(alone).brief.startswith("1 scale in the code to blame, none of 1 parameters")


def test_blocks_of_one_parameter_that_need_the_same_are_the_parameter():
    rows = [fast(f"layers.{n}.W", layer=f"layers.{n}.W[{k}]") for n in range(2) for k in range(2)]
    [found] = blames(with_parameters(synthetic({"a": FLAT}), *rows).parameters)
    assert (found.name, found.parameters) == ("layers.{0,1}.W", ("layers.0.W", "layers.1.W"))
    [one] = blames(with_parameters(synthetic({"a": FLAT}), fast("W", layer="W[0]"), fine("W", layer="W[1]")).parameters)
    assert one.name == "W[0]"


def test_the_name_of_several_culprits_hides_none():
    names = [f"layers.{n}.1.net.{k}.weight" for n in range(3) for k in (0, 3)]
    report = with_parameters(synthetic({"a": FLAT}), *map(fast, names))
    assert "layers.{0..2}.1.net.{0,3}.weight (6)" in str(report)


READOUT = {"fc": FLAT, "head": {"activation": -0.5, "change": 0.0}}


def of_readout(layer: str, width: int) -> tuple[int, ...]:
    return (4, 10) if layer == "head" else (4, width)


def test_a_readout_that_falls_by_design_is_told():
    report = synthetic(READOUT, shape=of_readout)
    assert by_design(report, "model") == [("head", -0.5)]
    assert line_of(report).text.endswith("by design: head m^-0.5 at t=0")
    assert "by design" not in line_of(synthetic({"fc": FLAT, "head": FLAT}, shape=of_readout)).text


def test_an_exponent_that_was_expected_is_by_design_and_another_is_not():
    rising = {"fc": {"activation": 0.5, "change": 0.5}, "out": FLAT}
    assert by_design(synthetic(rising, Criteria(expect={"fc": 0.5})), "model") == [("fc", 0.5)]
    assert by_design(synthetic(rising), "model") == []
    assert by_design(synthetic(rising, Criteria(expect={"fc": -0.5})), "model") == []


def test_a_readout_of_zeros_is_by_design():
    report = synthetic(READOUT, shape=of_readout)
    for record in report.records:
        record.rows = [
            row._replace(value=0.0, status=Status.ZERO) if (row.site, row.step) == (1, 0) else row
            for row in record.rows
        ]
    assert by_design(report, "model") == [("head", -math.inf)]
    assert line_of(report).text.endswith("by design: head zero at t=0")


def test_a_slope_is_shown_beside_the_exponent_that_it_was_held_against():
    report = synthetic({"qkv": FLAT, "fc": FLAT}, Criteria(expect={"qkv": -0.5}))
    head, row = str(report).splitlines()[1:3]
    assert head.split()[-5:] == ["slope", "expected", "64", "→", "256"]
    assert row.split()[:3] == ["qkv", "initialised", "too"]
    assert row.split()[-5:] == ["+0.00", "±", "0.00", "-0.5", "×1"]
    assert "expected" not in str(synthetic({"qkv": GROWING}))


def test_no_number_is_minus_zero():
    report = synthetic({"qkv": {"activation": -0.001, "change": 0.0}}, Criteria(expect={"qkv": -0.5}))
    assert "-0.00" not in str(report)


LONG = "transformer.blocks.10.self_attention.query_key_value_projection"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_names_are_whole_at_any_width_of_the_terminal(width):
    report = with_parameters(synthetic({LONG: GROWING, "b": FLAT}), fast(f"{LONG}.weight"), fine("b.weight"))
    console = Console(width=width, record=True, file=StringIO())
    console.print(render(report))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert any(f"{LONG}.weight" in line for line in lines)
    assert any(line.split()[:1] == [LONG] for line in lines)
    assert max(map(len, lines)) <= width
    assert (f"  {LONG}" in lines) == (width < 110)  # on a line of its own, or in a column


def test_a_name_on_a_line_of_its_own_keeps_its_cells():
    rows = NamedRows("layer", [Head("verdict"), Head("measured", wraps=True)], [Row("a" * 40, (Text("ok"), Text("b")))])
    console = Console(width=42, record=True, file=StringIO())
    console.print(rows)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines == ["  layer: verdict, measured", f"  {'a' * 40}", "    ok  b"]


def test_nothing_is_called_undecided_beside_a_verdict():
    hidden = [fine(f"p{n}", verdict="not visible") for n in range(3)]
    violated = with_parameters(synthetic({"a": GROWING}), *hidden)
    assert "model: most of its parameters are not visible, so that the cause may be one of them" in violated.notes
    fair = with_parameters(synthetic({"a": FLAT}), *hidden)
    assert "model: most of its parameters are not visible, so that nothing is decided" in fair.notes
