"""Both controls, always: the reference models in µP pass, in SP they fail, with the layers that theory names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, sampled

import coordcheck
from coordcheck.analysis.verdicts import Verdict
from coordcheck.checks.demo import next_byte_loss, text_batch
from coordcheck.models import mlp, transformer

MLP_RATES = {"adam": 3e-3, "sgd": 0.1}
TRANSFORMER_RATES = {"adam": 3e-3, "sgd": 0.3}
CONTEXT = 24


def check_mlp(parametrization, optimizer, **options):
    build = mlp(parametrization, optimizer, lr=MLP_RATES[optimizer], **options)
    return coordcheck.check({"model": build}, pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256, 512), seeds=4)


def check_transformer(parametrization, optimizer, **options):
    tokens = text_batch()[:4, : CONTEXT + 1]
    build = transformer(parametrization, optimizer, lr=TRANSFORMER_RATES[optimizer], context=CONTEXT, **options)
    return coordcheck.check({"model": build}, tokens, loss=next_byte_loss, widths=(64, 128, 512), seeds=3)


CHECKS = {"MLP": check_mlp, "Transformer": check_transformer}
PAIRS = [(model, optimizer) for model in CHECKS for optimizer in ("adam", "sgd")]


def slope(report, layer, quantity="change", step=1):
    table = report.slopes
    found = table[(table["layer"] == layer) & (table["quantity"] == quantity) & (table["step"] == step)]
    return found["slope"].item()


def words(report):
    return dict(zip(report.layers["layer"], report.layers["verdict"], strict=True))


@pytest.mark.parametrize(("model", "optimizer"), PAIRS)
def test_mup_passes(model, optimizer):
    report = CHECKS[model]("µP", optimizer)
    assert report.exit_code == 0, str(report)
    assert set(report.verdicts["verdict"]) == {"ok"}


def test_mup_sgd_passes_when_the_heads_grow():
    assert check_transformer("µP", "sgd", grows="heads").exit_code == 0


def check_random_tokens(parametrization="µP", **options):
    """SGD with a growing head size, on tokens without structure."""
    tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
    build = transformer(parametrization, "sgd", lr=0.1, vocabulary=64, context=16)
    return coordcheck.check({"model": build}, tokens, loss=next_byte_loss, widths=(64, 128, 256), **options)


QUERY = "blocks.0.attention.query"


def test_queries_and_keys_that_shrink_at_first_are_transient():
    # gradients of the logits are random at initialisation: the first SGD step moves queries and keys as n ** -1/2
    report = check_random_tokens()
    assert slope(report, QUERY) == pytest.approx(-0.5, abs=0.1)
    assert words(report)[QUERY] == "ok"
    assert "queries and keys may shrink" in report.layers.set_index("layer").loc[QUERY, "explanation"]
    assert report.exit_code == 0


def test_without_a_diagnosis_nobody_knows_that_they_are_queries():
    assert words(check_random_tokens(probe=None))[QUERY] == "vanishes"


@pytest.mark.parametrize("parametrization", sampled(["SP", "SP (PyTorch)"], 2))
@pytest.mark.parametrize(("model", "optimizer"), PAIRS)
def test_sp_fails(model, optimizer, parametrization):
    report = CHECKS[model](parametrization, optimizer)
    assert report.exit_code == 1
    assert "blows up" in set(report.verdicts["verdict"])


def test_sp_adam_names_hidden_matrices_and_readout_but_not_the_input():
    found = words(check_mlp("SP", "adam"))
    assert found == {"input": "ok", "hidden.0": "blows up", "hidden.1": "blows up", "readout": "blows up"}


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adam", {"input": 0.0, "hidden.0": 1.0, "readout": 1.25}),
        ("sgd", {"input": -0.5, "hidden.0": 0.5, "readout": 1.0}),
    ],
)
def test_sp_changes_have_the_exponents_of_theory(optimizer, expected):
    # under Adam the readout's own exponent is 1, and what it inherits tends to 3/2 beyond these widths
    report = check_mlp("SP", optimizer)
    measured = {layer: slope(report, layer) for layer in expected}
    assert measured == pytest.approx(expected, abs=0.3)


def test_ntk_passes_the_plain_check_and_fails_on_change():
    report = check_mlp("NTK", "sgd")
    assert abs(slope(report, "hidden.1", "activation", step=4)) < 0.1
    assert words(report)["hidden.1"] == "vanishes"
    assert report.exit_code == 1


def test_mean_field_with_sgd_vanishes_everywhere():
    report = check_mlp("mean-field", "sgd")
    assert report.status == {"model": Verdict.VANISHES}
    assert slope(report, "hidden.0") == pytest.approx(-1.0, abs=0.2)


VARIANTS = [
    {"norm": "layernorm", "biases": True},
    {"gains": False, "activation": "squared relu"},
    {"activation": "swiglu", "kv_heads": 2},
    {"kv_heads": 1},
    {"tied": True},
    {"grows": "heads"},
    {"zero_init": ("unembedding", "query")},
    {"attention_scale": "1/sqrt(D)", "grows": "heads"},
]


@pytest.mark.parametrize(
    "options",
    sampled(VARIANTS, 2),
    ids=lambda options: ", ".join(f"{k}={v}" for k, v in options.items()),
)
def test_every_transformer_variant_passes_in_mup(options):
    report = check_transformer("µP", "adam", **options)
    assert report.exit_code == 0, str(report)


@pytest.mark.fault(50)
def test_zero_initialised_readout_is_judged_at_its_first_movement():
    report = check_mlp("µP", "adam", zero_init=("readout",))
    hidden = report.verdicts.set_index("layer").loc["hidden.0"]
    assert (hidden["verdict"], hidden["step"]) == ("ok", 2)


def test_zero_initialised_readout_does_not_hide_sp():
    report = check_mlp("SP", "adam", zero_init=("readout",))
    assert words(report)["hidden.0"] == "blows up"


def test_a_check_of_a_model_that_does_not_train_decides_nothing():
    report = coordcheck.check(
        {"model": mlp("µP", lr=0.0)}, pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256), seeds=2
    )
    assert set(report.layers["verdict"]) == {"frozen"}
    assert set(report.parameters["verdict"]) == {"undecided"}
    assert report.exit_code == 3
