"""The families that users bring: SP as their libraries make them is violated, and µP by hand passes."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import pytest
from conftest import sampled
from zoo import FAMILIES, WIDTHS, Unused, in_mup, library, with_adamw

import coordcheck
from coordcheck.analysis.verdicts import Verdict
from coordcheck.runs.words import Role


def family(name):
    """A family whose library is installed."""
    found = FAMILIES[name]
    try:
        library(found.package)
    except ImportError as error:
        pytest.skip(f"{found.package} cannot be imported: {error}")
    return found


def builds(found, **options):
    return {"SP": partial(with_adamw, found, **options), "µP": found.mup or partial(in_mup, found, **options)}


def all_builds(found):
    """SP and µP, and where attention comes fused, too, µP twice: logits are rebuilt alike, whatever the weights are."""
    fused = {"µP fused": builds(found, attention="sdpa")["µP"]} if found.fused else {}
    return builds(found) | fused


def parameters(report, label):
    return report.parameters[report.parameters["label"] == label]


def assert_stable_names(records):
    """No run failed, and at every width of a label the same sites were seen."""
    names = {}
    for record in records:
        assert record.finished, record.reason
        sites = {site.layer for site in record.sites}
        diagnosed = bool(record.uses)
        assert names.setdefault((record.key.label, diagnosed), sites) == sites


def assert_covered(report, label, reasons):
    """Every trained parameter has a row, and those that are not visible say why."""
    table = parameters(report, label)
    trained = {info.name for r in report.records if r.key.label == label for info in r.parameters}
    assert trained <= set(table["parameter"])
    hidden = table[table["verdict"] == Verdict.NOT_VISIBLE.value]
    for row in hidden.itertuples():
        found = [why for glob, why in reasons.items() if fnmatchcase(row.layer, glob)]
        assert any(why in row.explanation for why in found), f"{row.layer}: {row.explanation}"
    assert bool(len(hidden)) == bool(reasons)


def assert_blames_the_hidden_matrices(report, label):
    assert report.status[label].violated
    table = parameters(report, label)
    hidden = table[table["role"] == Role.HIDDEN.value]
    assert len(hidden)
    assert hidden["culprit"].all(), hidden[~hidden["culprit"].astype(bool)]["layer"].tolist()


def assert_passes(report, label):
    assert report.status[label] is Verdict.OK, str(report)
    assert not parameters(report, label)["culprit"].any()
    assert report.parametrizations[label] == "µP"


def assert_alike(report, label, fused):
    """Attention logits have the same exponents, whether they are computed or rebuilt."""
    tables = [parameters(report, name) for name in (label, fused)]
    logits, others = (table[table["role"] == Role.ATTENTION.value] for table in tables)
    assert len(logits) == len(others) > 0
    for column in ("gain", "gain_target"):
        np.testing.assert_allclose(logits[column], others[column], atol=0.02)


def test_timm_is_imported_without_torchvision_and_nothing_is_left_in_its_place():
    family("timm vit")
    assert not any(isinstance(module, Unused) for module in sys.modules.values())


ALIKE = {
    *("gpt2 heads=4", "llama", "llama heads=4", "qwen3", "qwen3-moe", "mixtral", "bert", "mamba", "vit"),
    *("timm vit", "timm resnet", "torch GRU", "torch decoder", "torch attention"),
}
"""Families beside one that has all that they have."""
TOLD = {"gpt2", "t5", "mamba2", "timm resnet", "torch LSTM", "mup encoder MuAdam"}


def tried(names):
    """All families; those that are not named are left to the thorough tests."""
    return [pytest.param(name, marks=[pytest.mark.thorough] * (name not in names)) for name in FAMILIES]


@pytest.mark.parametrize("name", tried(FAMILIES.keys() - ALIKE))
def test_a_family_is_diagnosed(name):
    found = family(name)
    report = coordcheck.diagnose(all_builds(found), found.batch(), loss=found.loss, widths=WIDTHS)
    assert_stable_names(report.records)
    for label in report.labels:
        assert_covered(report, label, found.not_visible)
        if label.startswith("SP"):
            assert_blames_the_hidden_matrices(report, label)
        else:
            assert_passes(report, label)
    if found.fused:
        assert_alike(report, "µP", "µP fused")


@pytest.mark.parametrize("name", tried(TOLD))
def test_a_check_tells_sp_from_mup(name):
    found = family(name)
    report = coordcheck.check(
        builds(found), found.batch(), loss=found.loss, widths=WIDTHS, seeds=2, steps=2, probe=None
    )
    assert_stable_names(report.records)
    assert report.status["SP"].violated
    assert not report.status["µP"].violated, str(report)


@pytest.mark.parametrize("name", sampled(["mup mlp MuSGD", "mup encoder MuAdam", "gpt2"], 3))
def test_a_check_with_its_defaults_decides(name):
    """Four widths and three seeds; of three widths and three seeds, half of the same checks are undecided."""
    found = family(name)
    report = coordcheck.check(builds(found), found.batch(), loss=found.loss)
    assert_stable_names(report.records)
    assert_blames_the_hidden_matrices(report, "SP")
    assert_passes(report, "µP")
