"""What the tests share: small real checks, made once, and synthetic records with known exponents."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, as `_one_thread` of this one

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from torch import Tensor, nn

import coordcheck
from coordcheck.models import mlp
from coordcheck.runs.records import Row, RunKey, RunRecord, Site
from coordcheck.runs.words import Kind, Quantity, status_of
from coordcheck.training.trials import seed_everything

WIDTHS = (64, 128, 256)
# its modules make an optimizer of every kind when they are imported; test_faultbench.py says why it is skipped
collect_ignore = [] if hasattr(torch.optim, "Muon") else ["faultbench"]


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread: two test workers on two cores must not fight, and rows are then bit-identical."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def sampled(cases: Sequence[Any], every: int) -> list[Any]:
    """The cases, of which all but every so many-th are left to `pytest -m thorough`."""
    thorough = pytest.mark.thorough
    parameters = [case if isinstance(case, ParameterSet) else pytest.param(case) for case in cases]
    return [
        pytest.param(*one.values, marks=[*one.marks, *([thorough] if place % every else [])], id=one.id)
        for place, one in enumerate(parameters)
    ]


def pair_batch(
    seed: int = 0, examples: int = 16, inputs: int = 64, classes: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """A classification batch: (examples, inputs) standard normal, (examples,) random labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, inputs, generator=generator)
    return x, torch.randint(classes, (examples,), generator=generator)


def recorded(
    build: Callable[[int], Any],
    batch: tuple[Tensor, Tensor],
    folder: Path,
    widths: Sequence[int],
    seeds: int,
    updates: int,
) -> coordcheck.Report:
    """The report of own loops on one batch of classes, one for each width and seed."""
    for seed in range(seeds):
        for width in widths:
            seed_everything(seed)
            model, optimizer = build(width)
            with coordcheck.Recorder(model, optimizer, width=width, seed=seed, save_to=folder):
                for _ in range(updates):
                    optimizer.zero_grad()
                    F.cross_entropy(model(batch[0]), batch[1]).backward()
                    optimizer.step()
    return coordcheck.load(folder)


def told(verdicts: pd.DataFrame) -> dict[str, str]:
    """Culprit -> its cause, and the power of m that mends it."""
    culprits = verdicts[verdicts["culprit"]]
    return {row.layer: f"{row.cause} {row.exponent:g}" for row in culprits.itertuples()}


@pytest.fixture(scope="session")
def report() -> coordcheck.Report:
    """A real check of the reference MLP, SP against µP under Adam: SP is violated, µP is ok."""
    torch.set_num_threads(1)
    return coordcheck.check(
        {"SP": mlp("SP", lr=3e-3), "µP": mlp("µP", lr=3e-3)}, pair_batch(), loss=F.cross_entropy, widths=WIDTHS
    )


def power_law_records(
    exponents: Mapping[str, Mapping[str, float]],
    *,
    label: str = "model",
    widths: Sequence[int] = WIDTHS,
    seeds: int = 3,
    steps: int = 2,
    noise: Callable[[int, int, str], float] = lambda width, seed, layer: 0.0,
    shape: Callable[[str, int], tuple[int, ...]] = lambda layer, width: (4, width),
) -> list[RunRecord]:
    """Records whose scales are exact power laws: layer -> quantity -> exponent, the same at every step.

    `noise(width, seed, layer)` is added to log2 of every scale of that run's layer.
    """
    records = []
    for seed in range(seeds):
        for width in widths:
            record = RunRecord(RunKey(label, width, seed), losses=[1.0] * (steps + 1))
            for order, (layer, by_quantity) in enumerate(exponents.items()):
                record.sites.append(Site(layer, order, Kind.MODULE, shape(layer, width), "float32"))
                for name, exponent in by_quantity.items():
                    quantity = Quantity(name)
                    for step in range(1 if quantity is Quantity.CHANGE else 0, steps + 1):
                        value = float(width**exponent * 2 ** noise(width, seed, layer))
                        record.rows.append(Row(order, step, quantity, value, status_of(value)))
            records.append(record)
    return records


class Called(nn.Module):
    """A module whose forward is a function of (self, x); modules and tensors given by name become its own."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def default_device() -> torch.device:
    """The default device; torch 2.4.0 cannot tell once it was set to None."""
    try:
        return torch.get_default_device()
    except AttributeError:
        return torch.device("cpu")


def muon(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """`torch.optim.Muon`; where torch has none yet the test is skipped."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"Muon came with torch 2.9, and this is {torch.__version__}")
    return torch.optim.Muon(parameters, **options)
