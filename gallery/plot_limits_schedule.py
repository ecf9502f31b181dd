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

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# The check passes: it sees what `build` returns.

build = {"µP": mlp("µP", lr=1e-2)}
report = coordcheck.check(build, lesson.taught(0), loss=lesson.class_loss, widths=(64, 128, 256, 512))
print(report)

# %%
# Training with and without the schedule's mistake.


def trained(width, lr, one_rate, seed, steps=200 if lesson.FULL else 100):
    """Loss on new examples."""

    def schedule(optimizer, step):
        for group in optimizer.param_groups:
            group["lr"] = lr if one_rate and step >= 4 else group["lr"]

    batches = map(lesson.taught, range(steps))
    model, _ = lesson.train(mlp("µP", lr=lr), width, batches, seed=seed, schedule=schedule)
    return lesson.class_loss(model, lesson.taught(10**6, 4096)).item()


def mean_loss(*run):
    """The mean over seeds."""
    return sum(trained(*run, seed) for seed in range(seeds)) / seeds


widths, seeds = ((64, 256, 1024), 3) if lesson.FULL else ((64, 512), 1)
rates = [2.0**power for power in range(-11, -4, 1 if lesson.FULL else 2)]
titles = {False: "a rate per group", True: "one rate for all groups"}
loss = {case: {width: [mean_loss(width, lr, case) for lr in rates] for width in widths} for case in titles}

# %%
# Loss against the learning rate.

figure, axes = lesson.subplots(1, 2, height=2.4, sharey=True)
best = {}
for axis, (case, title) in zip(axes, titles.items(), strict=True):
    for width, colour, marker in zip(widths, lesson.shades(len(widths)), "osD", strict=False):
        curve = loss[case][width]
        best[case, width] = rates[curve.index(min(curve))]
        axis.plot(rates, curve, marker=marker, color=colour, label=f"width {width}")
        axis.plot(best[case, width], min(curve), marker, color=colour, markersize=8, fillstyle="none")
    lesson.log2_axes(axis, rates[::2], y=False)
    axis.xaxis.set_major_formatter(lambda rate, _: f"1/{1 / rate:g}")
    axis.set(title=title, xlabel="learning rate at width 64")
axes[0].set_ylabel("loss")
axes[0].legend()
lesson.save(figure, "limits_schedule")

# %%
# The lesson: the check passes, the best rate stays where it is in one case, and falls with the width in the other.

moved = {case: [best[case, width] / best[case, widths[0]] for width in widths] for case in titles}
print(moved)
assert report.status == {"µP": "ok"}, "the check does not pass"
assert all(0.5 <= factor <= 2 for factor in moved[False]), "µP does not transfer here"
assert moved[True][-1] <= 0.25, "one rate for all groups transfers"
