"""Figures, by their artists: what is drawn, what is named, and that nothing else changes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import power_law_records
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from nasty import REPORTS, faults, labels, texts_of

from coordcheck import CoordCheckError, Report, diagnose
from coordcheck.analysis.criteria import Criteria
from coordcheck.checks.demo import next_byte_loss
from coordcheck.common.escaping import printable
from coordcheck.models import transformer
from coordcheck.reporting.figures import View, save_figure
from coordcheck.reporting.figures.divergence import draw_divergence
from coordcheck.reporting.figures.exponents import draw_exponents
from coordcheck.reporting.figures.slope_map import draw_slope_map
from coordcheck.reporting.summaries import headline
from coordcheck.runs.words import Quantity, Status

FLAT = {"activation": 0.0, "change": 0.0}
GROWING = {"activation": 0.5, "change": 0.5}
FAST = {"activation": 0.0, "change": 1.0}
HOSTILE = [r"$\frac{1}$", "<script>alert(1)</script>", "[/]", "[bold]x[/]", "a\nb", "_reference", "_child0", "%s{0}"]


def synthetic(exponents: dict[str, dict[str, float]], **options: object) -> Report:
    return Report(power_law_records(exponents, **{"steps": 1, **options}))


def zeroed(report: Report, layer: str) -> Report:
    """The report as if this layer's output were exactly zero at initialisation."""
    for record in report.records:
        record.rows = [
            row._replace(value=0.0, status=Status.ZERO)
            if record.sites[row.site].layer == layer and row.step == 0
            else row
            for row in record.rows
        ]
    return report


def panels(figure: Figure, rows: int) -> list[list[Axes]]:
    """The panels of a divergence figure, label by label."""
    axes = [axis for axis in figure.axes if axis.get_label() != "key"]
    columns = len(axes) // rows
    return [axes[row * columns : (row + 1) * columns] for row in range(rows)]


def only(figure: Figure) -> list[Axes]:
    """The panels of the only label."""
    return panels(figure, 1)[0]


def lines(axis: Axes) -> dict[str, Line2D]:
    """The lines of layers, by layer: neither the wedge nor the marks of lost runs."""
    return {str(line.get_label()): line for line in axis.lines if line.get_zorder() > 1 and line.get_marker() != "x"}


def names(axis: Axes) -> list[Annotation]:
    """The names at the right of a label, from the lowest to the highest."""
    found = [text for text in axis.texts if isinstance(text, Annotation) and text.anncoords == "axes fraction"]
    return sorted(found, key=lambda name: name.xyann[1])


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def extents(figure: Figure, texts: Sequence[Text]) -> Iterator[mpl.transforms.Bbox]:
    """Where the texts themselves are printed, in pixels."""
    figure.set_dpi(300)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return (Text.get_window_extent(text, renderer) for text in texts)


def on_page(figure: Figure, box: mpl.transforms.Bbox) -> bool:
    page = figure.bbox
    return page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.fixture(scope="module")
def drawn(report) -> Figure:
    return draw_divergence(report)


def test_a_row_per_label_and_a_column_per_step(report, drawn):
    grid = panels(drawn, len(report.labels))
    assert [len(row) for row in grid] == [5, 5]
    titles = [text.get_text() for text in drawn.texts if text.get_text().startswith("t = ")]
    assert titles == ["t = 0 (init)", "t = 1", "t = 2", "t = 3", "t = 4"]
    tops = [row[0].get_position().y0 for row in grid]
    assert tops == sorted(tops, reverse=True)
    for row in grid:
        lefts = [axis.get_position().x0 for axis in row]
        assert lefts == sorted(lefts)


def test_panels_of_a_kind_share_their_log2_axes(drawn):
    grid = panels(drawn, 2)
    kinds = [row[:1] for row in grid], [row[1:] for row in grid]
    for rows in kinds:
        first = rows[0][0]
        for axis in (axis for row in rows for axis in row):
            assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
            assert (axis.xaxis.get_transform().base, axis.yaxis.get_transform().base) == (2, 2)
            assert axis.get_xlim() == grid[0][0].get_xlim()
            assert axis.get_ylim() == first.get_ylim()


def test_equal_slopes_look_equal_in_scales_and_changes(drawn):
    octaves = [np.diff(np.log2(axis.get_ylim()))[0] for row in panels(drawn, 2) for axis in row]
    assert octaves == pytest.approx([octaves[0]] * 10)


@pytest.mark.parametrize(("column", "quantity"), [(0, "activation"), (1, "change")])
def test_the_limits_hold_all_widths_and_scales(report, drawn, column, quantity):
    axis = panels(drawn, 2)[0][column]
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    steps = "step == 0" if column == 0 else "step > 0"
    values = report.measurements.query(f"quantity == '{quantity}' and kind == 'module' and {steps}")["value"]
    assert left < report.widths[0] < report.widths[-1] < right
    assert low < values.min() < values.max() < high


def test_the_axes_are_named(report, drawn):
    for row in panels(drawn, 2):
        assert [axis.get_ylabel() for axis in row] == ["RMS activation", "RMS change from t = 0", "", "", ""]
    assert [{axis.get_xlabel() for axis in row} for row in panels(drawn, 2)] == [{""}, {"width"}]
    records = power_law_records({"fc": FLAT})
    assert draw_divergence(Report(records, Criteria(axis="depth"))).axes[0].get_xlabel() == "depth"


