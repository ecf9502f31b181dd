"""Four parametrizations, two optimizers: exponents beside theory
==============================================================

SP, NTK, mean-field and µP differ in three powers of the width: of the initialisation, of the learning rate and of a
multiplier. What one update does to a layer follows from them, and it depends on the optimizer: Yang & Hu 2021,
`arXiv:2011.14522 <https://arxiv.org/abs/2011.14522>`_, for Adam Yang et al. 2022, `arXiv:2203.03466
<https://arxiv.org/abs/2203.03466>`_, table 3. The diagnosis measures these exponents, and names the parametrization
by the nearest of them.

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
    ("SP", "SGD"): (0, 0, 0, -0.5, 0.5, 1),
    ("NTK", "SGD"): (0, 0, 0, -0.5, -0.5, 0),
    ("mean-field", "SGD"): (0, 0, -0.5, -1, -1, -1),
    ("µP", "SGD"): (0, 0, -0.5, 0, 0, 0),
    ("SP", "Adam"): (0, 0, 0, 0, 1, 1),
    ("NTK", "Adam"): (0, 0, 0, 0, 0.5, 0.5),
    ("mean-field", "Adam"): (0, 0, -0.5, 0, 0.5, 0),
    ("µP", "Adam"): (0, 0, -0.5, 0, 0, 0),
}
factories = {f"{name}, {optimizer}": mlp(name, optimizer.lower()) for name, optimizer in THEORY}
layers, quantities = ["input", "hidden.1", "readout"], ["output", "own_update"]
columns = pd.MultiIndex.from_product([quantities, layers])
theory = pd.DataFrame(THEORY.values(), index=list(factories), columns=columns)

# %%
# Measured: slopes of each matrix's output and own update, less that of its input, on four examples.

batch = lesson.points(4)
widths, seeds = ((64, 128, 256, 512, 1024, 2048), 5) if lesson.FULL else ((64, 256, 512), 4)
report = coordcheck.diagnose(factories, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)
measured = pd.concat({name: lesson.over_input(report, name, theory[name]) for name in quantities}, axis=1)

# %%
# Theory as bars, measurements as markers; and the same as a table.

figure, axes = lesson.subplots(1, 2, height=2.9, sharex=True, sharey=True)
titles = "at t = 0: output over input", "first own update over input"
for axis, quantity, title in zip(axes, quantities, titles, strict=True):
    lesson.beside_theory(axis, theory[quantity], measured[quantity])
    axis.set(title=title, xlabel="exponent of the width")
axes[0].legend(loc="center right")
lesson.save(figure, "parametrizations")
shown = pd.DataFrame({"measured (theory)": factories.keys()})
for quantity, layer in columns:
    pairs = zip(measured[quantity, layer], theory[quantity, layer], strict=True)
    shown[f"{layer}, {'t = 0' if quantity == 'output' else 'update'}"] = [f"{a:+.2f} ({b:+.1f})" for a, b in pairs]
lesson.table(shown.assign(named=list(report.parametrizations.values())), "parametrizations")

# %%
# The lesson: every exponent is that of theory, and the diagnosis names every parametrization.

assert float((measured - theory).abs().max().max()) < 0.15, "an exponent is not that of theory"
assert list(report.parametrizations.values()) == [name for name, _ in THEORY], "a parametrization is misnamed"
