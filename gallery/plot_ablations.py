"""Eighteen ablations of µP: what the check says, and where the best learning rate goes
======================================================================================

Passing a coordinate check is necessary for learning rates to transfer, and not sufficient. Lingle 2024,
`arXiv:2404.05728 <https://arxiv.org/abs/2404.05728>`_, trained µP Transformers of up to 1.2 billion parameters with one
thing changed at a time; here every one of these changes is checked, and swept over learning rates, on two CPU cores.

What to see: a panel per change, held-out loss against log2 of the learning rate at widths 32 (dark), 64 and 128
(light; from 16 at large scale and batch × 4), the range of the seeds, and the optimum with its 95 % interval. Under
the name stands by how many octaves it moves when the width doubles. Red names fail the check.

The table puts the check's verdict, this measurement and the finding of the paper side by side. Only its last column is
the paper's, whose models are 4 to 16 times as wide and 12 times as deep; intervals are of 95 % over three seeds, five
where three did not tell.

Where the check passes and transfer fails: in the paper RMSNorm gains, weight decay, the SP attention scale and Lion.
All five pass here, and must: none changes an exponent of the width (of weight decay an audit warns). At this size the
optimum does not leave its place in four of them either, and with weight decay it is not resolved: what moves it there
needs more width or more training than a hundred steps on two cores. Where the check fails and transfer holds: the SP
unembedding init, here as in the paper, with the better loss. Full SP fails both. The last row is no measurement but the
exponents of the large-scale variant, from 8 times the width carried on to 64 times (5000 times the parameters).
"""

from functools import partial

import numpy as np

import coordcheck
import lesson
from ablations import ABLATIONS, compared, folder, moved
from coordcheck.checks.demo import next_byte_loss
from coordcheck.reporting.figures.style import minus
from coordcheck.reporting.figures.transfer import panel

NAMES = list(ABLATIONS) if lesson.FULL else ["baseline µP", "weight decay 0.1", "full SP"]

# %%
# The sweeps: every variant at every width, learning rate and seed.

jobs = 2 if lesson.FULL else 1
sweeps = {name: ABLATIONS[name].sweep(name, save_to=folder(name), jobs=jobs) for name in NAMES}

# %%
# The coordinate checks, with the learning rate that is best for the baseline.

checks = {}
for name in NAMES:
    batch = lesson.text_batch(ABLATIONS[name].batch // 2)
    build = {name: partial(ABLATIONS[name].build, lr=2.0**-5)}
    checks[name] = coordcheck.check(build, batch, loss=next_byte_loss, widths=(32, 64, 128, 256))

# %%
# One table: the check, the measured shift, the best loss less that of the baseline, and what the paper found.

lesson.table(compared(sweeps, checks), "ablations")

# %%
# Small multiples.

columns = min(len(NAMES), 5)
count = -(-len(NAMES) // columns)
figure, axes = lesson.subplots(count, columns, height=0.3 + 1.25 * count, sharex=True, sharey=True, squeeze=False)
for axis, name in zip(axes.flat, NAMES, strict=False):
    sweep = sweeps[name]
    panel(axis, sweep.losses, sweep.optima, sweep.shift, sweep.losses["loss"].dropna())
    colour = lesson.RED if checks[name].status[name].violated else "black"
    axis.set_title(name, fontsize=6.8, color=colour, pad=10, fontweight="normal")
    axis.texts[0].set(text=minus(moved(sweep)))
    axis.tick_params(labelbottom=name in NAMES[-columns:])
least = min(sweep.losses["loss"].min() for sweep in sweeps.values())
axes[0, 0].set_ylim(least - 0.05, least + 0.75)
for axis in axes.flat[len(NAMES) :]:
    axis.set_axis_off()
figure.supxlabel("log2 learning rate", fontsize=7.5)
figure.supylabel("held-out loss", fontsize=7.5)
lesson.save(figure, "ablations")

# %%
# The lesson: SP fails the check and its optimum moves; weight decay passes, which alone does not prove transfer.

status = {name: check.status[name].value for name, check in checks.items()}
best = {name: np.log2(sweep.optima["best"].to_numpy()) for name, sweep in sweeps.items()}  # of those tried, by width
assert status["full SP"] == "blows up", "the check passes SP"
assert status["baseline µP"] == status["weight decay 0.1"] == "ok", "the check fails µP"
assert np.ptp(best["baseline µP"]) <= 1, "the optimum of µP moves"
assert best["full SP"][-1] <= best["full SP"][0] - 1, "the optimum of SP stays"