def test_a_panel_shows_the_quantity_that_was_judged(report):
    rows = dict(zip(report.labels, panels(draw_divergence(report), 2), strict=True))
    for label, row in rows.items():
        for step, axis in enumerate(row):
            quantity = "change" if step else "activation"
            table = report.measurements.query(
                f"label == '{label}' and quantity == '{quantity}' and step == {step} and kind == 'module'"
            )
            table = table[table["width"] == 64]
            means = table.groupby("layer")["value"].agg(lambda v: math.exp(np.log(v).mean()))
            assert {layer: line.get_ydata()[0] for layer, line in lines(axis).items()} == pytest.approx(means.to_dict())


def test_the_ticks_are_the_widths(report, drawn):
    drawn.draw_without_rendering()
    bottom = panels(drawn, 2)[-1][-1]
    assert [tick.get_text() for tick in bottom.get_xticklabels()] == [str(width) for width in report.widths]


@pytest.mark.parametrize("quantity", [Quantity.ACTIVATION, Quantity.MEAN_ABS, Quantity.CHANGE])
def test_a_line_per_layer_is_the_geometric_mean_over_the_seeds(report, quantity):
    table = report.measurements.query(f"quantity == '{quantity.value}' and kind == 'module' and status == 'ok'")
    steps = sorted(table["step"].unique())
    found = {
        (label, step, layer, width): value
        for label, row in zip(report.labels, panels(draw_divergence(report, View(quantity)), 2), strict=True)
        for step, axis in zip(steps, row, strict=True)
        for layer, line in lines(axis).items()
        for width, value in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    means = table.groupby(["label", "step", "layer", "width"])["value"].agg(lambda v: math.exp(np.log(v).mean()))
    assert found == pytest.approx(means.to_dict())


def test_bands_hold_the_range_of_the_seeds():
    levels = {0: -1.0, 1: 0.0, 2: 3.0}
    report = synthetic({"fc": FLAT}, noise=lambda width, seed, layer: levels[seed])
    [band] = only(draw_divergence(report, View(steps=(0,))))[0].collections[:1]
    corners = band.get_paths()[0].vertices
    assert set(corners[:, 0]) == set(report.widths)
    assert set(corners[:, 1]) == {0.5, 8.0}


def test_a_line_is_heavy_where_it_is_violated_and_nowhere_else():
    slopes = {"bad": GROWING, "good": FLAT, "small": {"activation": -0.5, "change": 0.0}}
    report = synthetic(slopes | {"late": {"activation": 0.0, "change": 1.0}})
    heavy = [
        {layer for layer, line in lines(axis).items() if line.get_linewidth() > 1}
        for axis in only(draw_divergence(report))
    ]
    assert heavy == [{"bad", "small"}, {"bad", "late"}]


def test_no_line_is_marked_that_is_flat_where_it_stands(report, drawn):
    """A line that a verdict marks must show it: heavy, or dashed, and not level."""
    for row in panels(drawn, 2):
        for axis in row:
            for line in lines(axis).values():
                x, y = np.log2(line.get_xdata()), np.log2(line.get_ydata())
                slope = np.polyfit(x, y, 1)[0]
                assert (line.get_linewidth() > 1 or line.get_linestyle() == "--") <= (abs(slope) > 0.25)


@pytest.mark.parametrize(
    ("slopes", "expect", "dashed", "text"),
    [
        ({"head": {"activation": -0.5, "change": 0.0}}, None, [{"head"}, set()], "head: −½ by design"),
        ({"head": {"activation": -1.0, "change": -0.5}}, None, [{"head"}, {"head"}], "head: −1 by design"),
        ({"fc": GROWING}, {"fc": 0.5}, [{"fc"}, {"fc"}], "fc: ½ by design"),
        ({"fc": FLAT}, None, [set(), set()], None),
        ({"fc": GROWING}, None, [set(), set()], None),
    ],
)
def test_slopes_by_design_are_dashed_and_named_as_they_are(slopes, expect, dashed, text):
    records = power_law_records(
        {"in": FLAT, **slopes}, steps=1, shape=lambda layer, width: (4, 10) if layer == "head" else (4, width)
    )
    figure = draw_divergence(Report(records, Criteria(expect=expect)))
    row = only(figure)
    assert [{layer for layer, line in lines(a).items() if line.get_linestyle() == "--"} for a in row] == dashed
    assert [one for one in words(figure) if "by design" in one and one != "a slope by design"][:1] == [text][
        : text is not None
    ]
    assert ("a slope by design" in words(figure)) == (text is not None)
    [(layer, _)] = slopes.items()
    line, exponent = lines(row[0])[layer], slopes[layer]["activation"]
    assert np.diff(np.log2(line.get_ydata())) / np.diff(np.log2(line.get_xdata())) == pytest.approx(exponent)


def test_the_worst_violated_layers_are_named_with_their_line():
    slopes = {"a": 0.5, "b": 2.0, "c": 0.0, "d": -1.0, "e": 1.5, "f": 0.7, "g": 1.2}
    report = synthetic({layer: {"activation": slope, "change": 0.0} for layer, slope in slopes.items()})
    row = only(draw_divergence(report, View(Quantity.ACTIVATION)))
    assert [len(names(axis)) for axis in row] == [0, 5]
    found = names(row[-1])
    assert [name.get_text() for name in found] == ["d", "f", "g", "e", "b"]
    for name in found:
        assert name.xy == (256, pytest.approx(256 ** slopes[name.get_text()]))
        assert tuple(name.get_color()) == tuple(lines(row[-1])[name.get_text()].get_color())


def test_a_name_says_when_its_line_is_violated_at_initialisation_only():
    report = synthetic({"large": {"activation": 0.5, "change": 0.0}, "fast": {"activation": 0.0, "change": 0.5}})
    found = names(only(draw_divergence(report))[-1])
    assert {name.get_text() for name in found} == {"large (t = 0)", "fast"}


def test_the_first_and_the_last_layer_are_named_where_there_is_room_and_nothing_is_violated(report, drawn):
    bad, good = panels(drawn, 2)
    assert {name.get_text() for name in names(good[-1])} == {"input", "readout"}
    assert len(names(bad[-1])) == 3
    fine = synthetic({"fc": FLAT, "out": FLAT})
    assert names(only(draw_divergence(fine))[-1]) == []
    assert fine.figure().get_size_inches()[0] * (1 - only(fine.figure())[-1].get_position().x1) < 0.15  # no blank there


def test_the_key_names_the_ends_of_the_colours_and_what_lines_mean(drawn):
    [key] = [axis for axis in drawn.axes if axis.get_label() == "key"]
    shades = key.images[0].get_array()[0]
    ordered = panels(drawn, 2)[0][0]
    colours = [line.get_color() for line in lines(ordered).values()]
    assert tuple(shades[0]) == pytest.approx(colours[0])
    assert tuple(shades[-1]) == pytest.approx(colours[-1])
    told = [text.get_text() for text in drawn.texts]
    assert told[-5:] == ["input", "readout", "violated", "a slope by design", "range of the seeds"]


@pytest.mark.parametrize("levels", [[0, 0, 0, 0, 0], [0, 0.1, 0.2, 8, 8.1], [0, 4, 8, 8, 8]])
def test_names_do_not_touch_and_stay_on_the_page(levels):
    layers = {f"transformer.blocks.{n}.attention.query_projection": level for n, level in enumerate(levels)}
    report = synthetic(dict.fromkeys(layers, GROWING), noise=lambda width, seed, layer: layers[layer])
    figure = draw_divergence(report)
    boxes = list(extents(figure, names(only(figure)[-1])))
    assert len(boxes) == 5
    for below, above in pairwise(boxes):
        assert below.y1 <= above.y0
    assert all(on_page(figure, box) for box in boxes)


@pytest.mark.parametrize(
    "layer", ["transformer.blocks.{}.attention.query_projection", "model.layers.{}.self_attn.q_proj", "net.{}"]
)
def test_names_tell_repeated_layers_apart(layer):
    report = synthetic({layer.format(n): GROWING for n in (0, 1, 10, 11)})
    assert len({name.get_text() for name in names(only(draw_divergence(report))[-1])}) == 4


def test_the_longest_title_stays_on_the_page():
    figure = draw_divergence(repeated({7: 0.6, 30: -1.0}, steps=4))
    [title] = [text for text in figure.findobj(Text) if "lines drawn" in text.get_text()]
    assert all(on_page(figure, box) for box in extents(figure, [title]))


def test_the_title_of_a_row_is_its_label_and_verdict():
    records = power_law_records({"fc": GROWING, "out": FLAT}, label="SP") + power_law_records({"fc": FLAT}, label="µP")
    found = words(draw_divergence(Report(records)))
    assert {"SP", "VIOLATED", "1 of 2 layers initialised too large"} <= set(found)
    assert {"µP", "OK", "all 1 layers keep their scale"} <= set(found)


def test_the_title_counts_parameters_as_the_headline_does(report, drawn):
    for label in report.labels:
        line = headline(report, label)
        assert line.brief in words(drawn)
        assert "of 8 parameters to blame" in line.brief


def test_a_wedge_shows_slopes_one_half_and_one():
    *others, first = only(draw_divergence(synthetic({"fc": FLAT})))
    wedge = [line for line in first.lines if line not in lines(first).values()]
    slopes = [np.diff(np.log2(line.get_ydata())) / np.diff(np.log2(line.get_xdata())) for line in wedge]
    assert np.ravel(slopes) == pytest.approx([0.5, 1.0])
    assert [text.get_text() for text in first.texts] == ["½", "slope 1"]
    assert all(len(axis.lines) == 1 for axis in others)


@pytest.mark.parametrize("level", [0.0, 20.0, -20.0])
def test_flat_lines_look_flat(level):
    for axis in only(draw_divergence(synthetic({"fc": FLAT}, noise=lambda width, seed, layer: level))):
        low, high = axis.get_ylim()
        assert math.log2(high / low) >= 4
        assert low < 2.0**level < high


def repeated(exceptions: dict[int, float], **options: object) -> Report:
    """Forty blocks whose layers are alike, but for the exponents of some."""
    slopes = {f"blocks.{n}.fc": exceptions.get(n, 0.0) for n in range(40)} | {"out": 0.1}
    return synthetic({layer: {"activation": slope, "change": 0.0} for layer, slope in slopes.items()}, **options)


def test_of_many_repeated_layers_the_worst_is_drawn_and_the_title_says_so():
    figure = draw_divergence(repeated({7: 0.6, 30: -1.0, 31: 0.9}))
    drawn = list(lines(figure.axes[0]))
    assert {"blocks.7.fc", "blocks.30.fc", "blocks.31.fc", "out"} <= set(drawn)
    assert len(drawn) == 15  # 28 lines for two groups: 14 of the blocks, and the readout
    assert "15 of 41 lines drawn: the worst of each kind" in " ".join(words(figure))


def test_few_repeated_layers_are_all_drawn():
    figure = draw_divergence(synthetic({f"blocks.{n}.fc": FLAT for n in range(28)}))
    assert len(lines(figure.axes[0])) == 28
    assert not any("lines drawn" in text for text in words(figure))


def test_no_more_lines_are_drawn_however_many_kinds_of_layers_there_are():
    report = synthetic({f"{chr(97 + n % 26)}{chr(97 + n // 26)}": FAST if n == 50 else FLAT for n in range(60)})
    drawn = lines(only(draw_divergence(report))[0])
    assert len(drawn) == 28
    assert "yb" in drawn  # the one that is violated


def test_a_layer_that_left_the_numbers_is_the_worst_of_its_repeats():
    report = repeated(
        {3: 0.2}, noise=lambda width, seed, layer: math.nan if (layer, width) == ("blocks.7.fc", 256) else 0.0
    )
    assert "blocks.7.fc" in lines(draw_divergence(report).axes[0])


def test_colours_follow_the_depth_and_read_in_grey():
    layers = [f"layer {chr(ord('a') + n)}" for n in range(12)]
    drawn = lines(only(draw_divergence(synthetic(dict.fromkeys(reversed(layers), FLAT))))[0])
    shades = [luminance(line.get_color()) for line in drawn.values()]
    assert list(drawn) == layers[::-1]
    assert all(later > earlier + 0.005 for earlier, later in pairwise(shades))
    assert shades[-1] < 0.6


@pytest.mark.fault(3)
@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_runs_that_left_the_numbers_are_marked(lost):
    report = synthetic(
        {"a": FLAT, "b": FLAT}, noise=lambda width, seed, layer: lost if (width, seed) == (128, 1) else 0.0
    )
    figure = draw_divergence(report)
    assert "not finite" in words(figure)
    for axis in only(figure):
        marks = [line for line in axis.lines if line.get_marker() == "x"]
        assert [list(mark.get_xdata()) for mark in marks] == [[128]]
        [[_, height]] = axis.transAxes.inverted().transform(marks[0].get_transform().transform(marks[0].get_xydata()))
        assert 0.9 < height < 1
        assert list(lines(axis)["a"].get_ydata()) == [1.0, 1.0, 1.0]


def test_finite_runs_are_not_marked(drawn):
    assert not [line for axis in drawn.axes for line in axis.lines if line.get_marker() == "x"]


def test_a_readout_initialised_at_zero_is_drawn_from_its_first_step():
    figure = draw_divergence(zeroed(synthetic({"fc": FLAT, "out": FLAT}), "out"))
    start, after = only(figure)
    assert "out: zero by design" in words(figure) or "out" in words(figure)
    assert "out" not in lines(start) or np.isnan(lines(start)["out"].get_ydata()).all()
    assert list(lines(after)["out"].get_ydata()) == [1.0, 1.0, 1.0]


def test_scales_that_are_all_zero_are_drawn_as_empty_panels():
    figure = draw_divergence(synthetic({"fc": {"activation": -math.inf}}))
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < high


@pytest.mark.fault(59)
@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_drawn_as_it_is(tmp_path, name):
    figure = draw_divergence(synthetic({name: GROWING, "fc": FLAT}))
    for axis in only(figure):
        assert set(lines(axis)) == {name, "fc"}
    assert [text.get_text() for text in names(only(figure)[-1])] == [printable(name)]
    save_figure(figure, tmp_path / "figure.svg")
    svg = list(ElementTree.parse(tmp_path / "figure.svg").iter())
    assert not [element for element in svg if element.tag.endswith("script")]
    assert printable(name) in [text for element in svg for text in element.itertext()]


@pytest.mark.fault(59)
@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_mapped_as_it_is(name):
    figure = draw_slope_map(synthetic({name: GROWING, "fc": FLAT}, label=name))
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [printable(name), "fc"]
    assert figure.axes[0].get_title() == printable(name)


def test_a_layer_that_is_called_as_the_wedge_is_named_at_its_own_line():
    [axis] = draw_divergence(synthetic({"_reference": GROWING}, steps=0)).axes
    assert [name.xy for name in names(axis)] == [(256, pytest.approx(16.0))]


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"widths": (64,)}, "no verdict: too few widths"),
        ({"widths": (64, 128)}, "no verdict: too few widths"),
        ({"seeds": 1}, "1 of 1 layers initialised too large"),
        ({"widths": (1, 2, 4, 8, 16, 32, 64)}, "1 of 1 layers initialised too large"),
    ],
)
def test_small_checks_are_drawn(options, title):
    report = synthetic({"fc": GROWING}, **options)
    figure = draw_divergence(report)
    figure.draw_without_rendering()
    assert title in words(figure)
    assert list(lines(figure.axes[0])["fc"].get_xdata()) == report.widths
    draw_slope_map(report).draw_without_rendering()


