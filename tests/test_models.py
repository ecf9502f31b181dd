"""The reference models do what their tables say: init, learning rates, multipliers, variants, sources."""

from __future__ import annotations

import cloudpickle
import pytest
import torch

import coordcheck
from coordcheck.models import mlp, parametrization, transformer
from coordcheck.models.parametrizations import FAMILIES

NAMES = ["SP", "SP (PyTorch)", "NTK", "mean-field", "µP"]
# Lingle 2024, table 1: init variance, and learning rate over alpha, at model width M = 256 with P = 64, F = 4 M
LINGLE = {
    "embedding.weight": (1.0, 1.0),
    "blocks.0.attention.query.weight": (1 / 256, 64 / 256),
    "blocks.0.attention.key.weight": (1 / 256, 64 / 256),
    "blocks.0.attention.value.weight": (1 / 256, 64 / 256),
    "blocks.0.attention.output.weight": (1 / 256, 64 / 256),
    "blocks.0.mlp.up.weight": (1 / 256, 64 / 256),
    "blocks.0.mlp.down.weight": (1 / 1024, 64 / 256),
    "unembedding.weight": (1 / 256**2, 64 / 256),
}


def learning_rates(model, optimizer):
    by_id = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def built(build, width=256):
    torch.manual_seed(0)
    return build(width)


@pytest.mark.parametrize("name", LINGLE)
def test_transformer_mup_is_the_table_of_lingle(name):
    model, optimizer = built(transformer("µP", "adam", lr=0.01))
    variance, rate = LINGLE[name]
    weight = model.get_parameter(name)
    assert weight.var().item() == pytest.approx(variance, rel=0.1)
    assert learning_rates(model, optimizer)[name] == pytest.approx(0.01 * rate)


def test_mup_attention_scale_is_one_over_head_size():
    model, _ = built(transformer("µP", heads=4))
    assert model.blocks[0].attention.scale == 1 / 64
    model, _ = built(transformer("SP", heads=4))
    assert model.blocks[0].attention.scale == 1 / 8


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adam", {"input.weight": 1, "hidden.0.weight": 1 / 4, "readout.weight": 1 / 4, "hidden.0.bias": 1}),
        (
            "sgd",
            {"input.weight": 4, "hidden.0.weight": 1, "readout.weight": 1 / 4, "hidden.0.bias": 4, "readout.bias": 1},
        ),
    ],
)
def test_mlp_mup_learning_rates_are_those_of_tensor_programs_v(optimizer, expected):
    model, made = built(mlp("µP", optimizer, lr=1.0))
    rates = learning_rates(model, made)
    assert {name: rates[name] for name in expected} == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_parametrization_has_a_source_and_trains(family, name, optimizer):
    table = parametrization(family, name, optimizer)
    assert table.source
    build = {"mlp": mlp, "transformer": transformer}[family](name, optimizer, lr=1e-3)
    model, made = built(build, 64)
    held = {id(p) for group in made.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_the_exponents_of_init_and_multiplier_are_those_of_the_table(name):
    build = mlp(name, "adam", biases=False)
    narrow, wide = built(build, 256)[0], built(build, 1024)[0]
    rules = parametrization("mlp", name, "adam").rules
    for layer, role in (("input", "input"), ("hidden.0", "hidden"), ("readout", "readout")):
        small, large = narrow.get_submodule(layer), wide.get_submodule(layer)
        exponent = torch.log2(large.weight.std() / small.weight.std()).item() / 2
        assert exponent == pytest.approx(rules[role].init, abs=0.05)
        assert large.multiplier / small.multiplier == pytest.approx(4 ** rules[role].multiplier)


def test_all_parametrizations_share_their_learning_rates_at_the_base_width():
    for name in NAMES:
        model, optimizer = built(mlp(name, "adam", lr=0.5), 64)
        assert set(learning_rates(model, optimizer).values()) == {0.5}


def test_sp_pytorch_keeps_the_init_of_torch():
    model, _ = built(mlp("SP (PyTorch)"))
    bound = 256**-0.5
    assert 0.99 * bound < model.readout.weight.abs().max().item() <= bound


@pytest.mark.parametrize(("grows", "width", "heads", "head_size"), [("head size", 256, 4, 64), ("heads", 256, 16, 16)])
def test_width_grows_by_head_size_or_by_heads(grows, width, heads, head_size):
    attention = built(transformer("µP", grows=grows, heads=4, head_size=16), width)[0].blocks[0].attention
    assert (attention.heads, attention.head_size) == (heads, head_size)


def test_grouped_query_attention_equals_multi_head_with_repeated_heads():
    torch.manual_seed(0)
    grouped = transformer("SP", kv_heads=2, heads=4)(64)[0]
    full = transformer("SP", heads=4)(64)[0]
    state = grouped.state_dict()
    for name, weight in state.items():
        if name.endswith(("key.weight", "value.weight")):
            state[name] = weight.view(2, 16, 64).repeat_interleave(2, dim=0).reshape(64, 64)
    full.load_state_dict(state)
    tokens = torch.randint(256, (2, 8))
    torch.testing.assert_close(grouped(tokens), full(tokens))


def test_the_transformer_is_causal():
    model, _ = built(transformer("SP"), 64)
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 256
    torch.testing.assert_close(model(tokens)[:, :-1], model(changed)[:, :-1])


def test_tied_embeddings_are_one_parameter():
    model, _ = built(transformer("µP", tied=True))
    assert "unembedding.weight" not in dict(model.named_parameters())
    assert model.readout_multiplier == 1 / 256


def test_builders_can_be_pickled():
    build = cloudpickle.loads(cloudpickle.dumps(transformer("µP", "sgd", norm="layernorm", biases=True)))
    assert sum(p.numel() for p in build(64)[0].parameters()) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp("XP"), "no parametrization 'XP'; known are SP, SP \\(PyTorch\\), NTK, mean-field, µP"),
        (lambda: mlp(optimizer="lbfgs"), "optimizer must be one of 'sgd', 'adam', 'adamw', got 'lbfgs'"),
        (lambda: mlp(dept=3), "unexpected keyword argument 'dept'; known are depth, inputs"),
        (lambda: transformer(norm="batchnorm"), "norm must be one of 'rmsnorm', 'layernorm'"),
        (lambda: transformer(heads=3)(64), "width 64 is not a multiple of 3"),
        (lambda: transformer(kv_heads=3)(64), "4 heads cannot share 3 key and value heads"),
        (lambda: mlp(zero_init=("query",))(64), "zero_init names \\['query'\\]"),
    ],
)
def test_messages(make, message):
    with pytest.raises(coordcheck.CoordCheckError, match=message):
        make()
