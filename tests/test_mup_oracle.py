"""mean_abs against the field's own tool: `l1` of mup 1.0.0's `get_coord_data`, layer by layer, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import Tensor, nn

from coordcheck.models import transformer
from coordcheck.recording.batches import Batches
from coordcheck.recording.layers.activations import ROOT
from coordcheck.runs.records import RunKey
from coordcheck.runs.words import Quantity
from coordcheck.training.run import execute
from coordcheck.training.trials import Run

mup = pytest.importorskip("mup.coord_check", reason="mup, the oracle, is not installed")

STEPS = 3
SAME = 1e-5  # two sums of float32 numbers, each in an order of its own, which the processor's BLAS chooses
LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

Scales = dict[tuple[str, int], float]


def plain_mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def sp_transformer(width: int) -> nn.Module:
    return transformer("SP", vocabulary=64, context=16, depth=1)(width)[0]


def mup_transformer(width: int) -> nn.Module:
    return transformer("µP", vocabulary=64, context=16, depth=1, heads=2, norm="layernorm", biases=True)(width)[0]


def token_batch() -> tuple[Tensor, Tensor]:
    """(2, 16) tokens and, as mup takes them, (32,) labels."""
    tokens = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:].flatten()


def flat_cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1])


def of_mup(make: Callable[[int], nn.Module], batch: Any, width: int, optimizer: str, **options: Any) -> Scales:
    """l1 by (layer, step); mup's t counts from 1, and its root module has no name."""
    data = mup.get_coord_data(
        {width: lambda: make(width)},
        [batch],
        optimizer=optimizer,
        lr=LR[optimizer],
        mup=False,
        nsteps=STEPS + 1,
        nseeds=1,
        cuda=False,
        show_progress=False,
        **options,
    )
    return {(row.module or ROOT, row.t - 1): row.l1 for row in data.itertuples()}


def of_coordcheck(
    make: Callable[[int], nn.Module], batch: Any, width: int, optimizer: str, *, lr: float | None = None
) -> Scales:
    """mean_abs by (layer, step)."""

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make(width)
        return model, OPTIMIZERS[optimizer](model.parameters(), lr=lr or LR[optimizer])

    record = execute(Run(RunKey("model", width, 0), build, Batches([batch]), flat_cross_entropy, STEPS, None, 1, {}))
    assert record.finished, record.reason
    rows = [row for row in record.rows if row.quantity is Quantity.MEAN_ABS]
    return {(record.sites[row.site].layer, row.step): row.value for row in rows}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("width", [32, 96])
def test_every_layer_of_an_mlp_at_every_step(width, optimizer):
    ours = of_coordcheck(plain_mlp, pair_batch(), width, optimizer)
    assert len(ours) == 6 * (STEPS + 1)
    assert ours == pytest.approx(of_mup(plain_mlp, pair_batch(), width, optimizer), rel=SAME, abs=0)


@pytest.mark.parametrize("make", [sp_transformer, mup_transformer])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_layer_of_a_transformer_at_every_step(make, optimizer):
    ours = of_coordcheck(make, token_batch(), 32, optimizer)
    theirs = of_mup(make, token_batch(), 32, optimizer, flatten_output=True)
    assert {layer for layer, _ in ours} >= {"embedding", "blocks.0.attention.query", "unembedding", ROOT}
    assert ours == pytest.approx(theirs, rel=SAME, abs=0)


def test_the_agreement_is_not_for_free():
    ours = of_coordcheck(plain_mlp, pair_batch(), 32, "adam", lr=1.01 * LR["adam"])
    theirs = of_mup(plain_mlp, pair_batch(), 32, "adam")
    agree = {step: ours["4", step] == pytest.approx(theirs["4", step], rel=SAME, abs=0) for step in range(STEPS + 1)}
    assert agree == {0: True, 1: False, 2: False, 3: False}
