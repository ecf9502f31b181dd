"""The variants of a small µP Transformer that the lesson on ablations compares, each as `build(width, lr)`.

They follow the list of Lingle 2024, "A Large-Scale Exploration of µ-Transfer", arXiv:2404.05728, at a size that two
cores train in a second: heads of 16 that grow in number, two blocks, byte-level text, Adam, warm-up and linear decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import coordcheck
import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.checks.transfer import Transfer, transfer_sweep
from coordcheck.reporting.figures.style import minus
from coordcheck.reporting.figures.transfer import panel

BASE_WIDTH, CONTEXT, DEPTH, HEAD_SIZE, BATCH = 32, 32, 2, 16, 16
STEPS, WARM_UP = (100, 10) if lesson.FULL else (10, 1) if lesson.QUICK else (20, 2)
WIDTHS, NARROW = ((32, 64, 128), (16, 32, 64)) if lesson.FULL else ((16, 64), (16, 64))
PLAIN = {"gains": False, "activation": "relu", "grows": "heads", "head_size": HEAD_SIZE, "depth": DEPTH}


class Lion(Optimizer):
    """The sign of a moving average of the gradient, times the learning rate (Chen et al. 2023, arXiv:2302.06675)."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update; `closure` is not used."""
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                parameter.add_(torch.lerp(parameter.grad, average, fast).sign(), alpha=-group["lr"])
                average.lerp_(parameter.grad, 1 - slow)


class ScalarGain(nn.Module):
    """One trainable number, at 1 in the beginning, that multiplies a norm's output."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.gain = norm, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., M) -> (..., M)."""
        return self.norm(x) * self.gain


def linear_decay(done: float) -> float:
    """From 1 to 0."""
    return 1 - done


