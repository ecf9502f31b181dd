"""Time and memory of recording, side by side: bare training, coordcheck, mup.coord_check.

    python tests/benchmarks/overhead.py

Every subject trains the same models with the same data: 5 forward passes and 4 updates (mup has no last
forward without an update, so it is given 5 steps and its extra update is counted as its own). The subjects
take turns within a repetition, so that a machine that slows down slows all of them; what is printed is the
median of the ratios to bare training of the same repetition, and the median seconds of the bare run. The last
columns are peak resident megabytes above the process before the run, each from a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import coordcheck
from coordcheck.models import mlp, transformer
from coordcheck.recording.batches import Batches
from coordcheck.runs.records import RunKey
from coordcheck.training.losses import as_loss
from coordcheck.training.run import execute
from coordcheck.training.trials import Probe, Run

STEPS = 4
PROCESSES = 3  # whose peak memory is measured: it varies by a tenth


class Case(NamedTuple):
    """One model family with its data: `build(width)`, a batch (x, y), and the widths to time."""

    name: str
    build: Callable[[int], Any]
    batch: tuple[torch.Tensor, torch.Tensor]
    batches: Batches
    probe: tuple[torch.Tensor, torch.Tensor]
    widths: tuple[int, ...]


class Flat(nn.Module):
    """A language model whose logits are flattened, so that mup's cross-entropy takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).flatten(0, 1)


def _flat_transformer(width: int, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, optimizer = transformer("SP (PyTorch)", "adam", **options)(width)
    return Flat(model), optimizer


def _language(name: str, sequences: int, context: int, widths: tuple[int, ...], **options: Any) -> Case:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(options.get("vocabulary", 256), (sequences, context + 1), generator=generator)
    piece, text = (tokens[:2, :8], tokens[:2, 1:9].flatten()), (tokens[:, :-1], tokens[:, 1:].flatten())
    build = partial(_flat_transformer, context=context, **options)
    return Case(name, build, text, Batches([text]), piece, widths)


def cases() -> list[Case]:
    """The MLP on 256 CIFAR-shaped examples, the 2-block Transformer on 512 tokens, and a GPT, all with Adam.

    The GPT has the settings of the published coordinate check of one (github.com/EleutherAI/nanoGPT-mup,
    mup_examples/coord_check_shakespeare_char): 2 blocks, LayerNorm, heads of 64, 65 characters, width 256 upwards, and
    2 sequences of 1024 tokens. It makes its updates from four such batches; here from one, which is harder, since one
    batch an update is recorded.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 3072, generator=generator), torch.randint(10, (256,), generator=generator)
    images, few = (x, y), (x[:4], y[:4])
    return [
        Case("MLP", mlp("SP (PyTorch)", "adam", inputs=3072), images, Batches([images]), few, (64, 256, 1024)),
        _language("8 x 64 tokens", 8, 64, (64, 256, 512)),
        _language("GPT, 2 x 1024", 2, 1024, (256, 512), norm="layernorm", vocabulary=65),
    ]


def bare(case: Case, width: int) -> None:
    """The training loop alone."""
    torch.manual_seed(0)
    _train(case, *case.build(width))


def _train(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = case.batch
    for step in range(STEPS + 1):
        loss = F.cross_entropy(model(x), y)
        if step < STEPS:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def ours(case: Case, width: int, probe: Probe | None = None) -> None:
    """One recorded run."""
    key = RunKey("model", width, 0)
    shared = case.batches, as_loss(F.cross_entropy), STEPS, None, torch.get_num_threads(), {}
    execute(Run(key, case.build, *shared, probe=probe))


def full(case: Case, width: int) -> None:
    """One recorded run with its diagnosis."""
    ours(case, width, Probe(case.probe))


def own_loop(case: Case, width: int) -> None:
    """The training loop with a Recorder around it: the full recording."""
    torch.manual_seed(0)
    model, optimizer = case.build(width)
    with coordcheck.Recorder(model, optimizer, width=width, steps=STEPS):
        _train(case, model, optimizer)


def peer(case: Case, width: int) -> None:
    """The same by mup, when it is installed."""
    from mup.coord_check import _get_coord_data

    made = {}

    def lazy() -> nn.Module:
        made["model"], made["optimizer"] = case.build(width)
        return made["model"]

    _get_coord_data(
        {width: lazy}, [case.batch], lambda model: made["optimizer"], nsteps=STEPS + 1, cuda=False, show_progress=False
    )


SUBJECTS: dict[str, Callable[[Case, int], None]] = {
    "bare": bare,
    "coordcheck": ours,
    "own updates": own_loop,
    "with diagnosis": full,
    "mup": peer,
}


def ratios(case: Case, width: int, repetitions: int) -> tuple[float, dict[str, float]]:
    """Median seconds of bare training, and each subject's median ratio to it."""
    subjects = {name: subject for name, subject in SUBJECTS.items() if name != "mup" or has_mup()}
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for repetition in range(repetitions + 1):
        for name, subject in subjects.items():
            started = time.perf_counter()
            subject(case, width)
            if repetition:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    paired = {
        name: statistics.median(t / b for t, b in zip(taken, times["bare"], strict=True))
        for name, taken in times.items()
        if name != "bare"
    }
    return statistics.median(times["bare"]), paired


GRID = (64, 128, 256, 512)


def grid_ratios(case: Case, repetitions: int) -> dict[str, float]:
    """A whole check, 4 widths and 3 seeds as by default, over bare training of the same runs: median ratios."""

    def train() -> None:
        for width in GRID * 3:
            bare(case, width)

    def check(probe: object) -> None:
        coordcheck.check(
            {"SP": case.build}, [case.batch], loss=F.cross_entropy, widths=GRID, probe=probe, executor=None
        )

    subjects = {"bare": train, "check": lambda: check(case.probe), "check, probe=None": lambda: check(None)}
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repetitions):
        for name, subject in subjects.items():
            started = time.perf_counter()
            subject()
            times[name].append(time.perf_counter() - started)
    return {
        name: statistics.median(t / b for t, b in zip(taken, times["bare"], strict=True))
        for name, taken in times.items()
        if name != "bare"
    }


