"""Models in plain SP: what `fix` does to each, and what the code that it writes does, is the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import coordcheck
from coordcheck.training.losses import as_loss

if not hasattr(torch.optim, "Muon"):
    pytest.skip(f"the matrix needs Muon, of torch 2.9, and this is {torch.__version__}", allow_module_level=True)

from fixmatrix.catalogue import ENTRIES
from fixmatrix.entries import Entry

WIDTHS = (32, 64, 128)
QUICK = ("own mlp, adam", "own gpt tied, adam", "own gpt fused heads=4, momentum")  # the others are thorough
CASES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.thorough]) for name in ENTRIES]


def trained(entry: Entry, change: Callable[[Any, Any], None]) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of five steps at twice the base width, as the root of 2 is rounded, and the parameters after them."""
    torch.manual_seed(0)
    model, made = entry.build(2 * WIDTHS[0])
    change(model, made)
    loss, batch, losses = as_loss(entry.model.loss), entry.model.batch(1), []
    optimizers = made if isinstance(made, list) else [made]
    for _ in range(5):
        value = loss(model, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(value.item())
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_the_code_does_what_apply_does_to_the_bit(name: str):
    entry = ENTRIES[name]
    found = coordcheck.fix(
        entry.build, entry.model.batch(0), loss=entry.model.loss, base_width=WIDTHS[0], widths=WIDTHS, seeds=1, rounds=2
    )
    assert len(found.rules)
    namespace: dict[str, Any] = {}
    exec(found.to_code(), namespace)
    width = 2 * WIDTHS[0]
    losses, parameters = trained(entry, lambda model, optimizer: found.apply(model, optimizer, width=width))
    by_code, others = trained(entry, lambda model, optimizer: namespace["apply_mup"](model, optimizer, width))
    plain, _ = trained(entry, lambda model, optimizer: None)
    assert losses == by_code != plain
    for parameter, value in parameters.items():
        assert torch.equal(value, others[parameter]), parameter


def test_the_matrix_is_large_and_has_every_kind_of_optimizer():
    assert len({entry.model for entry in ENTRIES.values()}) >= 30
    assert {entry.kind for entry in ENTRIES.values()} == {"adam", "momentum", "muon"}
    assert set(QUICK) <= set(ENTRIES)