def cosine(done: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 + 0.5 * math.cos(math.pi * done)


def scheduled(optimizer: Optimizer, shape: Callable[[float], float]) -> Optimizer:
    """The optimizer with a learning rate that warms up over `WARM_UP` updates and then decays to 0 at `STEPS`."""

    def factor(step: int) -> float:
        return min((step + 1) / WARM_UP, shape(max(0, step - WARM_UP) / (STEPS - WARM_UP)))

    schedule = LambdaLR(optimizer, factor)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def build(
    width: int,
    lr: float,
    *,
    parametrization: str = "µP",
    change: Callable[[nn.Module, Optimizer, int], Optimizer | None] = lambda *_: None,
    shape: Callable[[float], float] = linear_decay,
    zero_init: tuple[str, ...] = (),
    **config: Any,
) -> tuple[nn.Module, Optimizer]:
    """A variant: other fields of the reference Transformer, or a `change` of the model and optimizer in place."""
    fields = {**PLAIN, "context": CONTEXT, "base_width": BASE_WIDTH, "zero_init": zero_init, **config}
    model, optimizer = coordcheck.models.transformer(parametrization, lr=lr, **fields)(width)
    return model, scheduled(change(model, optimizer, width) or optimizer, shape)


def scalar_gains(model: Any, optimizer: Optimizer, width: int) -> None:
    """A scalar gain behind every norm, with the learning rate that a gain has in µP: that of the embedding."""
    for block in model.blocks:
        block.attention_norm, block.mlp_norm = ScalarGain(block.attention_norm), ScalarGain(block.mlp_norm)
    model.final_norm = ScalarGain(model.final_norm)
    rate = next(group["lr"] for group in optimizer.param_groups if group["params"][0] is model.embedding.weight)
    gains = [module.gain for module in model.modules() if isinstance(module, ScalarGain)]
    optimizer.add_param_group({"params": gains, "lr": rate})


def embedding_norm(model: Any, optimizer: Optimizer, width: int) -> None:
    """RMSNorm of token plus position, before the first block."""
    model.blocks.insert(0, nn.RMSNorm(width, eps=1e-6, elementwise_affine=False))


def sp_unembedding(model: Any, optimizer: Optimizer, width: int) -> None:
    """The readout starts with a standard deviation of 1 / sqrt(M) instead of 1 / M."""
    with torch.no_grad():
        model.unembedding.weight.mul_(width**0.5)


def weight_decay(model: nn.Module, optimizer: Optimizer, width: int) -> Optimizer:
    """AdamW: each update also takes lr * 0.1 of a weight away."""
    return AdamW([{"params": g["params"], "lr": g["lr"]} for g in optimizer.param_groups], weight_decay=0.1)


def lion(model: nn.Module, optimizer: Optimizer, width: int) -> Optimizer:
    """Lion with the learning rates of Adam's groups."""
    return Lion([{"params": g["params"], "lr": g["lr"]} for g in optimizer.param_groups], lr=0.0)


def text_batches(seed: int, size: int) -> Iterator[Tensor]:
    """The training batches of one seed, `size` sequences each; no two alike."""
    return (lesson.text_batch(size, CONTEXT, seed=100_000 * seed + step) for step in range(STEPS + 1))


class Ablation(NamedTuple):
    """One row of the table."""

    build: Callable[[int, float], Any]
    paper: str
    """What the paper found: does the learning rate transfer, and is the loss better for it?"""
    log2_lrs: range = range(-7, -2)
    batch: int = BATCH
    widths: tuple[int, ...] = WIDTHS
    seeds: int = 3
    """Five for those where three do not tell whether the optimum moves."""

    def sweep(self, label: str, **options: Any) -> Transfer:
        """Train it at every width, learning rate and seed, and evaluate on text that was held out."""
        held_out = [
            lesson.text_batch(64, CONTEXT, seed=index, validation=True) for index in range(1 if lesson.QUICK else 4)
        ]
        rates = [2.0**power for power in (self.log2_lrs[1:-1] if lesson.QUICK else self.log2_lrs)]
        batches = partial(text_batches, size=self.batch)
        data = {
            "widths": self.widths,
            "seeds": self.seeds if lesson.FULL else 1,
            "steps": STEPS,
            "loss": next_byte_loss,
            "evaluate": held_out,
        }
        return transfer_sweep({label: self.build}, batches, lrs=rates, **data, **options)


def best_losses(sweep: Transfer) -> pd.Series:
    """The final losses at the best learning rate tried, by width and seed."""
    grid = sweep.losses.pivot(index="lr", columns=["width", "seed"], values="loss")
    best = grid.T.groupby("width").mean().idxmin(axis=1)
    return pd.Series({(width, seed): grid.loc[best[width], (width, seed)] for width, seed in grid.columns})


def difference(sweep: Transfer, baseline: Transfer) -> str:
    """The mean of best losses less the baseline's, of the same width and seed, with half of its 95 % interval."""
    less = (best_losses(sweep) - best_losses(baseline)).dropna()
    return f"{less.mean():+.3f} ± {student.ppf(0.975, len(less) - 1) * less.sem():.3f}"


def check_text(report: coordcheck.Report, label: str) -> str:
    """A check in a few words: its status, and whom it blames."""
    blamed = report.culprits["parameter"].tolist()
    who = f": {blamed[0]}" if len(blamed) == 1 else f": {len(blamed)} parameters" if blamed else ""
    audit = ", warns of lr × decay" if any("weight decay" in note for note in report.notes) else ""
    return report.status[label].value + who + audit


def moved(sweep: Transfer) -> str:
    """By how many octaves the optimum of a sweep moves when the width doubles, with half of its 95 % interval."""
    (shift,) = sweep.shift.itertuples()
    return f"{shift.shift:+.2f} ± {shift.high - shift.shift:.2f}" if shift.widths > 1 else "–"


def compared(sweeps: dict[str, Transfer], checks: dict[str, coordcheck.Report]) -> pd.DataFrame:
    """The table of the lesson: a row per variant, and one that carries the last one's exponents on."""
    rows = [
        {
            "ablation": name,
            "coordinate check": check_text(checks[name], name),
            "optimum moves (octaves per doubling)": moved(sweep),
            "so it": sweep.shift["status"].item(),
            "loss, less baseline": difference(sweep, sweeps["baseline µP"]),
            "in the paper": ABLATIONS[name].paper,
        }
        for name, sweep in sweeps.items()
    ]
    *_, last = sweeps
    own = checks[last].parameters.query("role in ['input', 'hidden', 'readout']")["own_update"]
    factors = " to ".join(f"{2 ** (6 * exponent):.2g}" for exponent in (own.min(), own.max()))
    reach = f"own updates × {factors}, where their exponents hold on"
    table = pd.DataFrame(rows)
    table.loc[len(table)] = [f"{last}, 64 × the width", reach, "", "extrapolated", "", "transfers"]
    return table


def draw(sweeps: dict[str, Transfer], checks: dict[str, coordcheck.Report]) -> Figure:
    """A panel per variant: its sweep, with a red name where the check fails."""
    names, columns = list(sweeps), min(len(sweeps), 5)
    rows = math.ceil(len(names) / columns)
    figure, axes = lesson.subplots(rows, columns, height=0.3 + 1.25 * rows, sharex=True, sharey=True, squeeze=False)
    for axis, (name, sweep) in zip(axes.flat, sweeps.items(), strict=False):
        panel(axis, sweep.losses, sweep.optima, sweep.shift, sweep.losses["loss"].dropna())
        colour = lesson.RED if checks[name].status[name].violated else "black"
        axis.set_title(name, fontsize=6.8, color=colour, pad=10, fontweight="normal")
        axis.texts[0].set(text=minus(moved(sweep)))
        axis.tick_params(labelbottom=name in names[-columns:])
    least = min(sweep.losses["loss"].min() for sweep in sweeps.values())
    axes[0, 0].set_ylim(least - 0.05, least + 0.75)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("log2 learning rate", fontsize=7.5)
    figure.supylabel("held-out loss", fontsize=7.5)
    return figure


def folder(name: str) -> Path | None:
    """Where the runs of a variant are kept at full size, so that what was interrupted resumes."""
    kept = lesson.HERE / "_build" / "ablations" / "full" / name.translate(str.maketrans(" ×÷", "-x_"))
    return kept if lesson.FULL else None


BETTER, SAME, NOT = "transfers, improves", "transfers", "does not transfer"
SP = {"parametrization": "SP", "gains": True, "biases": True}
LARGEST = {"zero_init": ("query",), "activation": "squared relu"}
ABLATIONS = {
    "baseline µP": Ablation(build, "–"),
    "projection biases": Ablation(partial(build, biases=True), SAME),
    "RMSNorm gain, vector": Ablation(partial(build, gains=True), NOT),
    "RMSNorm gain, scalar": Ablation(partial(build, change=scalar_gains), NOT),
    "embedding norm": Ablation(partial(build, change=embedding_norm), SAME, seeds=5),
    "zero query": Ablation(partial(build, zero_init=("query",)), BETTER, seeds=5),
    "cosine schedule": Ablation(partial(build, shape=cosine), SAME, seeds=5),
    "weight decay 0.1": Ablation(partial(build, change=weight_decay), NOT, seeds=5),
    "SwiGLU": Ablation(partial(build, activation="swiglu"), BETTER, seeds=5),
    "squared ReLU": Ablation(partial(build, activation="squared relu"), BETTER),
    "SP attention scale": Ablation(partial(build, attention_scale="1/sqrt(D)"), NOT),
    "SP unembedding init": Ablation(partial(build, change=sp_unembedding), BETTER),
    "full SP": Ablation(partial(build, **SP), NOT, range(-10, -3)),
    "Lion": Ablation(partial(build, change=lion), NOT, range(-9, -2), seeds=5),
    "multi-query attention": Ablation(partial(build, kv_heads=1), BETTER),
    "batch × 4": Ablation(build, BETTER, range(-6, -1), batch=4 * BATCH, widths=NARROW, seeds=5),
    "batch ÷ 4": Ablation(build, "–", range(-8, -2), batch=BATCH // 4, seeds=5),
    "large scale": Ablation(partial(build, **LARGEST), SAME, widths=(*NARROW, WIDTHS[-1])),
}
