"""How long until the SP MLP under Adam is found out: the diagnosis against the grid that the reference publishes.

    python tests/benchmarks/peer_grid.py [--widest 8192]

The peer, `mup.coord_check`, trains its example MLP (3072 inputs, two hidden layers of ReLU, batch 64) at widths
128 to 8192 for 3 steps with 5 seeds, and leaves a figure to be judged by eye. `coordcheck.diagnose` takes one update at
three widths on 4 of the same examples, and names the parameters. Both run in this process, one thread, imports not
counted.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import coordcheck

LEARNING_RATE = 1e-3
STEPS, SEEDS = 3, 5
CULPRITS = ["2.weight", "4.weight"]


def build(width: int) -> Any:
    """The peer's example MLP in SP, with its Adam."""
    layers = nn.Linear(3072, width, bias=False), nn.Linear(width, width, bias=False), nn.Linear(width, 10, bias=False)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    return model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)


def ours(batch: Any) -> coordcheck.Report:
    """The diagnosis with its smallest settings."""
    return coordcheck.diagnose({"SP": build}, batch, loss=F.cross_entropy, widths=(64, 128, 256), seeds=1)


def peer(batch: Any, widest: int) -> None:
    """The published grid."""
    from mup.coord_check import _get_coord_data

    made: dict[str, Any] = {}

    def lazy(width: int) -> nn.Module:
        made["model"], made["optimizer"] = build(width)
        return made["model"]

    widths = [2**power for power in range(7, 14) if 2**power <= widest]
    models = {width: (lambda width=width: lazy(width)) for width in widths}
    options = {"nsteps": STEPS, "nseeds": SEEDS, "cuda": False, "show_progress": False}
    _get_coord_data(models, [batch], lambda model: made["optimizer"], **options)


def main() -> int:
    """Print both times, their ratio, and what was found."""
    parser = argparse.ArgumentParser(description="Time until a verdict, against the peer's grid.")
    parser.add_argument("--widest", type=int, default=8192, help="of the peer's widths (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import mup.coord_check  # noqa: F401  # imports are not counted

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(64, 3072, generator=generator), torch.randint(10, (64,), generator=generator)
    ours(batch)  # warms up
    started = time.perf_counter()
    report = ours(batch)
    seconds = time.perf_counter() - started
    print(report)
    found = list(report.culprits["parameter"])
    print(f"\ndiagnosis: {seconds:.3f} s, culprits {', '.join(found)}", flush=True)
    started = time.perf_counter()
    peer(batch, options.widest)
    taken = time.perf_counter() - started
    print(f"peer's grid, widths 128 to {options.widest}: {taken:.1f} s; {taken / seconds:.0f} times as long")
    return 0 if found == CULPRITS else 1


if __name__ == "__main__":
    sys.exit(main())
