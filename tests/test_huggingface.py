"""Configs of transformers -> factories: which fields grow, what is refused, and a factory like any other."""

from __future__ import annotations

import cloudpickle
import pytest
import torch

import coordcheck
from coordcheck import huggingface
from coordcheck.common.errors import CoordCheckError
from coordcheck.training.fingerprints.fingerprint import describe_callable

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def llama(**changed):
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 8, "num_key_value_heads": 4}
    return transformers.LlamaConfig(**{**sizes, "num_hidden_layers": 1, "vocab_size": 50, **changed})


def gpt2(**changed):
    return transformers.GPT2Config(n_embd=64, n_head=8, n_layer=1, vocab_size=50, n_positions=16, **changed)


def sizes(config):
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    return tuple(getattr(config, name) for name in names)


def test_by_default_the_sizes_keep_their_ratio_and_heads_their_size():
    build = huggingface(llama())
    assert sizes(build.config_at(64)) == (64, 176, 8, 4, 8)
    assert sizes(build.config_at(128)) == (128, 352, 16, 8, 8)


def test_a_factor_is_times_the_width():
    build = huggingface(llama(), {"hidden_size": 1, "intermediate_size": 2.5, "num_attention_heads": None})
    assert sizes(build.config_at(32))[:3] == (32, 80, 4)


def test_a_head_size_that_the_config_computed_follows():
    build = huggingface(llama(), {"hidden_size": 1})
    assert sizes(build.config_at(256)) == (256, 176, 8, 4, 32)
    assert build(256)[0].model.layers[0].self_attn.q_proj.weight.shape == (256, 256)


def test_a_head_size_of_its_own_stays():
    build = huggingface(transformers.Qwen3Config(hidden_size=64, num_attention_heads=4, head_dim=32))
    assert build.config_at(128).head_dim == 32
    assert build.config_at(128).num_attention_heads == 8


def test_the_config_is_copied_and_other_names_of_a_field_are_known():
    config = gpt2()
    build = huggingface(config, {"hidden_size": 1, "n_head": None})
    config.n_layer = 5
    model, optimizer = build(32)
    assert model.config.n_embd == 32
    assert model.config.n_head == 4
    assert (model.config.n_layer, config.n_embd, config.use_cache) == (1, 64, True)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] == 1e-3


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"hiden_size": 1}, r"LlamaConfig has no field 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ({"text_config.hidden_size": 1}, r"NoneType has no field 'text_config.hidden_size'"),
        ({"hidden_size": 0}, "scale of hidden_size must be a positive number or None, got 0"),
        ({"hidden_size": "1"}, "scale of hidden_size must be a positive number or None, got '1'"),
        ({"pad_token_id": None}, "pad_token_id is None in the config: give its factor"),
        ({}, "scale must name the fields"),
    ],
)
def test_what_the_config_does_not_have_is_refused(scale, message):
    with pytest.raises(CoordCheckError, match=message):
        huggingface(llama(), scale)


def test_a_size_that_is_not_whole_names_the_width():
    with pytest.raises(CoordCheckError, match=r"num_attention_heads would be 4.5 at width 36 .*multiples of 8"):
        huggingface(llama(), {"hidden_size": 1, "num_attention_heads": None})(36)
    with pytest.raises(CoordCheckError, match=r"intermediate_size would be 82.5 at width 33"):
        huggingface(llama(), {"intermediate_size": 2.5}).config_at(33)


def test_a_base_width_is_asked_for():
    sizes = {"hidden_size": 64, "num_attention_heads": 8}
    config = transformers.CLIPConfig(text_config=sizes, vision_config=sizes)
    with pytest.raises(CoordCheckError, match="give base_width="):
        huggingface(config, {"text_config.hidden_size": None})
    build = huggingface(config, {"text_config.hidden_size": None, "vision_config.hidden_size": 2}, base_width=64)
    assert build.config_at(32).text_config.hidden_size == 32
    assert build.config_at(32).vision_config.hidden_size == 64


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (None, "LlamaForCausalLM"),
        (transformers.AutoModelForCausalLM, "LlamaForCausalLM"),
        (transformers.AutoModel, "LlamaModel"),
        (transformers.LlamaForSequenceClassification, "LlamaForSequenceClassification"),
        (lambda config: torch.nn.Linear(config.hidden_size, 2), "Linear"),
    ],
)
def test_the_model_is_the_class_that_is_asked_for(model, kind):
    assert type(huggingface(llama(pad_token_id=0), model=model)(32)[0]).__name__ == kind


def test_the_model_is_the_class_that_the_config_names():
    config = llama(architectures=["LlamaForTokenClassification"])
    assert type(huggingface(config)(32)[0]).__name__ == "LlamaForTokenClassification"


def slow_hidden(model, width):
    return torch.optim.SGD(model.parameters(), lr=1 / width)


def test_the_optimizer_is_made_for_the_width():
    assert huggingface(llama(), optimizer=slow_hidden)(32)[1].defaults["lr"] == 1 / 32


def test_it_is_pickled_and_described_like_any_factory():
    build = huggingface(llama(), optimizer=slow_hidden)
    again = cloudpickle.loads(cloudpickle.dumps(build))
    assert (
        describe_callable(again)
        == describe_callable(build)
        == describe_callable(huggingface(llama(), optimizer=slow_hidden))
    )
    others = [
        huggingface(llama(num_hidden_layers=2), optimizer=slow_hidden),
        huggingface(llama(attn_implementation="eager"), optimizer=slow_hidden),
        huggingface(llama(), {"hidden_size": 1}, optimizer=slow_hidden),
        huggingface(llama()),
    ]
    assert len({describe_callable(other) for other in (*others, build)}) == 5


def test_a_check_names_the_matrices_of_sp():
    ids = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))
    found = coordcheck.diagnose(huggingface(llama()), {"input_ids": ids, "labels": ids}, widths=(16, 32, 64), seeds=1)
    assert {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"} < set(
        found.culprits["parameter"]
    )


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(CoordCheckError, match=r"pip install .coordcheck\[hf\]"):
        huggingface(llama)