def test_a_check_without_updates_is_drawn_without_warning():
    assert len(only(draw_divergence(synthetic({"fc": FLAT}, steps=0)))) == 1


@pytest.mark.parametrize(
    "draw", [draw_slope_map, lambda report: draw_divergence(report, View(Quantity.CHANGE))], ids=["map", "lines"]
)
def test_a_quantity_that_was_not_measured_is_refused(draw):
    with pytest.raises(CoordCheckError, match="change"):
        draw(synthetic({"fc": FLAT}, steps=0))


@pytest.mark.parametrize("quantity", [Quantity.CHANGE, Quantity.ACTIVATION])
def test_the_cells_of_the_map_are_the_slopes(report, quantity):
    figure = draw_slope_map(report, View(quantity))
    slopes = report.slopes[report.slopes["quantity"] == quantity.value]
    for axis, label in zip(figure.axes, report.labels, strict=False):
        rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        columns = [int(tick.get_text().removeprefix("t=")) for tick in axis.get_xticklabels()]
        table = slopes[slopes["label"] == label].pivot(index="layer", columns="step", values="slope")
        assert sorted(rows) == sorted(table.index)
        np.testing.assert_array_equal(np.asarray(axis.images[0].get_array()), table.loc[rows, columns].to_numpy())
    shown = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert shown
    assert not any("-" in text for text in words(figure))


