"""µTransfer: the best learning rate of a narrow model serves a wide one
======================================================================

In µP the learning rate of least loss is the same at every width, so it can be tuned on a small proxy; in SP it falls as
the model widens. This is figure 1 of Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, and the
experiment that a coordinate check stands in for.

What to see: final loss on held-out text against the learning rate, a line per width, the range of the seeds, and the
optimum with its 95 % interval. It moves in SP and stays in µP. Below, every width is trained with the learning rate
that was best for the narrowest: in µP the curves coincide at first and then wider is better; in SP the widest is worst.

The error of an optimum is what the seeds do differently; how many octaves it moves when the width doubles is the slope
of a line through the optima. In SP theory says -1 for wide models: the matrices that grow want a learning rate of 1/n.
"""

from functools import partial

import numpy as np

import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.checks.transfer import transfer_sweep
from coordcheck.models import transformer

WIDTHS, SEEDS, STEPS = ((16, 32, 64, 128), 3, 60) if lesson.FULL else ((16, 64), 1, 20)
POWERS = range(-9, -1) if lesson.FULL else range(-8, -2, 2 if lesson.QUICK else 1)
SHAPE = {"grows": "heads", "head_size": 16, "base_width": WIDTHS[0], "context": 32, "depth": 2}


def build(name, width, lr):
    """In SP one learning rate for all widths; in µP hidden matrices and readout of a wider model learn more slowly."""
    return transformer(name, lr=lr, **SHAPE)(width)


def batches(seed):
    """Sixteen pieces of text per step."""
    return (lesson.text_batch(16, seed=1000 * seed + step) for step in range(STEPS + 1))


# %%
# Train every width with every learning rate, and evaluate on text that was held out.

held_out = [lesson.text_batch(64, seed=index, validation=True) for index in range(4 if lesson.FULL else 1)]
builds, rates = {name: partial(build, name) for name in ("SP", "µP")}, [2.0**power for power in POWERS]
grid = {"lrs": rates, "widths": WIDTHS, "seeds": SEEDS, "steps": STEPS}
sweep = transfer_sweep(builds, batches, loss=next_byte_loss, evaluate=held_out, **grid)
print(sweep)
lesson.save(sweep.figure(), "transfer_learning_rate")

# %%
# The training losses of every width at the learning rate that was best for the narrowest.

figure, axes = lesson.subplots(1, 2, height=2.3, sharey=True)
tuned = sweep.optima[sweep.optima["width"] == WIDTHS[0]].set_index("label")["best"]
ends = {}
for axis, label in zip(axes, builds, strict=True):
    own = sweep.curves.query("label == @label and lr == @tuned[@label] and step < @STEPS")
    losses = own.pivot_table(index="step", columns="width", values="loss").rolling(6, min_periods=1).mean()
    for (width, curve), colour in zip(losses.items(), lesson.shades(len(WIDTHS)), strict=True):
        axis.plot(curve, color=colour, label=f"{width}")
        ends[label, width] = curve.iloc[-1]
    axis.set(xlabel="update", title=f"{label}, learning rate 2^{np.log2(tuned[label]):.0f}", ylim=(None, 4.5))
axes[0].set_ylabel("training loss (mean of 6)")
axes[1].legend(title="width", loc="upper right")
lesson.save(figure, "transfer_learning_rate_wider")

# %%
# The lesson: the optimum falls in SP, and stays in µP, where the widest model ends below the narrowest.

best = np.log2(sweep.optima.pivot(index="label", columns="width", values="best"))  # of those tried
moved = best[WIDTHS[-1]] - best[WIDTHS[0]]  # octaves
print(moved, *(f"{label}, width {width}: {loss:.3f}" for (label, width), loss in ends.items()), sep="\n")
assert moved["SP"] <= -1, "the best learning rate of SP does not fall"
assert max(moved["SP"] + 1, -1) <= moved["µP"] <= 1, "the best learning rate of µP moves"
assert ends["µP", WIDTHS[-1]] < ends["µP", WIDTHS[0]], "wider is not better in µP"
