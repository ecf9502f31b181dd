"""On a CUDA device the rows are those of the CPU, but for rounding in another order, and nothing waits for it."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import nn

import coordcheck
from coordcheck.models import mlp, transformer
from coordcheck.training.trials import seed_everything

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


def language_model(depth: int) -> tuple[nn.Module, Any, torch.Tensor]:
    """On the CPU, where it is drawn, with its tokens."""
    seed_everything(0)
    model, optimizer = transformer("SP", "adam", depth=depth, vocabulary=64, context=32)(64)
    return model, optimizer, torch.randint(0, 64, (8, 33), generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, optimizer: Any, tokens: torch.Tensor, updates: int = 5) -> None:
    """In bf16 autocast; the loop itself waits for nothing."""
    for _ in range(updates):
        with torch.autocast(tokens.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def recorded(device: str, depth: int = 2) -> coordcheck.Recorder:
    model, optimizer, tokens = language_model(depth)
    model.to(device)
    with coordcheck.Recorder(model, optimizer, width=64) as found:
        train(model, optimizer, tokens.to(device))
    return found


def test_bf16_autocast_on_cuda_is_recorded_as_on_the_cpu():
    on_cpu, on_cuda = recorded("cpu").record, recorded("cuda").record
    assert on_cuda.notes == on_cpu.notes == []
    assert on_cuda.sites == on_cpu.sites
    assert {site.dtype for site in on_cuda.sites} >= {"bfloat16", "float32"}
    assert [row._replace(value=None) for row in on_cuda.rows] == [row._replace(value=None) for row in on_cpu.rows]
    first = [(a.value, b.value) for a, b in zip(on_cuda.rows, on_cpu.rows, strict=True) if a.step <= 1]
    assert [a for a, _ in first] == pytest.approx([b for _, b in first], rel=0.1)  # bf16 has 8 bits


def synchronizations(depth: int, recording: bool) -> int:
    """How often a loop makes the host wait for the device."""
    model, optimizer, tokens = language_model(depth)
    model.to("cuda")
    tokens = tokens.to("cuda")
    train(model, optimizer, tokens, updates=1)  # kernels are loaded
    recorder: AbstractContextManager[Any] = nullcontext()
    if recording:
        recorder = coordcheck.Recorder(model, optimizer, width=64)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with recorder:
                train(model, optimizer, tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def test_the_number_of_times_the_host_waits_does_not_grow_with_the_layers():
    few, many = (synchronizations(depth, True) - synchronizations(depth, False) for depth in (2, 6))
    print(f"the host waits {few} times for 2 blocks, {many} times for 6")
    assert many == few
    assert 0 < few <= 60
