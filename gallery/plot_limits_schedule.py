"""A pass is no proof of transfer: the schedule
============================================

A schedule is no part of ``build``, so no coordinate check of the model and its optimizer sees it. Many training loops
write one learning rate into all parameter groups at every step, and so undo, after the first steps, what µP has set.
The model passes, and its best learning rate moves with the width all the same. The transfer that is lost is that of
Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_.

What to see: loss after training against the base learning rate, a curve per width, darker for narrower, the best rate
of each marked. Left, the groups keep their own rates: the best one stays within a factor of two, and wider is better.
Right, the same model, which passed the same check, with one rate written into all groups after step 4: the best rate
falls with the width.
"""

from functools import partial

import numpy as np
import pandas as pd

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# The check passes: it sees what `build` returns.

report = coordcheck.check({"µP": mlp("µP", lr=1e-2)}, lesson.taught(0), loss=lesson.class_loss, **lesson.GRID)
assert report.status == {"µP": "ok"}, "the check does not pass"

# %%
# The lesson: trained, the best rate stays where it is without the schedule's mistake, and falls with the width with it.


def trained(lr, width, seed, schedule):
    """Loss on new examples."""
    batches = map(lesson.taught, range(200 if lesson.FULL else 80))
    model, _ = lesson.train(mlp("µP", lr=lr), width, batches, seed=seed, schedule=partial(schedule, lr=lr))
    return lesson.class_loss(model, lesson.taught(10**6, 4096)).item()


def overwritten(optimizer, step, lr):
    """From step 4 on, one rate in all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr if step >= 4 else group["lr"]


widths, seeds, every = ((64, 256, 1024), range(3), 1) if lesson.FULL else ((64, 512), range(1), 2)
rates = pd.Index([2.0**power for power in range(-11 if lesson.FULL else -9, -4, every)])
cases = {"a rate per group": lambda *run, lr: None, "one rate for all groups": overwritten}
figure, axes = lesson.subplots(1, 2, height=2.4, sharey=True)
best = {}
for axis, (title, schedule) in zip(axes, cases.items(), strict=True):
    for width, colour, marker in zip(widths, lesson.shades(len(widths)), "osD", strict=False):
        curve = pd.Series([np.mean([trained(lr, width, seed, schedule) for seed in seeds]) for lr in rates], rates)
        best[title, width] = curve.idxmin() / best.get((title, widths[0]), 1.0)
        axis.plot(curve, marker=marker, color=colour, label=f"width {width}")
        axis.plot(curve.idxmin(), curve.min(), marker, color=colour, markersize=8, fillstyle="none")
    lesson.log2_axes(axis, rates[::2], y=False)
    axis.xaxis.set_major_formatter(lambda rate, _: f"1/{1 / rate:g}")
    axis.set(title=title, xlabel="learning rate at width 64")
axes[0].set_ylabel("loss")
axes[0].legend()
lesson.save(figure, "limits_schedule")
moved = {title: [best[title, width] for width in widths[1:]] for title in cases}  # as a factor of the narrowest one's
assert all(0.5 <= factor <= 2 for factor in moved["a rate per group"]), "µP does not transfer here"
assert moved["one rate for all groups"][-1] <= 0.25, "one rate for all groups transfers"
