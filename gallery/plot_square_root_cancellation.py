"""Why a trained weight adds √n more than an initial one
=====================================================

A pre-activation sums n terms. Those of the initial weights are independent of their input: the sum of n is about √n
times as large as one term (the central limit theorem). An update has seen its input: its terms have one sign, and the
sum is about n times as large as one (the law of large numbers). So whatever the scales of weights and updates,
training gains √n on initialisation, and a rule that is right at t = 0 is wrong at t = 1: Yang & Hu 2021,
`arXiv:2011.14522 <https://arxiv.org/abs/2011.14522>`_.

What to see: left, sums in units of one term, RMS(W x) / (RMS(W) RMS(x)), for a hidden matrix before training
(circles) and for its first update (squares, same input), with √n and n in grey. Middle, their ratio, with √n. Right,
what a learning rate makes of it: entries of W at t = 0 are 1/√n everywhere, so W x is level; entries of an Adam
update are as large as the learning rate, so that the update's share grows with n in SP, where the rate is one
constant, and is level in µP, where it is 1/n.
"""

import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# `diagnose` makes one update on a few examples and measures every parameter by itself: W, W x, the update, and the
# update times the same x.

batch = lesson.points(4)
factories = {"SP, Adam": mlp("SP"), "SP, SGD": mlp("SP", "sgd", lr=0.1), "µP, Adam": mlp("µP")}
widths, seeds = ((64, 128, 256, 512, 1024, 2048), 8) if lesson.FULL else ((64, 128, 256, 512), 4)
report = coordcheck.diagnose(factories, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)
rows = report.measurements.query("layer == 'hidden.1.weight'")
scales = rows.pivot_table(index=["label", "seed", "width"], columns="quantity", values="value")
scales["initial sum"] = scales["output"] / (scales["weight"] * scales["input"])
scales["trained sum"] = scales["own_update"] / (scales["weight_update"] * scales["input"])
scales["ratio"] = scales["trained sum"] / scales["initial sum"]

# %%
# Geometric means over the seeds against the width.

figure, (sums, ratio, shares) = lesson.subplots(1, 3, height=2.2)
mean = scales.groupby(["label", "width"]).agg(lambda values: values.prod() ** (1 / len(values)))


def draw(axis, label, quantity, marker, colour, text, line="-"):
    """One curve, named."""
    axis.plot(widths, mean.loc[label, quantity], marker + line, color=colour, label=text)


draw(sums, "SP, Adam", "trained sum", "s", lesson.RED, "update: ΔW x")
draw(sums, "SP, Adam", "initial sum", "o", lesson.BLUE, "initial: W x")
draw(ratio, "SP, SGD", "ratio", "^", lesson.ORANGE, "SGD", ":")
draw(ratio, "SP, Adam", "ratio", "s", lesson.RED, "Adam")
draw(shares, "SP, Adam", "output", "o", lesson.BLUE, "W x, both")
draw(shares, "SP, Adam", "own_update", "s", lesson.RED, "ΔW x, SP")
draw(shares, "µP, Adam", "own_update", "D", lesson.GREEN, "ΔW x, µP", "--")
lesson.guide(sums, widths, widths[0] ** 0.5 / 1.5, 0.5, "√n")
lesson.guide(sums, widths, widths[0], 1.0, "n")
lesson.guide(ratio, widths, 1.5, 0.5, "√n")
titles = "sum / one term", "trained sum / initial sum", "RMS, Adam"
for axis, title in zip((sums, ratio, shares), titles, strict=True):
    lesson.log2_axes(axis, widths[::2])
    axis.set(title=title, xlabel="width n")
    axis.legend(loc=(0.02, 0.55) if axis is shares else "upper left")
lesson.save(figure, "square_root_cancellation")

# %%
# The lesson: the sums have exponents ½ and 1, and their ratio ½, under Adam and SGD, in SP and in µP.

for label in factories:
    for quantity, theory in (("initial sum", 0.5), ("trained sum", 1.0), ("ratio", 0.5)):
        fit = coordcheck.fit_slope(widths, scales.loc[label, quantity].unstack("width").to_numpy().tolist())
        print(f"{label:9} {quantity:12} {fit.slope:.3f} in [{fit.low:.3f}, {fit.high:.3f}], theory {theory}")
        assert abs(fit.slope - theory) < 0.05, f"{quantity} of {label} is not n^{theory}"
    assert fit.low <= 0.5 <= fit.high, f"the ratio of {label} is not √n"
