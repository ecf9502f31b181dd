"""Why a trained weight adds √n more than an initial one
=====================================================

A pre-activation sums n terms. Those of the initial weights are independent of their input: the sum of n is about √n
times as large as one term (the central limit theorem). An update has seen its input: its terms have one sign, and the
sum is about n times as large as one (the law of large numbers). So training gains √n on initialisation, and a rule that
is right at t = 0 is wrong at t = 1: Yang & Hu 2021, `arXiv:2011.14522 <https://arxiv.org/abs/2011.14522>`_.

What to see: left, sums in units of one term, RMS(W x) / (RMS(W) RMS(x)), for a hidden matrix before training
(circles) and for its first update (squares, same input), with √n and n in grey. Middle, their ratio, with √n. Right,
what a learning rate makes of it: entries of W are 1/√n, so W x is level; entries of an Adam update are as large as the
learning rate, so that the update grows with n in SP, where the rate is constant, and is level in µP, where it is 1/n.
"""

from itertools import product

import numpy as np
import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# `diagnose` makes one update on a few examples, and measures W, W x, the update, and the update times the same x.

batch, builds = lesson.points(4), {"SP, Adam": mlp("SP"), "SP, SGD": mlp("SP", "sgd", lr=0.1), "µP, Adam": mlp("µP")}
widths, seeds = ((64, 128, 256, 512, 1024, 2048), 8) if lesson.FULL else ((64, 128, 256, 512), 3)
report = coordcheck.diagnose(builds, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)
rows = report.measurements.query("layer == 'hidden.1.weight'")
scales = rows.pivot_table(index=["width", "label", "seed"], columns="quantity", values="value")
scales["initial"] = scales["output"] / (scales["weight"] * scales["input"])
scales["trained"] = scales["own_update"] / (scales["weight_update"] * scales["input"])
scales["ratio"] = scales["trained"] / scales["initial"]

# %%
# The lesson: the sums have exponents ½ and 1, and their ratio ½, under Adam and SGD, in SP and in µP.

mean = np.exp(np.log(scales).groupby(["label", "width"]).mean())
adam, sgd, mup = (mean.loc[label] for label in builds)
panels = {
    "sum / one term": {"update: ΔW x": adam["trained"], "initial: W x": adam["initial"]},
    "trained sum / initial sum": {"SGD": sgd["ratio"], "Adam": adam["ratio"]},
    "RMS, Adam": {"W x, both": adam["output"], "ΔW x, SP": adam["own_update"], "ΔW x, µP": mup["own_update"]},
}
red, blue = lesson.RED, lesson.BLUE
looks = {"s-": red, "o-": blue}, {"^:": lesson.ORANGE, "s-": red}, {"o-": blue, "s-": red, "D--": lesson.GREEN}
figure, axes = lesson.panels(panels, looks, height=2.2, xlabel="width n", xticks=widths[::2])
for axis, start, slope, text in ((0, widths[0] ** 0.5 / 1.5, 0.5, "√n"), (0, widths[0], 1.0, "n"), (1, 1.5, 0.5, "√n")):
    lesson.guide(axes[axis], widths, start, slope, text)
axes[2].legend(loc=(0.02, 0.55))
lesson.save(figure, "square_root_cancellation")
for label, (quantity, theory) in product(builds, {"initial": 0.5, "trained": 1.0, "ratio": 0.5}.items()):
    fit = coordcheck.fit_slope(widths, scales.loc[:, label, :][quantity].unstack("width").to_numpy().tolist())
    assert abs(fit.slope - theory) < 0.05, f"{quantity} of {label} is not n^{theory}"
    assert quantity != "ratio" or fit.low <= theory <= fit.high, f"the ratio of {label} is not √n"
