"""The remedies close the loop: apply the printed factors, check again with new seeds, and the model passes."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, sampled

import coordcheck
from coordcheck.checks.demo import next_byte_loss, text_batch
from coordcheck.models import mlp, transformer

BASE_WIDTH = 64
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
FACTOR = re.compile(r"multiply (?P<what>[\w' ]+?) by m\^(?P<exponent>-?[\d.]+)")


def printed_factors(report):
    """(name, what to multiply, exponent) as the remedies say it in words."""
    found = []
    for remedy in report.culprits["remedy"]:
        name, _, text = remedy.partition(": ")
        found += [(name, match["what"], float(match["exponent"])) for match in FACTOR.finditer(text)]
    return found


def mended(build, factors, optimizer):
    """The same factory, with every printed factor applied."""

    def build_mended(width):
        model, made = build(width)
        parameters = dict(model.named_parameters())
        rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
        for name, what, exponent in factors:
            power = (width / BASE_WIDTH) ** exponent
            if what == "its learning rate":
                rates[id(parameters[name])] *= power
            elif what == "its initial standard deviation":
                parameters[name].data.mul_(power)
            elif what == "its forward multiplier":
                layer = model.get_submodule(name.rpartition(".")[0])
                layer.multiplier *= power
            else:
                assert what == "the attention scale"
                model.get_submodule(name.partition("/")[0]).scale *= power
        groups = [{"params": [p], "lr": rates[id(p)]} for p in model.parameters()]
        return model, OPTIMIZERS[optimizer](groups, lr=0.0)

    return build_mended


def check_mlp(build, seeds):
    return coordcheck.check(
        {"model": build}, pair_batch(1), loss=F.cross_entropy, widths=(64, 128, 256, 512), seeds=seeds
    )


def check_transformer(build, seeds):
    return coordcheck.check(
        {"model": build}, text_batch()[:4, :25], loss=next_byte_loss, widths=(64, 128, 512), seeds=seeds
    )


MLPS = [(name, optimizer) for name in ("SP", "SP (PyTorch)", "NTK", "mean-field") for optimizer in OPTIMIZERS]


@pytest.mark.parametrize(("parametrization", "optimizer"), sampled([pytest.param(*pair) for pair in MLPS], 2))
def test_mlps_pass_once_the_printed_factors_are_applied(parametrization, optimizer):
    build = mlp(parametrization, optimizer, lr={"adam": 3e-3, "sgd": 0.1}[optimizer], base_width=BASE_WIDTH)
    before = coordcheck.diagnose({"model": build}, pair_batch(), loss=F.cross_entropy)
    assert len(before.culprits)
    repaired = mended(build, printed_factors(before), optimizer)
    after = check_mlp(repaired, seeds=[10, 11, 12, 13])
    assert after.exit_code == 0, str(after)
    assert after.culprits.empty
    # and the check that passes is one that failed before
    assert check_mlp(build, seeds=[10, 11, 12, 13]).exit_code == 1


@pytest.mark.parametrize("parametrization", sampled(["SP", "SP (PyTorch)"], 2))
def test_transformers_pass_once_the_printed_factors_are_applied(parametrization):
    build = transformer(parametrization, "adam", lr=3e-3, context=24, base_width=BASE_WIDTH)
    before = coordcheck.diagnose({"model": build}, text_batch()[:4, :25], loss=next_byte_loss)
    factors = printed_factors(before)
    assert {what for _, what, _ in factors} == {
        "its learning rate",
        "its initial standard deviation",
        "the attention scale",
    }
    after = check_transformer(mended(build, factors, "adam"), seeds=[10, 11, 12])
    assert after.exit_code == 0, str(after)


def test_a_wrong_factor_does_not_close_the_loop():
    build = mlp("SP", "adam", lr=3e-3, base_width=BASE_WIDTH)
    before = coordcheck.diagnose({"model": build}, pair_batch(), loss=F.cross_entropy)
    wrong = [(name, what, -exponent) for name, what, exponent in printed_factors(before)]
    assert check_mlp(mended(build, wrong, "adam"), seeds=[10, 11, 12]).exit_code == 1
