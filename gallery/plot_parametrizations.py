"""Four parametrizations, two optimizers: exponents beside theory
==============================================================

SP, NTK, mean-field and µP differ in three powers of the width: of the initialisation, of the learning rate and of a
multiplier. What one update does to a layer follows from them, and it depends on the optimizer: Yang & Hu 2021,
`arXiv:2011.14522 <https://arxiv.org/abs/2011.14522>`_, for Adam Yang et al. 2022, `arXiv:2203.03466
<https://arxiv.org/abs/2203.03466>`_, table 3. The diagnosis measures them, and names the nearest parametrization.

What to see: a row per parametrization and optimizer, an exponent of the width on the horizontal axis. Vertical bars
are theory, markers are measured. Left, the matrix at t = 0, output over input: a readout of mean-field and µP starts
small. Right, its own first update over its input: only in µP all three are at 0, so that the whole network learns at
every width. (The learning rate of mean-field SGD has to grow with the width as a whole: it is then µP.)
"""

import pandas as pd
import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# Theory: exponents of the input, hidden and readout matrix, at t = 0 and of their own updates.

THEORY = {
    "SP, SGD": (0, 0, 0, -0.5, 0.5, 1),
    "NTK, SGD": (0, 0, 0, -0.5, -0.5, 0),
    "mean-field, SGD": (0, 0, -0.5, -1, -1, -1),
    "µP, SGD": (0, 0, -0.5, 0, 0, 0),
    "SP, Adam": (0, 0, 0, 0, 1, 1),
    "NTK, Adam": (0, 0, 0, 0, 0.5, 0.5),
    "mean-field, Adam": (0, 0, -0.5, 0, 0.5, 0),
    "µP, Adam": (0, 0, -0.5, 0, 0, 0),
}
quantities = {"output": "t = 0: output over input", "own_update": "update: first own update over input"}
columns = pd.MultiIndex.from_product([quantities, ["input", "hidden.1", "readout"]])
theory, batch = pd.DataFrame(THEORY.values(), index=list(THEORY), columns=columns), lesson.points(4)
factories = {name: mlp(*name.lower().split(", ")) for name in THEORY}

# %%
# Measured: slopes of each matrix's output and own update, less that of its input, on four examples.

widths, seeds = ((64, 128, 256, 512, 1024, 2048), 5) if lesson.FULL else ((64, 256, 512), 2)
report = coordcheck.diagnose(factories, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)
measured = pd.concat({name: lesson.over_input(report, name, theory[name]) for name in quantities}, axis=1)
figure, axes = lesson.subplots(1, 2, height=2.9, sharex=True, sharey=True)
for axis, (quantity, title) in zip(axes, quantities.items(), strict=True):
    lesson.beside_theory(axis, theory[quantity], measured[quantity], title=title)
axes[0].legend(loc="center right")
lesson.save(figure, "parametrizations")
shown = measured.map("{:+.2f}".format) + theory.map(" ({:+.1f})".format)
shown.columns = [f"{layer}, {quantities[quantity].partition(':')[0]}" for quantity, layer in columns]
named = list(report.parametrizations.values())
lesson.table(shown.assign(named=named).rename_axis("measured (theory)").reset_index(), "parametrizations")
assert float((measured - theory).abs().max().max()) < 0.15, "an exponent is not that of theory"
assert named == [name.partition(",")[0] for name in THEORY], "a parametrization is misnamed"
