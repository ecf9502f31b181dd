"""Slopes in plain torch, without `coordcheck`: `python -m faultbench.foreign.by_hand [NAME ...]`.

Of every parameter, as powers of the width: the RMS of its module's output at t=0, the RMS of that output's change when
this parameter alone makes its update (the first that moves anything), and of the change of the model's output. In µP
all are 0, but for the readout's output, n ** -1/2 at t=0, and for queries, keys and what else weighs unaligned
vectors, whose first change of the model's output falls as n ** -1/2. A planted learning rate of n ** e shows as e in
the changes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import faultbench.foreign  # noqa: F401  importing registers the cases
from coordcheck.training.losses import as_loss
from faultbench.faults import REGISTRY, Build, Fault

WIDTHS, SEEDS, EXAMPLES, STEPS = (64, 128, 256, 512, 1024), 2, 4, 3


def tensor(value: Any) -> Tensor | None:
    """The first floating tensor of an output, the masked entries of which are 0."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for part in value if (found := tensor(part)) is not None), None)
    if not isinstance(value, Tensor):
        return None
    value = torch.view_as_real(value) if value.is_complex() else value
    return torch.where(value.abs() < 1e30, value, 0.0).detach().double()


class Watched:
    """A model with the outputs of its modules, the last call's."""

    def __init__(self, build: Build, case: Fault, width: int, examples: int) -> None:
        self.setup = build.setup(width)
        self.batch = (
            tuple(part[:examples] for part in case.batch)
            if isinstance(case.batch, tuple)
            else case.batch[: max(1, examples // 2)]
        )
        self.loss, self.outputs = as_loss(case.loss), dict[str, Tensor]()
        for name, module in self.setup.model.named_modules():
            module.register_forward_hook(lambda module, given, out, name=name: self._note(name, out))

    def _note(self, name: str, out: Any) -> None:
        if (found := tensor(out)) is not None:
            self.outputs[name] = found

    def forward(self) -> dict[str, Tensor]:
        torch.manual_seed(7)
        self.value = self.loss(self.setup.model, self.batch)
        return dict(self.outputs)


def own_updates(case: Fault, width: int, seed: int, examples: int = EXAMPLES) -> dict[str, tuple[float, ...]]:
    """Per parameter the RMS of its module's output, of its change by the own update, and of the model's output's."""
    torch.manual_seed(seed)
    watched, found = Watched(case.build, case, width, examples), dict[str, tuple[float, ...]]()
    first: dict[str, Tensor] = {}
    parameters = watched.setup.parameters
    for _ in range(STEPS):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        for optimizer in watched.setup.optimizers:
            optimizer.zero_grad()
        start = watched.forward()
        first = first or start
        watched.value.backward()
        for optimizer in watched.setup.optimizers:
            optimizer.step()
        after = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name in parameters:
                for other, p in parameters.items():
                    p.copy_(after[other] if other == name else before[other])
                end = watched.forward()
                site = site_of(name, watched.setup.model, start)
                seen = first[site], end[site] - start[site], end[""] - start[""]
                if seen[2].any():
                    found.setdefault(name, tuple(float(part.square().mean().sqrt()) for part in seen))
            for other, p in parameters.items():
                p.copy_(after[other])
    return found


def site_of(name: str, model: nn.Module, outputs: dict[str, Tensor]) -> str:
    """The innermost module around a parameter that gave an output of its own."""
    path = name.rpartition(".")[0].partition(".parametrizations")[0]
    while path and path not in outputs:
        path = path.rpartition(".")[0]
    return path


def slopes(case: Fault, widths: Sequence[int] = WIDTHS, seeds: int = SEEDS) -> dict[str, tuple[float, ...]]:
    """Parameter -> slopes of log2 of what `own_updates` gives against log2 width."""
    torch.set_num_threads(1)
    runs = [[own_updates(case, width, seed) for width in widths] for seed in range(seeds)]
    found = {}
    for name in runs[0][0]:
        with np.errstate(divide="ignore"):
            logs = [[np.log2([of.get(name, (np.nan,) * 3)[i] for of in run]) for run in runs] for i in range(3)]
        found[name] = tuple(float(np.polyfit(np.log2(widths), np.mean(part, axis=0), 1)[0]) for part in logs)
    return found


def main() -> None:
    widths = tuple(int(arg) for arg in sys.argv[1:] if arg.isdigit()) or WIDTHS
    for name in [arg for arg in sys.argv[1:] if not arg.isdigit()]:
        print(f"{name}\n{'':4}{'parameter':52}{'layer, t=0':>14}{'layer moves':>14}{'output moves':>14}")
        for parameter, found in slopes(REGISTRY[name], widths).items():
            print(f"{'':4}{parameter:52}{''.join(f'{slope:14.2f}' for slope in found)}")


if __name__ == "__main__":
    main()
