"""Muon: which scaling needs no new learning rate
==============================================

Muon makes every update an orthogonal matrix times a scale, and implementations differ in the scale. Orthogonal alone,
and as published, √max(1, out/in), it moves hidden layers alike at every width; to match the RMS of Adam's updates,
0.2 √max(out, in) (Liu et al. 2025, `arXiv:2502.16982 <https://arxiv.org/abs/2502.16982>`_), it moves them √n as far.
Only √(out/in), the spectral condition (Yang et al. 2023, `arXiv:2310.17813 <https://arxiv.org/abs/2310.17813>`_), is
level for the input and the readout, too.

What to see: exponents of each matrix's own first update over its input, a row per scaling. Bars are theory, markers
are measured. In the row of √(out/in) all three lie on 0; in the others, what lies off 0 is how the learning rate of
that matrix has to fall or rise with the width, and the diagnosis prescribes just that.
"""

from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# `torch.optim.Muon` has two of the scales; the others are learning rates, over the √max(1, out/in) that it has anyway.

theory = {"1": (-0.5, 0, 0.5), "√max(1, out/in): original": (0, 0, 0.5)}
theory |= {"0.2 √max(out, in): match_rms_adamw": (0, 0.5, 1), "√(out/in)": (0, 0, 0)}
theory = pd.DataFrame(theory, index=["input", "hidden.1", "readout"]).T


def muon(scaling, width):
    """µP's initialisation, and Muon for every matrix."""
    model, _ = mlp("µP", biases=False)(width)
    own = {"1": 0.0, "√(out/in)": 0.5}.get(scaling)  # the power of out/in
    ratios = [(p, p.shape[0] / p.shape[1]) for p in model.parameters()]
    groups = [{"params": [p], "lr": 0.02 if own is None else 0.02 * r**own / max(1, r) ** 0.5} for p, r in ratios]
    return model, torch.optim.Muon(groups, weight_decay=0, adjust_lr_fn=scaling.partition(": ")[2] or None)


batch = lesson.points(4)
widths, seeds = ((64, 128, 256, 512, 1024), 4) if lesson.FULL else ((64, 128, 256), 2)
factories = {scaling: partial(muon, scaling) for scaling in theory.index}
report = coordcheck.diagnose(factories, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)

# %%
# The lesson: theory is met, and √(out/in) alone needs no change of the learning rates.

measured = lesson.over_input(report, "own_update", theory)
figure, axis = lesson.subplots(height=1.9, width=4.6)
lesson.beside_theory(axis, theory, measured, title="first own update over input")
figure.legend(loc="outside right center")
lesson.save(figure, "muon_scalings")
lesson.table(report.culprits[["label", "parameter", "cause", "exponent"]], "muon_scalings")
assert float((measured - theory).abs().max().max()) < 0.15, "an exponent is not that of theory"
assert set(report.culprits["label"]) == set(theory.index) - {"√(out/in)"}, "another scaling needs no change, or it does"