def marked(axis: Axes) -> set[tuple[int, int]]:
    """The cells (row, column) of a map that bear a dot."""
    return {(round(y), round(x - 0.4)) for line in axis.lines for x, y in line.get_xydata()}


def test_only_violated_cells_are_marked():
    exponents = {"flat": 0.0, "small": 0.2, "grows": 0.5, "shrinks": -0.5}
    figure = draw_slope_map(synthetic({layer: {"change": exponent} for layer, exponent in exponents.items()}, steps=2))
    assert marked(figure.axes[0]) == {(2, 0), (2, 1), (3, 0), (3, 1)}


def test_an_undecided_cell_is_not_marked():
    noise = np.random.default_rng(0)
    report = synthetic({"fc": {"change": 0.5}}, noise=lambda width, seed, layer: noise.normal(scale=2))
    assert report.verdicts["verdict"].tolist() == ["undecided"]
    assert marked(draw_slope_map(report).axes[0]) == set()


@pytest.mark.parametrize(("exponent", "cells"), [(-0.5, set()), (-1.0, {(0, 0)}), (0.5, {(0, 0)})])
def test_a_readout_is_marked_as_it_is_judged(exponent, cells):
    report = synthetic(
        {"out": {"change": exponent}, "fc": {"change": 0.0}},
        shape=lambda layer, width: (4, 10) if layer == "out" else (4, width),
    )
    assert marked(draw_slope_map(report).axes[0]) == cells


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_everything_on_the_map_stays_on_the_page(layers):
    figure = draw_slope_map(synthetic({f"blocks.{n}.fc": FLAT for n in range(layers)}))
    bar = figure.axes[-1].yaxis.label
    [box] = extents(figure, [bar])
    assert on_page(figure, box)


