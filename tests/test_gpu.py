"""On a CUDA device the rows are those of the CPU, up to float32's rounding in another order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch

import coordcheck
from coordcheck.models import mlp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_rows_on_cuda_are_those_of_the_cpu():
    def same_start(width):  # the weights are drawn on the CPU, so that both devices start from the same ones
        return mlp("SP", "sgd", lr=0.1)(width)

    options = {"loss": F.cross_entropy, "widths": (64, 128, 256), "seeds": 1}
    on_cpu = coordcheck.check(same_start, pair_batch(), **options).measurements
    on_cuda = coordcheck.check(same_start, pair_batch(), device="cuda", **options).measurements
    assert on_cuda.drop(columns="value").equals(on_cpu.drop(columns="value"))
    assert on_cuda["value"].tolist() == pytest.approx(on_cpu["value"].tolist(), rel=1e-3)


def test_the_random_state_of_cuda_is_left_as_found():
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    coordcheck.check(mlp("µP"), pair_batch(), loss=F.cross_entropy, widths=(64, 128, 256), seeds=1, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
