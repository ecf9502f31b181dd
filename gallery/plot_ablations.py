"""Eighteen ablations of µP: what the check says, and where the best learning rate goes
======================================================================================

Passing a coordinate check is necessary for learning rates to transfer, and not sufficient. Lingle 2024,
`arXiv:2404.05728 <https://arxiv.org/abs/2404.05728>`_, trained µP Transformers of up to 1.2 billion parameters with one
thing changed at a time; here every one of these changes is checked, and swept over learning rates, on two CPU cores.

What to see: a panel per change, held-out loss against log2 of the learning rate at widths 32 (dark), 64 and 128
(light; from 16 at large scale and batch × 4), the range of the seeds, and the optimum with its 95 % interval. Under
the name stands by how many octaves it moves when the width doubles. Red names fail the check.

The table puts the check's verdict, this measurement and the finding of the paper side by side. Only its last column is
the paper's, whose models are 4 to 16 times as wide and 12 times as deep; intervals are of 95 %.

Where the check passes and transfer fails: in the paper RMSNorm gains, weight decay, the SP attention scale and Lion.
All five pass here, and must: none changes an exponent of the width (of weight decay an audit warns). At this size the
optimum does not leave its place in four of them either, and with weight decay it is not resolved. Where the check fails
and transfer holds: the SP unembedding init, here as in the paper, with the better loss. Full SP fails both. The last
row is no measurement but the large-scale variant's exponents, from 8 times the width carried on to 64 times.
"""

from functools import partial

import numpy as np

import coordcheck
import lesson
from ablations import ABLATIONS, compared, draw, folder
from coordcheck.checks.demo import next_byte_loss

# %%
# Every variant at every width, learning rate and seed; and its check, with the rate that is best for the baseline.

widths, seeds = (32, 64, 128, 256), 2 if lesson.QUICK else 3
NAMES = list(ABLATIONS) if lesson.FULL else ["baseline µP", "weight decay 0.1", "full SP"][:: 2 if lesson.QUICK else 1]
sweeps = {name: ABLATIONS[name].sweep(name, save_to=folder(name), jobs=2 if lesson.FULL else 1) for name in NAMES}
checks = {}
for name in NAMES:
    batch, build = lesson.text_batch(ABLATIONS[name].batch // 2), partial(ABLATIONS[name].build, lr=2.0**-5)
    checks[name] = coordcheck.check({name: build}, batch, loss=next_byte_loss, widths=widths, seeds=seeds)
lesson.table(compared(sweeps, checks), "ablations")
lesson.save(draw(sweeps, checks), "ablations")

# %%
# The lesson: SP fails the check and its optimum moves; weight decay passes, which alone does not prove transfer.

status = {name: check.status[name].value for name, check in checks.items()}
best = {name: np.log2(sweep.optima["best"].to_numpy()) for name, sweep in sweeps.items()}  # of those tried, by width
assert status["full SP"] == "blows up", "the check passes SP"
assert status["baseline µP"] == status.get("weight decay 0.1", "ok") == "ok", "the check fails µP"
assert np.ptp(best["baseline µP"]) <= 1, "the optimum of µP moves"
assert best["full SP"][-1] <= best["full SP"][0] - 1, "the optimum of SP stays"
