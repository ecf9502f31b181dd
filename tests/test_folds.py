"""Repeated blocks under one name: which values they have, and that a depth axis can be judged by them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, power_law_records
from torch import nn

import coordcheck
from coordcheck import CoordCheckError, Report
from coordcheck.analysis.criteria import Criteria
from coordcheck.analysis.measurements import measurements
from coordcheck.runs.folds import folded
from coordcheck.runs.words import Status

BLOCKS = {f"blocks.{k}.mlp": {"activation": float(k)} for k in range(3)} | {"readout": {"activation": 0.0}}


def scales(how: str) -> dict[str, float]:
    """Layer -> its scale at width 64, where block k has 64 ** k."""
    table = measurements(folded(power_law_records(BLOCKS, seeds=1, steps=0), {"blocks": how}))
    return table[table["width"] == 64].set_index("layer")["value"].to_dict()


@pytest.mark.parametrize(
    ("how", "value"), [("first", 1.0), ("last", 64.0**2), ("mean", math.sqrt((1 + 64.0**2 + 64.0**4) / 3))]
)
def test_blocks_become_one_layer(how, value):
    assert scales(how) == {f"blocks.{how}.mlp": pytest.approx(value), "readout": 1.0}


def test_containers_inside_of_containers_and_names_that_only_look_alike():
    names = ["a.blocks.0", "a.blocks.0.fc", "a.blocks.1", "a.blocks.1.fc", "a.blocks10", "blocks.0", "a.blocks.1.fc#2"]
    records = power_law_records({name: {"activation": 0.0} for name in names}, seeds=1, steps=0)
    table = measurements(folded(records, {"a.blocks": "last"}))
    found = ["a.blocks.last", "a.blocks.last.fc", "a.blocks10", "blocks.0", "a.blocks.last.fc#2"]
    assert list(dict.fromkeys(table["layer"])) == found


@pytest.mark.parametrize("end", [":out[0]", ":out.logits", "#2", "#2:out[1]", ".attn:out[0]", ".attn#3:out['a']"])
def test_every_output_of_every_call_is_folded(end):
    names = [f"blocks.{number}{end}" for number in range(3)] + [f"blocks2.0{end}", f"blocks.x{end}"]
    records = power_law_records({name: {"activation": 0.0} for name in names}, seeds=1, steps=0)
    table = measurements(folded(records, {"blocks": "last"}))
    assert set(table["layer"]) == {f"blocks.last{end}", f"blocks2.0{end}", f"blocks.x{end}"}


class Pair(nn.Module):
    """A residual block that returns a tuple, as decoder layers do, from its second call on as well."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.fc, self.depth = nn.Linear(32, 32), depth

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x + torch.relu(self.fc(x)) / self.depth, None


class Pairs(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(64, 32), nn.ModuleList(Pair(2 * depth) for _ in range(depth))
        self.readout = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in [*self.blocks, *self.blocks]:
            x = block(x)[0]
        return self.readout(x)


def test_blocks_that_return_tuples_are_folded_along_depth():
    def build(depth: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Pairs(depth)
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    options = {"widths": (2, 4, 8), "seeds": 3, "axis": "depth", "fold": {"blocks": "last"}, "steps": 1}
    report = coordcheck.check(build, pair_batch(), loss=F.cross_entropy, **options)
    folded_names = {f"blocks.last{end}" for end in (".fc", ":out[0]", ".fc#2", "#2:out[0]")}
    assert set(report.layers["layer"]) == {"first", "readout", *folded_names}


def test_records_are_not_changed_and_no_fold_is_none():
    records = power_law_records(BLOCKS, seeds=1)
    before = [record.to_json() for record in records]
    folded(records, {"blocks": "mean"})
    assert [record.to_json() for record in records] == before
    assert folded(records, {"nothing": "last"}) == records


def test_a_block_without_a_value_leaves_the_mean_without_one():
    records = power_law_records(BLOCKS, seeds=1, steps=0)
    row = records[0].rows[0]
    records[0].rows[0] = row._replace(value=None, status=Status.NAN)
    table = measurements(folded(records, {"blocks": "mean"}))
    assert table.loc[table["width"] == 64, "status"].tolist() == ["nan", "ok"]


class Residual(nn.Module):
    """A residual net of `depth` blocks, each scaled by depth ** -power."""

    def __init__(self, depth: int, power: float) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.readout = nn.Linear(32, 10)
        self.scale = depth**-power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + self.scale * torch.relu(block(x))
        return self.readout(x)


def by_depth(power: float, fold: dict[str, str] | None) -> Report:
    def build(depth: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Residual(depth, power)
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    options = {"widths": (2, 4, 8, 16), "seeds": 3, "axis": "depth", "fold": fold, "steps": 2}
    return coordcheck.check(build, pair_batch(), loss=F.cross_entropy, **options)


def test_along_depth_the_last_block_is_compared_with_the_last():
    plain, last = by_depth(0.0, None), by_depth(0.0, {"blocks": "last"})
    assert plain.layers.set_index("layer").loc["blocks.15", "verdict"] == "not compared"
    assert not any(layer.startswith("blocks.") for layer in {*last.layers["layer"]} - {"blocks.last"})
    row = last.layers.set_index("layer").loc["blocks.last"]
    assert row["verdict"] not in ("ok", "not compared")  # the stream grows with every block


def test_the_fold_is_saved_with_the_check(tmp_path):
    report = Report(power_law_records(BLOCKS), Criteria(axis="depth", fold={"blocks": "last"}))
    report.save(tmp_path)
    assert set(coordcheck.load(tmp_path).layers["layer"]) == {"blocks.last.mlp", "readout"}
    assert set(coordcheck.load(tmp_path, fold={}).layers["layer"]) == set(BLOCKS)


def test_what_is_no_fold_is_refused():
    for wrong in ({"blocks": "median"}, ["blocks"], {1: "last"}):
        with pytest.raises(CoordCheckError, match="fold must map paths of containers to first, last, mean, such as"):
            coordcheck.check(lambda depth: None, fold=wrong)
