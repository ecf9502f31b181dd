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

import pandas as pd
import torch
import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# `torch.optim.Muon` knows two of the scales; the others are learning rates that depend on the shape.

THEORY = {
    "1": (-0.5, 0, 0.5),
    "√max(1, out/in): original": (0, 0, 0.5),
    "0.2 √max(out, in): match_rms_adamw": (0, 0.5, 1),
    "√(out/in)": (0, 0, 0),
}


def factory(scaling):
    """µP's initialisation, and Muon for every matrix."""

    def build(width):
        model, _ = mlp("µP", biases=False)(width)
        if ":" in scaling:
            return model, torch.optim.Muon(
                model.parameters(), lr=0.02, weight_decay=0, adjust_lr_fn=scaling.split()[-1]
            )
        groups = []
        for matrix in model.parameters():
            ratio = matrix.shape[0] / matrix.shape[1]
            scale = (ratio**0.5 if scaling == "√(out/in)" else 1.0) / max(1.0, ratio) ** 0.5  # over torch's own
            groups.append({"params": [matrix], "lr": 0.02 * scale})
        return model, torch.optim.Muon(groups, weight_decay=0)

    return build


# %%
# One update on four examples.

batch = lesson.points(4)
widths, seeds = ((64, 128, 256, 512, 1024), 4) if lesson.FULL else ((64, 128, 256), 4)
factories = {scaling: factory(scaling) for scaling in THEORY}
report = coordcheck.diagnose(factories, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)
theory = pd.DataFrame(THEORY.values(), index=list(THEORY), columns=["input", "hidden.1", "readout"])
measured = lesson.over_input(report, "own_update", theory)

# %%
# Own updates beside theory, and what the diagnosis prescribes.

figure, axis = lesson.subplots(height=1.9, width=4.6)
lesson.beside_theory(axis, theory, measured)
axis.set(xlabel="exponent of the width", title="first own update over input")
figure.legend(loc="outside right center")
lesson.save(figure, "muon_scalings")
lesson.table(report.culprits[["label", "parameter", "cause", "exponent"]], "muon_scalings")

# %%
# The lesson: theory is met, and √(out/in) alone needs no change of the learning rates.

assert float((measured - theory).abs().max().max()) < 0.15, "an exponent is not that of theory"
assert set(report.culprits["label"]) == set(THEORY) - {"√(out/in)"}, "another scaling needs no change, or it does"
