"""Names of the user's that are like ours: each layer and parameter keeps one of its own, with its own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Called, pair_batch, power_law_records
from torch import Tensor, nn

import coordcheck
from coordcheck import Report
from coordcheck.pytest_plugin.baselines import baseline_of, compare
from coordcheck.pytest_plugin.baselines.files import read_baseline, write_baseline
from coordcheck.runs.folds import folded
from coordcheck.runs.names import distinct
from coordcheck.runs.records import Row, RunKey, RunRecord, Site
from coordcheck.runs.words import Kind, Quantity, Status

OPTIONS: dict[str, Any] = {"loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": 1, "steps": 1}
AWKWARD = [
    *(
        "a/b",
        "a:b",
        "a@linear",
        "a/forward",
        "out[0]",
        "a.b",
        " ",
        "µ",
        "层",
        "e\u0301",
        "\u202e",
        "a\nb",
        "a\\nb",
        "*",
    ),
    *(
        "a[0]",
        "weight",
        "first.weight",
        "first.weight@linear",
        "\udcff",
        "\\udcff",
        "0",
        "__proto__",
        "'",
        '"',
        "~2",
        "-",
    ),
]


class Chain(nn.Module):
    """Linear layers of these names, called in this order, some several times."""

    def __init__(self, width: int, names: Sequence[str]) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        for name in dict.fromkeys(names):
            setattr(self, name, nn.Linear(width, width))  # takes names that add_module refuses
        self.last, self.order = nn.Linear(width, 10), names

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for name in self.order:
            x = self._modules[name](x).relu()
        return self.last(x)


def checked(make: Callable[[int], nn.Module], **options: Any) -> Report:
    def build(width: int) -> Any:
        model = make(width)
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    return coordcheck.check({"model": build}, pair_batch(), **{**OPTIONS, **options})


def rows_of(report: Report, layer: str) -> list[tuple[Any, ...]]:
    rows = report.measurements[report.measurements["layer"] == layer]
    return sorted(zip(*(rows[name] for name in ("width", "step", "quantity", "value")), strict=True))


def assert_whole(report: Report, folder: Path) -> None:
    """Every row has a name of its own, in the tables, the figures, the files and the baseline."""
    assert not report.verdicts["layer"].duplicated().any()
    assert "diagnosis failed" not in "".join(report.notes)
    for kind in ("divergence", "slopes", "exponents"):
        report.figure(kind)
    assert "VIOLATED" in str(report) or "model" in str(report)
    report.save(folder / "runs")
    assert coordcheck.load(folder / "runs").to_json() == report.to_json()
    stored = baseline_of(report)
    assert len(stored.entries) == len(report.verdicts)
    write_baseline(folder / "baseline.json", stored)
    assert compare(read_baseline(folder / "baseline.json"), report).same


def test_awkward_names_are_layers_and_parameters_like_others(tmp_path: Path):
    report = checked(lambda width: Chain(width, AWKWARD))
    assert set(AWKWARD) <= set(report.layers["layer"])
    assert len(report.parameters) == 2 * (2 + len(AWKWARD))
    assert_whole(report, tmp_path)


@pytest.mark.parametrize("order", [("a", "a", "a#2"), ("a#2", "a", "a"), ("a", "a#2", "a", "a#2")])
def test_a_second_call_and_a_module_of_its_name_are_two_layers(order: tuple[str, ...], tmp_path: Path):
    report = checked(lambda width: Chain(width, order))
    plain = checked(lambda width: Chain(width, [name.replace("a#2", "b") for name in order]))
    assert_whole(report, tmp_path)
    for name, other in {"a": "a", "a#2": "b", "a#2~2": "a#2", "a#2.weight": "b.weight"}.items():
        assert rows_of(report, name) == rows_of(plain, other) != []
    assert ("a#2#2" in set(report.layers["layer"])) is (order.count("a#2") == 2)


def test_an_output_of_a_tuple_and_a_module_of_its_name_are_two_layers(tmp_path: Path):
    def make(width: int, name: str = "pair:out[0]") -> nn.Module:
        pair = Called(lambda self, x: (self.inner(x) * 2, x), inner=nn.Linear(width, width))
        model = Called(
            lambda self, x: self.last(self._modules[name](self.pair(self.first(x))[0]).relu()),
            first=nn.Linear(64, width),
            pair=pair,
            last=nn.Linear(width, 10),
        )
        model.add_module(name, nn.Linear(width, width))
        return model

    report, plain = checked(make), checked(lambda width: make(width, "other"))
    assert_whole(report, tmp_path)
    assert rows_of(report, "pair:out[0]") == rows_of(plain, "other") != []
    assert rows_of(report, "pair:out[0]~2") == rows_of(plain, "pair:out[0]") != []


def test_a_function_and_a_module_of_its_name_are_two(tmp_path: Path):
    def make(width: int) -> nn.Module:
        model = Called(
            lambda self, x: self.last(self._modules["act/forward"](self.act(self.first(x)))),
            first=nn.Linear(64, width),
            act=nn.ReLU(),
            last=nn.Linear(width, 10),
        )
        model.add_module("act/forward", nn.Linear(width, width))
        return model

    report = checked(make)
    assert_whole(report, tmp_path)
    kinds = report.measurements.drop_duplicates("layer").set_index("layer")["kind"]
    assert (kinds["act/forward"], kinds["act/forward~2"]) == ("module", "function")


def test_a_second_use_and_a_parameter_of_its_name_are_two(tmp_path: Path):
    def make(width: int) -> nn.Module:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x @ self._parameters["w@linear"] @ self.w + F.linear(x, self.w))

        scale = width**-0.5
        parts = {"first": nn.Linear(64, width), "last": nn.Linear(width, 10)}
        model = Called(forward, **parts, w=torch.randn(width, width) * scale)
        model.register_parameter("w@linear", nn.Parameter(torch.randn(width, width) * scale))
        return model

    report = checked(make)
    assert_whole(report, tmp_path)
    assert {"w", "w@linear", "w@linear~2"} <= set(report.parameters["layer"])


def test_a_recorder_tells_them_apart_too():
    model = Chain(16, ("a", "a", "a#2"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = pair_batch()
    with coordcheck.Recorder(model, optimizer, width=16, steps=1) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    names = [site.layer for site in recorder.record.sites]
    assert len(set(names)) == len(names)
    assert {"a", "a#2", "a#2~2"} <= set(names)


def test_a_fold_and_a_layer_of_its_name_are_two():
    layers = ["blocks.0.fc", "blocks.1.fc", "blocks.last.fc", "blocks.1.pair:out[0]"]
    sites = [Site(layer, place, Kind.MODULE, (4, 8), "float32") for place, layer in enumerate(layers)]
    rows = [Row(place, 0, Quantity.ACTIVATION, 1.0 + place, Status.OK) for place in range(len(sites))]
    (found,) = folded([RunRecord(RunKey("SP", 8, 0), sites=sites, rows=rows)], {"blocks": "last"})
    values = {found.sites[row.site].layer: row.value for row in found.rows}
    assert values == {"blocks.last.fc~2": 2.0, "blocks.last.fc": 3.0, "blocks.last.pair:out[0]": 4.0}


def test_the_mean_of_a_fold_does_not_overflow():
    sites = [Site(f"blocks.{place}", place, Kind.MODULE, (4, 8), "float32") for place in range(2)]
    rows = [Row(place, 0, Quantity.ACTIVATION, 1e200 * (1 + 6 * place), Status.OK) for place in range(2)]
    (found,) = folded([RunRecord(RunKey("SP", 8, 0), sites=sites, rows=rows)], {"blocks": "mean"})
    assert [row.value for row in found.rows] == [pytest.approx(5e200)]


def test_a_baseline_tells_names_apart_that_look_the_same():
    flat, growing = {"activation": 0.0, "change": 0.0}, {"activation": 0.0, "change": 1.0}
    report = Report(power_law_records({"a\nb": flat, "a\\nb": growing}))
    stored = baseline_of(report)
    verdicts = {name.name: entry.verdict for name, entry in stored.entries.items()}
    assert verdicts == {r"a\nb": "ok", r"a\nb~2": "blows up"}
    assert compare(stored, report).same


def test_a_name_is_only_changed_where_it_is_taken():
    assert distinct("fc#2", {"fc"}) == "fc#2"
    assert distinct("fc#2", {"fc", "fc#2", "fc#2~2"}) == "fc#2~3"
