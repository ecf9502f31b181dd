from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import nn

import coordcheck
from coordcheck.analysis.roles import uses_across_widths
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import transformer

WIDTHS = (16, 32, 64)


def roles(build, batch, loss=F.cross_entropy, **options):
    """Role by name of every row that the diagnosis has about parameters."""
    report = coordcheck.diagnose({"model": build}, batch, loss=loss, widths=WIDTHS, seeds=1, **options)
    return dict(zip(report.parameters["layer"], report.parameters["role"], strict=True)), report


def adam(model):
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.randint(10, (4,), generator=generator)


def test_an_mlp_has_input_hidden_and_readout():
    def build(width):
        return adam(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 10)))

    found, _ = roles(build, pair_batch())
    assert found == {
        "0.weight": "input",
        "0.bias": "vector",
        "2.weight": "hidden",
        "2.bias": "vector",
        "3.weight": "readout",
        "3.bias": "constant",
    }


class ConvNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.norm = nn.GroupNorm(4, width)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.grouped = nn.Conv2d(width, width, 1, groups=4)
        self.up = nn.ConvTranspose2d(width, width, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.up(self.grouped(self.depthwise(self.norm(self.stem(x)).relu())).relu())
        return self.head(x.mean((2, 3)))


def test_convolutions_count_the_kernel_and_their_groups():
    found, report = roles(lambda width: adam(ConvNet(width)), images())
    matrices = {name: role for name, role in found.items() if name.endswith("weight")}
    assert matrices == {
        "stem.weight": "input",
        "norm.weight": "vector",
        "depthwise.weight": "input",  # its fan-in is the kernel alone
        "grouped.weight": "hidden",
        "up.weight": "hidden",
        "head.weight": "readout",
    }
    fan_in = {p.name: p.fan_ins for p in uses_across_widths(report.records)}
    assert fan_in["stem.weight"] == dict.fromkeys(WIDTHS, 27)
    assert fan_in["depthwise.weight"] == dict.fromkeys(WIDTHS, 9)
    assert fan_in["grouped.weight"] == {width: width // 4 for width in WIDTHS}


def test_shared_keys_and_values_are_narrow_and_stay_so_inside_the_model():
    build = transformer("µP", kv_heads=1, grows="heads", context=8, vocabulary=16)
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    found, report = roles(build, tokens, next_byte_loss)
    assert found["blocks.0.attention.key.weight"] == found["blocks.1.attention.value.weight"] == "narrow"
    assert found["blocks.0.attention.query.weight"] == "hidden"
    assert found["unembedding.weight"] == "readout"
    assert found["blocks.0.attention/sdpa"] == "attention logits"
    to_attention = {p.name for p in uses_across_widths(report.records) if p.attends}
    assert to_attention == {f"blocks.{b}.attention.{name}.weight" for b in (0, 1) for name in ("query", "key")}


class LoRA(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.input = nn.Linear(64, width, bias=False)
        self.base = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.down = nn.Linear(width, 4, bias=False)
        self.up = nn.Linear(4, width, bias=False)
        self.readout = nn.Linear(width, 10, bias=False)

    def forward(self, x):
        x = self.input(x).relu()
        return self.readout((self.base(x) + self.up(self.down(x))).relu())


def test_the_first_matrix_of_lora_is_narrow_and_the_second_like_an_input():
    found, _ = roles(lambda width: adam(LoRA(width)), pair_batch())
    assert found == {
        "input.weight": "input",
        "base.weight": "hidden",
        "down.weight": "narrow",
        "up.weight": "input",
        "readout.weight": "readout",
    }


class Experts(nn.Module):
    """Stacked expert weights, used through einsum, chosen by a soft router."""

    def __init__(self, width):
        super().__init__()
        self.input = nn.Linear(64, width)
        self.router = nn.Linear(width, 4)
        self.up = nn.Parameter(torch.randn(4, width, 2 * width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(4, 2 * width, width) * (2 * width) ** -0.5)
        self.readout = nn.Linear(width, 10)

    def forward(self, x):
        x = self.input(x)
        hidden = torch.einsum("bm,emf->bef", x, self.up).relu()
        mixed = torch.einsum("be,bef,efm->bm", self.router(x).softmax(-1), hidden, self.down)
        return self.readout(x + mixed)


def test_stacked_experts_are_hidden_and_the_router_is_narrow():
    found, report = roles(lambda width: adam(Experts(width)), pair_batch())
    assert (found["up"], found["down"], found["router.weight"]) == ("hidden", "hidden", "narrow")
    fan_in = {p.name: p.fan_ins[32] for p in uses_across_widths(report.records)}
    assert (fan_in["up"], fan_in["down"]) == (32, 4 * 64)  # the sum runs over the experts as well


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.positions = nn.Parameter(torch.zeros(1, 8, width))
        self.hidden = nn.Linear(width, width)

    def forward(self, tokens):
        x = self.hidden(self.embedding(tokens) + self.positions).relu()
        return x @ self.embedding.weight.T / x.shape[-1]


def test_a_tied_matrix_is_an_input_and_a_readout():
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    found, report = roles(lambda width: adam(Tied(width)), tokens, next_byte_loss)
    assert found["embedding.weight"] == "input"
    assert found["embedding.weight@matmul"] == "readout"
    assert found["positions"] == "vector"
    tied = next(p for p in uses_across_widths(report.records) if p.tied)
    assert tied.multipliers == pytest.approx({width: 1 / width for width in WIDTHS})


def test_a_role_may_be_given_where_shapes_do_not_tell():
    def build(width):
        return adam(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)))

    found, _ = roles(build, pair_batch(), roles={"2.*": "hidden"})
    assert found["2.weight"] == "hidden"
    with pytest.raises(coordcheck.CoordCheckError, match="roles must map globs of parameter names to one of input, "):
        roles(build, pair_batch(), roles={"2.*": "output"})


def test_one_width_tells_no_roles():
    def build(width):
        return adam(nn.Sequential(nn.Linear(64, width), nn.Linear(width, 10)))

    report = coordcheck.diagnose({"model": build}, pair_batch(), loss=F.cross_entropy, widths=(16,), seeds=1)
    assert report.exit_code == 2
    assert report.parameters.empty
