"""The demo: the reference Transformer under SP, SP fixed, and µP with Adam, on the source text of torch itself.

`build_sp` and `build_mup` are complete factories for the command line, too:

    coordcheck run coordcheck.checks.demo:build_sp
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from coordcheck.checks.check import check
from coordcheck.checks.fixing.verb import fix
from coordcheck.models import transformer
from coordcheck.reporting.report import Report
from coordcheck.training.trials import Trial

SEQUENCES, CONTEXT = 8, 32
LEARNING_RATE = 3e-3  # at width 64; where the µP model learns and the SP model visibly does not keep its scales
SP, FIXED, MUP = "SP", "SP, fixed", "µP"


def next_byte_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Cross-entropy of the next byte: (batch, time + 1) bytes -> scalar."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@lru_cache(maxsize=1)
def text_batch() -> Tensor:
    """`SEQUENCES` pieces of torch's own source text, evenly spaced: (batch, time + 1) bytes."""
    source = Path(F.__file__).read_bytes()
    starts = [index * (len(source) - CONTEXT - 1) // SEQUENCES for index in range(SEQUENCES)]
    # on the CPU also when a plan builds on the meta device: it is kept from call to call
    return torch.tensor([list(source[start : start + CONTEXT + 1]) for start in starts], device="cpu")


def _trial(build: Callable[[int], tuple[nn.Module, Optimizer]], width: int) -> Trial:
    return Trial(*build(width), batch=text_batch(), loss=next_byte_loss)


def build_sp(width: int) -> Trial:
    """PyTorch's default init and one Adam learning rate for all widths."""
    return _trial(transformer("SP (PyTorch)", "adam", lr=LEARNING_RATE, context=CONTEXT), width)


def build_mup(width: int) -> Trial:
    """The same Transformer in µP: the rules of Lingle 2024, table 1."""
    return _trial(transformer("µP", "adam", lr=LEARNING_RATE, context=CONTEXT), width)


def run_demo(folder: Path, *, jobs: int = 1) -> Report:
    """Check all three, and write rules, run files, figures, the table and the page into `folder`."""
    found = fix(build_sp, seeds=1, rounds=1)
    report = check({SP: build_sp, FIXED: found.build, MUP: build_mup}, jobs=jobs, save_to=folder)
    found.save(folder / "mup.json")
    report.figure(path=folder / "coordinate_check.png")
    report.figure("slopes", path=folder / "slopes.png")
    report.figure("exponents", path=folder / "exponents.png")
    report.save_html(folder / "report.html")
    (folder / "verdicts.csv").write_text(report.verdicts.to_csv(index=False), encoding="utf-8")
    return report
