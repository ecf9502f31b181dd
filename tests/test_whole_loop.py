"""A training loop with all that one holds at once, of a GPT: with a Recorder it is the same to the bit, and judged."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import coordcheck
from coordcheck.models import transformer
from coordcheck.recording.hooks.randomness import seed_everything
from coordcheck.recording.recorder import Recorder

WIDTHS, SEEDS = (32, 64, 128, 256), 2
CONTEXT, VOCABULARY = 16, 64
UPDATES, ACCUMULATED = 6, 2


def text(examples: int = 96) -> Tensor:
    """Sequences in which the next token follows from the last one, most of the time."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (examples, CONTEXT + 1), generator=generator)
    for place in range(CONTEXT):
        follows = torch.rand(examples, generator=generator) < 0.8
        tokens[follows, place + 1] = (5 * tokens[follows, place] + 3) % VOCABULARY
    return tokens


def gpt(parametrization: str, width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """With a tied head, dropout, and a norm of running averages that nobody should put there."""
    sizes = {"vocabulary": VOCABULARY, "context": CONTEXT, "depth": 1, "tied": True}
    model, optimizer = transformer(parametrization, "adamw", lr=3e-3, **sizes)(width)
    for block in model.blocks:
        block.mlp.down = nn.Sequential(block.mlp.down, nn.Dropout(0.1))
    return model, optimizer


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def evaluate(model: nn.Module, averaged: nn.Module, tokens: Tensor) -> list[float]:
    """A validation loss of both, and a sample, which draws random numbers."""
    model.eval()
    with torch.no_grad():
        losses = [loss_of(one, tokens).item() for one in (model, averaged)]
        drawn = torch.multinomial(model(tokens[:2, :-1])[:, -1].softmax(-1), 1)
    model.train()
    return [*losses, *drawn.flatten().tolist()]


def train(parametrization: str, width: int, seed: int, recorder: Any) -> list[Any]:
    """The whole loop; everything that it leaves."""
    seed_everything(seed)
    model, optimizer = gpt(parametrization, width)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    schedule = LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 3))
    loader = DataLoader(
        TensorDataset(text()), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    seen: list[Any] = []
    with recorder(model, optimizer, width, seed):
        batches = iter(loader)
        for t in range(UPDATES):
            for _ in range(ACCUMULATED):
                (tokens,) = next(batches)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(model, tokens) / ACCUMULATED
                loss.backward()
                seen.append(loss.item())
            seen.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            optimizer.step()
            optimizer.zero_grad(set_to_none=bool(t % 2))
            schedule.step()
            averaged.update_parameters(model)
            seen += evaluate(model, averaged, text(8))
            if t == 2:  # a checkpoint, which is loaded again
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
    weights = [tensor.tolist() for one in (model, averaged) for tensor in one.state_dict().values()]
    drawn = torch.rand(1).item(), random.random(), np.random.rand()
    return [seen, weights, optimizer.state_dict()["state"].keys(), drawn]


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, width: int, seed: int) -> Any:
    return nullcontext()


class Recording:
    """Makes a Recorder for each loop, with a fixed batch beside the stream."""

    def __init__(self, **options: Any) -> None:
        self.options = {"probe": text(8)[:, :-1], "label": "gpt", **options}
        self.made: list[Recorder] = []

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, width: int, seed: int) -> Recorder:
        self.made.append(Recorder(model, optimizer, width=width, seed=seed, **self.options))
        return self.made[-1]


@pytest.mark.parametrize("options", [{}, {"own_updates": False}, {"probe": None}], ids=["both", "scales", "no probe"])
def test_it_trains_as_without(options):
    recording = Recording(**options)
    assert train("SP", 32, 0, recording) == train("SP", 32, 0, bare)
    (found,) = recording.made
    assert found.done
    assert not [note for note in found.record.notes if "failed" in note]
    moved = {row.status.value for row in found.record.rows if row.quantity.value == "change"}
    assert moved == ({"moved input"} if "probe" in options else {"ok"})


def test_that_it_would_tell_another_training():
    """A pass that leaves what dropout drew is seen in the losses that follow."""

    class Leaving(Recording):
        def __call__(self, model: nn.Module, *rest: Any) -> Any:
            def draw(module: nn.Module, args: Any) -> None:
                if module.training:
                    torch.rand(1)

            model.register_forward_pre_hook(draw)
            return nullcontext()

    assert train("SP", 32, 0, Leaving()) != train("SP", 32, 0, bare)


def report(parametrization: str, folder: Path) -> coordcheck.Report:
    for width in WIDTHS:
        for seed in range(SEEDS):
            train(parametrization, width, seed, Recording(save_to=folder))
    return coordcheck.load(folder)


@pytest.mark.fault(46)
def test_it_is_judged(tmp_path):
    """Both controls: the loop in SP is violated and names matrices of its own, the one in µP is not."""
    wrong, right = report("SP", tmp_path / "sp"), report("µP", tmp_path / "mup")
    print(wrong, right, sep="\n")
    assert wrong.exit_code == 1
    assert "blows up" in set(wrong.layers["verdict"])
    assert "blocks.0.mlp.up.weight" in set(wrong.culprits["layer"])
    assert not len(right.culprits)
    assert right.exit_code == 0