def peak_memory(name: str, case_index: int, width: int) -> float:
    """Peak resident MB of one subject above the process before it: the median of processes of their own (Linux)."""
    peaks = []
    for _ in range(PROCESSES):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(_peak, (name, case_index, width)))
    return statistics.median(peaks)


def _peak(name: str, case_index: int, width: int) -> float:
    torch.set_num_threads(1)
    case, subject = cases()[case_index], SUBJECTS[name]
    subject(case, 64)  # imports and caches are not recording
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    subject(case, width)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A line of /proc/self/status, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status: memory is only measured on Linux")


def has_mup() -> bool:
    """Whether the peer is installed (`pip install --no-deps mup`, it needs pyyaml, tqdm, seaborn)."""
    try:
        import mup.coord_check  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Overhead of recording over bare training.")
    parser.add_argument(
        "--repetitions", type=int, default=31, help="counted runs of each subject (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    names = [name for name in SUBJECTS if name != "bare" and (name != "mup" or has_mup())]
    memory = [f"{name} MB" for name in ("bare", *names)]
    print(
        f"{'model':<15} {'width':>5} {'bare s':>8}",
        *(f"{name + ' / bare':>21}" for name in names),
        *(f"{m:>17}" for m in memory),
    )
    for index, case in enumerate(cases()):
        for width in case.widths:
            seconds, paired = ratios(case, width, options.repetitions)
            peaks = [peak_memory(name, index, width) for name in ("bare", *names)]
            cells = [f"{paired[name]:>21.3f}" for name in names] + [f"{peak:>17.1f}" for peak in peaks]
            print(f"{case.name:<15} {width:>5} {seconds:>8.4f}", *cells, flush=True)
    for case in cases()[:2]:
        found = grid_ratios(case, max(options.repetitions // 4, 1))
        told = ", ".join(f"{name} {ratio:.3f}" for name, ratio in found.items())
        print(f"{case.name}: a whole check over bare training, widths {GRID}, 3 seeds: {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
