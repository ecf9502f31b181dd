"""`fix`: rules from a diagnosis, applied from outside of a model's code, and the model diagnosed again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import Tensor, nn

import coordcheck
from coordcheck.common.errors import CoordCheckError

Build = Callable[[int], Any]
TOKENS = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(0))
WIDTHS = (32, 64, 128)


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def standard(width: int) -> Any:
    model = net(width)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


class Decoder(nn.Module):
    """One block of a decoder, with what users do differently."""

    def __init__(self, width: int, fused: bool, normed: bool, tied: str) -> None:
        super().__init__()
        self.size, self.tied = width // 4, tied
        self.wte, self.norm = nn.Embedding(32, width), nn.LayerNorm(width)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        if normed:
            self.q_norm, self.k_norm = nn.RMSNorm(self.size), nn.RMSNorm(self.size)
        self.o, self.last = nn.Linear(width, width), nn.LayerNorm(width)
        if tied != "function":
            self.head = nn.Linear(width, 32, bias=False)
        if tied == "module":
            self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        taken = self.norm(x)
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(taken).chunk(3, -1)
        else:
            q, k, v = self.q(taken), self.k(taken), self.v(taken)
        q, k, v = (t.unflatten(-1, (4, self.size)).transpose(1, 2) for t in (q, k, v))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.last(x + self.o(mixed.transpose(1, 2).flatten(2)))
        return F.linear(x, self.wte.weight) if self.tied == "function" else self.head(x)


def decoder(width: int, fused: bool = False, normed: bool = False, tied: str = "") -> Any:
    model = Decoder(width, fused, normed, tied)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def conv_net(width: int) -> Any:
    model = nn.Sequential(
        *(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.randint(10, (8,), generator=generator)


CASES: dict[str, tuple[Build, Any, Any]] = {
    "mlp": (standard, pair_batch(), F.cross_entropy),
    "conv": (conv_net, images(), F.cross_entropy),
    **{
        name: (functools.partial(decoder, **options), TOKENS, next_token)
        for name, options in {
            "attention": {},
            "fused": {"fused": True},
            "normed": {"normed": True},
            "tied": {"tied": "module"},
            "tied by a function": {"tied": "function", "fused": True},
        }.items()
    },
}


@functools.cache
def fixed(name: str) -> coordcheck.Fix:
    build, batch, loss = CASES[name]
    return coordcheck.fix(build, batch, loss=loss, base_width=32, widths=WIDTHS)


def told(found: coordcheck.Fix) -> dict[str, tuple[float, float, float, str]]:
    rows = found.rules.itertuples()
    return {row.parameter: (row.init, row.lr, row.multiplier, row.where) for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_a_standard_model_is_mup_after_one_round(name):
    found = fixed(name)
    assert [verdict.value for verdict in found.status][1] == "ok", found
    assert (found.before.exit_code, found.exit_code) == (1, 0), found
    assert set(found.rules["round"]) == {1}


@pytest.mark.parametrize("name", CASES)
def test_it_passes_a_check_with_other_seeds_and_data(name):
    _, batch, loss = CASES[name]
    again = coordcheck.diagnose(fixed(name).build, batch, loss=loss, widths=WIDTHS, seeds=[7, 8])
    assert again.exit_code == 0, again


def test_rules_say_what_to_multiply_of_which_parameter():
    assert told(fixed("mlp")) == {"2.weight": (0, -1, 0, ""), "4.weight": (-0.5, -1, 0, "")}
    assert told(fixed("conv"))["8.weight"] == (0, 0, -0.5, "")


def test_multipliers_of_one_use_are_put_where_that_is_alone():
    assert told(fixed("attention"))["(model)/sdpa"] == (0, 0, -0.5, "output of q")
    assert told(fixed("normed"))["(model)/sdpa"] == (0, 0, -0.5, "output of q_norm")
    assert told(fixed("fused"))["(model)/sdpa"] == (0, 0, -0.5, "output of qkv")
    assert told(fixed("tied"))["wte.weight@linear"] == (0, 0, -1, "input of head")
    assert told(fixed("tied by a function"))["wte.weight@linear"] == (0, 0, -1, "output of last")


def trained(made: Any, batch: Any, loss: Any, steps: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    model, optimizer = made
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, batch) if loss is next_token else loss(model(batch[0]), batch[1])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, dict(model.state_dict())


def built(build: Build, width: int) -> Any:
    torch.manual_seed(0)
    return build(width)


@pytest.mark.parametrize("name", CASES)
def test_the_code_does_to_the_bit_what_apply_does(name):
    build, batch, loss = CASES[name]
    source = fixed(name).to_code()
    assert len(source.splitlines()) <= 40
    assert "coordcheck" not in source
    names: dict[str, Any] = {}
    exec(source, names)
    by_code, by_apply = built(build, 96), built(build, 96)
    names["apply_mup"](*by_code, 96)
    fixed(name).apply(*by_apply, width=96)
    losses, state = trained(by_code, batch, loss)
    other_losses, other = trained(by_apply, batch, loss)
    assert losses == other_losses
    assert all(torch.equal(state[key], other[key]) for key in other)
    assert state.keys() == other.keys()
    assert losses != trained(built(build, 96), batch, loss)[0]


@pytest.mark.parametrize("name", ["mlp", "fused"])
def test_a_saved_fix_does_the_same(name, tmp_path):
    build, batch, loss = CASES[name]
    fixed(name).save(tmp_path / "mup.json")
    loaded = coordcheck.Fix.load(tmp_path / "mup.json")
    made, other = built(build, 64), built(build, 64)
    loaded.apply(*made, width=64)
    fixed(name).apply(*other, width=64)
    assert trained(made, batch, loss)[0] == trained(other, batch, loss)[0]
    assert loaded.to_code() == fixed(name).to_code()
    assert loaded.rules.equals(fixed(name).rules)
    with pytest.raises(CoordCheckError, match="holds rules, and no model"):
        loaded.build(64)


def test_at_the_base_width_nothing_changes():
    build, batch, loss = CASES["fused"]
    made = built(build, 32)
    fixed("fused").apply(*made, width=32)
    assert trained(made, batch, loss)[0] == trained(built(build, 32), batch, loss)[0]