@pytest.mark.parametrize("draw", [draw_divergence, draw_slope_map])
def test_drawing_changes_no_setting(report, draw):
    with mpl.rc_context({"font.size": 23, "lines.linewidth": 7, "axes.grid": False}):
        before = dict(mpl.rcParams)
        draw(report)
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("draw", "part"), [(draw_divergence, "divergence.finish_axes"), (draw_slope_map, "slope_map._bar")]
)
def test_a_drawing_that_fails_changes_no_setting(monkeypatch, report, draw, part):
    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(f"coordcheck.reporting.figures.{part}", fail)
    before = dict(mpl.rcParams)
    with pytest.raises(RuntimeError, match="stop"):
        draw(report)
    assert dict(mpl.rcParams) == before


def test_saving_changes_no_setting(tmp_path, drawn):
    before = dict(mpl.rcParams)
    save_figure(drawn, tmp_path / "figure.png")
    assert dict(mpl.rcParams) == before


def test_drawing_and_saving_do_not_import_pyplot(tmp_path):
    synthetic({"fc": GROWING}).save(tmp_path)
    program = f"""
import sys, coordcheck
report = coordcheck.load({str(tmp_path)!r})
assert "matplotlib" not in sys.modules
for kind in ("divergence", "slopes"):
    report.figure(kind, path={str(tmp_path)!r} + f"/{{kind}}.png")
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("draw", [draw_divergence, draw_slope_map])
def test_the_same_data_give_the_same_file(monkeypatch, tmp_path, draw, suffix):
    report = synthetic({"fc": GROWING, "out": FLAT})
    for day in (1, 2):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(day * 86_400))
        save_figure(draw(report), tmp_path / f"{day}.{suffix}")
    assert (tmp_path / f"1.{suffix}").read_bytes() == (tmp_path / f"2.{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ({"font.family": ["serif"]}, lambda figure: figure.texts[0].get_fontfamily() == ["serif"]),
        ({"font.size": 15.0}, lambda figure: figure.texts[0].get_fontsize() in (15.0, 18.0)),
        ({"axes.labelsize": 20.0}, lambda figure: figure.axes[0].yaxis.label.get_fontsize() == 20.0),
        ({"axes.facecolor": "lightyellow"}, lambda figure: figure.axes[0].get_facecolor()[2] < 0.9),
        ({"grid.color": "red"}, lambda figure: figure.axes[0].xaxis.get_gridlines()[0].get_color() == "red"),
        (
            {"axes.spines.top": False, "axes.edgecolor": "red"},
            lambda figure: figure.axes[0].spines["left"].get_edgecolor()[0] == 1,
        ),
    ],
    ids=["family", "size", "label", "paper", "grid", "edges"],
)
def test_what_the_user_has_set_is_respected(setting, read):
    report = synthetic({"fc": GROWING, "out": FLAT})
    assert not read(draw_divergence(report))
    with mpl.rc_context(setting):
        before = dict(mpl.rcParams)
        figure = draw_divergence(report)
        assert dict(mpl.rcParams) == before
    assert read(figure)
    assert faults(figure) == []


def test_larger_texts_make_a_larger_figure_and_nothing_is_lost():
    report = synthetic({"fc": GROWING, "out": FLAT})
    plain = report.figure().get_size_inches()
    with mpl.rc_context({"font.size": 15.0}):
        large = report.figure()
    assert large.get_size_inches() == pytest.approx(2 * plain, rel=0.02)
    assert faults(large) == []


@pytest.mark.parametrize("kind", ["divergence", "slopes", "exponents"])
def test_a_theme_of_seaborn_is_respected(report, kind):
    seaborn = pytest.importorskip("seaborn")
    with mpl.rc_context():
        seaborn.set_theme(style="darkgrid", font="DejaVu Serif")
        before = dict(mpl.rcParams)
        figure = report.figure(kind)
        assert dict(mpl.rcParams) == before
    assert {text.get_fontname() for text in texts_of(figure)} == {"DejaVu Serif"}
    assert faults(figure) == []


def test_the_style_does_not_depend_on_when_a_figure_is_shown(drawn):
    """Ticks are made while the style is in force: a figure shown in a notebook is the one that was drawn."""
    assert {text.get_fontsize() for axis in panels(drawn, 2)[1] for text in axis.get_xticklabels()} == {7.0}
    assert {text.get_fontsize() for text in panels(drawn, 2)[0][0].get_yticklabels()} == {7.0}


def test_colours_are_readable_on_dark_paper(report):
    with mpl.rc_context({"axes.facecolor": "black", "figure.facecolor": "black", "text.color": "white"}):
        figure = draw_divergence(report)
    assert all(luminance(line.get_color()) > 0.05 for line in lines(panels(figure, 2)[0][0]).values())
    assert all(luminance(mpl.colors.to_rgb(text.get_color())) > 0.15 for text in figure.texts)


@pytest.mark.parametrize("kind", ["divergence", "slopes", "exponents"])
def test_fonts_are_embedded_whole_in_a_pdf(report, tmp_path, kind):
    with mpl.rc_context({"pdf.compression": 0}):
        report.figure(kind, path=tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in data  # TrueType
    assert b"/Subtype /Type3" not in data


@pytest.mark.parametrize("kind", ["divergence", "slopes", "exponents"])
def test_minus_signs_are_minus_signs(report, kind):
    told = words(report.figure(kind))
    assert not any(re.search(r"-\s*[\d½]", text) for text in told)
    assert any("\N{MINUS SIGN}" in text for text in told)
    with mpl.rc_context({"axes.unicode_minus": False}):  # a font without the sign
        assert not any("\N{MINUS SIGN}" in text for text in words(report.figure(kind)))


# ---- what is chosen


def test_of_many_steps_six_are_drawn_that_tell_most():
    figure = draw_divergence(synthetic({"fc": FLAT}, steps=128))
    titles = [text.get_text() for text in figure.texts if text.get_text().startswith("t = ")]
    assert titles == ["t = 0 (init)", "t = 1", "t = 3", "t = 11", "t = 38", "t = 128"]
    assert draw_slope_map(synthetic({"fc": FLAT}, steps=128, seeds=1)).axes[0].images[0].get_array().shape == (1, 6)
    assert len(only(draw_divergence(synthetic({"fc": FLAT}, steps=5)))) == 6


def test_the_step_that_decided_a_verdict_is_drawn():
    report = synthetic({"fc": FLAT, "late": FLAT}, steps=40)
    for record in report.records:  # from t = 23 on it grows
        record.rows = [
            row._replace(value=row.value * record.key.width) if row.site == 1 and row.step >= 23 else row
            for row in record.rows
        ]
    assert report.layers.set_index("layer").loc["late", "step"] == 23
    titles = [text.get_text() for text in draw_divergence(report).texts]
    assert "t = 23" in titles


def test_the_steps_that_are_asked_for_are_drawn():
    report = synthetic({"fc": FAST}, steps=20)
    figure = report.figure(steps=(0, 7, 19))
    titles = [text.get_text() for text in figure.texts if text.get_text().startswith("t = ")]
    assert titles == ["t = 0 (init)", "t = 7", "t = 19"]
    assert len(only(report.figure(steps=range(21)))) == 21
    assert report.figure("slopes", steps=3).axes[0].images[0].get_array().shape == (1, 1)


def test_the_layers_that_are_asked_for_are_drawn(report):
    assert set(lines(only(report.figure(layers="hidden.*"))[0])) == {"hidden.0", "hidden.1"}
    rows = [text.get_text() for text in report.figure("slopes", layers=["input", "read*"]).axes[0].get_yticklabels()]
    assert rows == ["input", "readout"]
    rows = [text.get_text() for text in report.figure("exponents", layers="hidden.0.*").axes[0].get_yticklabels()]
    assert rows == ["hidden.0.weight"]


@pytest.mark.parametrize("kind", ["divergence", "slopes", "exponents"])
def test_a_figure_has_the_size_that_is_asked_for(report, kind):
    figure = report.figure(kind, figsize=(9, 6))
    assert tuple(figure.get_size_inches()) == pytest.approx((9, 6))
    assert faults(figure) == []


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "divergence",
            {"steps": (0, 9)},
            r"steps= has 9, which was not measured for this figure; known steps are 0, 1, 2",
        ),
        ("slopes", {"steps": 0}, r"steps= has 0, which was not measured for this figure; known steps are 1, 2, 3, 4"),
        ("divergence", {"steps": ()}, r"steps= is empty"),
        ("divergence", {"steps": "0"}, r"steps= must be numbers of updates, got '0'. Give steps=\(0, 1, 4\), say\."),
        (
            "divergence",
            {"layers": "hiden.*"},
            r"layers= names 'hiden\.\*', which matches none of 4 names.*'hidden\.\d'",
        ),
        ("divergence", {"layers": 3}, r"layers= must be names or globs, got 3"),
        ("exponents", {"layers": "body"}, r"layers= names 'body', which matches none of \d+ names"),
        ("divergence", {"figsize": (0, 3)}, r"figsize= must be two positive numbers of inches, got \(0, 3\)"),
        ("divergence", {"figsize": (700, 500)}, r"figsize= must be two positive numbers of inches"),
        (
            "divergence",
            {"figsize": (1.5, 1.5)},
            r"leaves no room for 5 panels beside their texts\. Give figsize=\(\d+, \d+\)",
        ),
        ("slopes", {"figsize": (1.5, 1.5)}, r"leaves no room for 4 rows of 4 steps beside their names\. Give figsize="),
        (
            "exponents",
            {"figsize": (1.5, 1.5)},
            r"leaves no room for 4 rows beside their names\. Give figsize=\(\d+, \d+\)",
        ),
        ("exponents", {"steps": 1}, r"the figure of exponents has no quantity= and no steps="),
    ],
)
def test_what_cannot_be_drawn_is_refused(report, kind, options, message):
    with pytest.raises(CoordCheckError, match=message):
        report.figure(kind, **options)


@pytest.mark.parametrize("kind", ["divergence", "slopes"])
def test_the_size_that_a_refusal_names_is_large_enough(kind):
    report = synthetic({"fc": GROWING, "out": FLAT})
    with pytest.raises(CoordCheckError, match="Give figsize=") as refused:
        report.figure(kind, figsize=(1, 1))
    size = re.search(r"Give figsize=\((\d+), (\d+)\)", str(refused.value))
    assert faults(report.figure(kind, figsize=(int(size[1]), int(size[2])))) == []


# ---- texts are whole, and none stands on another


MAPPED = ("one layer", "long names", "60 layers", "expected")


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "divergence") for name in REPORTS), *((name, "slopes") for name in MAPPED)]
)
def test_no_text_is_cut_off_or_on_another(name, kind):
    figure = REPORTS[name]().figure(kind)
    assert faults(figure) == []
    assert figure.get_size_inches()[0] <= 10.5


def test_texts_that_are_cut_off_or_on_another_are_found():
    figure = Figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "one", ha="center")
    figure.text(0.52, 0.5, "two", ha="center")
    figure.text(0.9, 0.9, "a long text")
    assert faults(figure) == ["'a long text' leaves the page", "'one' and 'two' overlap"]


def test_many_labels_stand_in_two_columns_with_few_steps_each():
    report = labels(5)
    figure = report.figure()
    grid = panels(figure, 5)
    assert len({round(row[0].get_position().x0, 3) for row in grid}) == 2
    assert all(len(row) == 3 for row in grid)
    assert grid[0][0].get_position().width * figure.get_size_inches()[0] > 0.75  # inches: readable
    rows = {round(axis.get_position().y0, 3) for axis in draw_slope_map(REPORTS["ten labels"]()).axes[:-1]}
    assert len(rows) > 1


# ---- many layers


def test_equal_blocks_share_a_row_of_the_map_that_shows_the_worst():
    report = synthetic({f"h.{n}.fc": FAST if n == 7 else FLAT for n in range(50)} | {"out": FLAT})
    figure = draw_slope_map(report)
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert rows == ["h.{0..49}.fc (50)", "out"]
    assert np.asarray(figure.axes[0].images[0].get_array())[:, 0] == pytest.approx([1.0, 0.0])
    assert marked(figure.axes[0]) == {(0, 0)}
    assert any("repeated blocks share a row; each" in text for text in words(figure))


def test_of_too_many_rows_the_worst_are_drawn_and_the_map_says_so():
    letters = [f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}" for n in range(100)]
    report = synthetic({name: FAST if name == "vd" else FLAT for name in letters})
    figure = draw_slope_map(report)
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(rows) == 60
    assert "vd" in rows
    assert any("the worst 60 of 100 rows" in text for text in words(figure))
    assert faults(figure) == []


def test_five_panels_of_twenty_lines_are_drawn_in_no_time():
    report = synthetic({f"layer {n}": FLAT for n in range(20)}, steps=4, seeds=2)
    report.marks  # noqa: B018  # judged before
    start = time.process_time()
    Figure(figsize=(7, 2)).subplots(1, 5)[0].figure.draw_without_rendering()
    empty = time.process_time() - start
    start = time.process_time()
    draw_divergence(report)
    assert time.process_time() - start < max(1.5, 20 * empty)


@pytest.mark.fault(58)
def test_five_thousand_layers_are_mapped_and_drawn_in_little_time_and_memory():
    report = synthetic({f"m{n}.fc" if n % 2 else f"blocks.{n}.fc": FLAT for n in range(5000)}, seeds=1)
    report.marks  # noqa: B018  # judged before
    start = time.process_time()
    for kind in ("slopes", "divergence"):
        figure = report.figure(kind)
        assert max(figure.get_size_inches()) < 15
    assert time.process_time() - start < 20  # it was 83 s, of the map alone
    assert draw_slope_map(report).axes[0].images[0].get_array().shape[0] == 2


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("a.PNG", b"\x89PNG"), ("a", b"\x89PNG"), ("a.svg", b"<?xml"), ("new/a.pdf", b"%PDF")],
)
def test_a_figure_is_saved_as_its_suffix_says(tmp_path, drawn, name, start):
    save_figure(drawn, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_an_unknown_suffix_is_refused(tmp_path, drawn):
    with pytest.raises(CoordCheckError, match=r"cannot save a figure as 'a.xyz'; known suffixes are .png, .svg, .pdf"):
        save_figure(drawn, tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("target", "error"), [("matplotlib.figure.Figure.savefig", ValueError), ("os.replace", OSError)]
)
def test_a_save_that_fails_keeps_the_old_file(monkeypatch, tmp_path, drawn, target, error):
    def fail(*_: object, **__: object) -> None:
        raise error("the disk is full")

    old = tmp_path / "a.png"
    old.write_bytes(b"old")
    monkeypatch.setattr(target, fail)
    with pytest.raises((CoordCheckError, error), match="the disk is full"):
        save_figure(drawn, old)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"old"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path, drawn):
    (tmp_path / "file").write_text("")
    with pytest.raises(CoordCheckError, match=r"cannot write .*file.a\.png: .*Give a folder that can be written"):
        save_figure(drawn, tmp_path / "file" / "a.png")


# ---- exponents


def points(axis: Axes) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The points of a forest plot, by legend text and colour."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for bar in axis.containers:  # before matplotlib 3.9, those without a legend text all have the same
        of_text = found.setdefault((str(bar.get_label()), str(bar.lines[0].get_color())), [])
        of_text += zip(bar.lines[0].get_xdata(), bar.lines[0].get_ydata(), strict=True)
    return found


@pytest.fixture(scope="module")
def forest(report) -> Figure:
    return draw_exponents(report)


def test_the_exponents_have_two_panels_per_label_and_a_row_per_matrix(report, forest):
    assert len(forest.axes) == 4
    rows = [tick.get_text() for tick in forest.axes[0].get_yticklabels()]
    assert rows == ["input.weight", "hidden.0.weight", "hidden.1.weight", "readout.weight"]
    assert [text.get_text() for text in forest.texts] == ["SP: 3 to blame", "µP: none to blame"]
    assert [axis.get_xlabel() for axis in forest.axes] == ["exponent of the width", "distance from target"] * 2


def test_the_points_are_the_exponents_of_the_table(report, forest):
    for label, pair in zip(report.labels, (forest.axes[:2], forest.axes[2:]), strict=True):
        table = report.parameters[report.parameters["label"] == label].set_index("layer")
        matrices = [name for name in table.index if name.endswith("weight")]
        updates = {text: found for (text, _), found in points(pair[0]).items()}
        for text, column in (("own update", "own_update"), ("inherited", "inherited")):
            known = table.loc[matrices, column].dropna()
            assert [x for x, _ in updates[text]] == pytest.approx(list(known))
        distances = [x for found in points(pair[1]).values() for x, _ in found]
        wanted = [*(table["gain"] - table["gain_target"]), *(table["response"] - table["response_target"])[matrices]]
        assert sorted(distances) == pytest.approx(sorted(x for x in wanted if not math.isnan(x)))


def test_what_is_to_blame_is_red(forest):
    red = {
        name: [f for (_, colour), f in points(axis).items() if colour == "#b2182b"]
        for name, axis in (("SP", forest.axes[1]), ("µP", forest.axes[3]))
    }
    assert sum(len(found) for found in red["SP"]) == 4  # three learning rates and the readout's initialisation
    assert sum(len(found) for found in red["µP"]) == 0


def test_exponents_need_a_diagnosis(report):
    with pytest.raises(CoordCheckError, match="nothing was diagnosed"):
        draw_exponents(synthetic({"fc": FLAT}))


def test_the_report_draws_its_exponents(report, tmp_path):
    report.figure("exponents", path=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_repeated_blocks_share_a_row_where_there_are_too_many():
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    build = transformer("SP", depth=7, context=8, vocabulary=16)
    report = diagnose({"SP": build}, tokens, loss=next_byte_loss, widths=(16, 32, 64), seeds=1)
    figure = draw_exponents(report)
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert "blocks.{0..6}.attention.query.weight (7)" in rows
    assert len(rows) < 15
    assert figure.texts[0].get_text() == f"SP: {len(report.culprits)} to blame"
    assert sum(len(found) for found in points(figure.axes[1]).values()) >= len(report.culprits)


# ---- where there is no display, no home and no room


ALONE = """
import sys, matplotlib, coordcheck
report = coordcheck.load(sys.argv[1])
for kind in ("divergence", "slopes"):
    report.figure(kind, path=sys.argv[2] + f"/{kind}.png")
assert "matplotlib.pyplot" not in sys.modules
raw = dict.__getitem__(matplotlib.rcParams, "backend") if isinstance(matplotlib.rcParams, dict) else None
print("chosen" if isinstance(raw, str) else "open")
"""


@pytest.mark.fault(63)
def test_figures_are_drawn_without_a_display_a_home_or_a_place_for_settings(tmp_path):
    synthetic({"fc": FAST, "out": FLAT}, seeds=1).save(tmp_path / "runs")
    gone = ("DISPLAY", "MPLBACKEND", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    (tmp_path / "file").write_text("")
    environment["MPLCONFIGDIR"] = str(tmp_path / "file" / "matplotlib")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "runs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["open"]  # the user's backend is not chosen for them
    for kind in ("divergence", "slopes"):
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
