"""SP against µP: an MLP
=====================

In the standard parametrization (SP) one Adam step moves the hidden layers of a wide MLP more than those of a narrow
one; in the maximal update parametrization (µP) it moves them all alike. This is the coordinate check of Yang et al.
2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, appendix D.1.

What to see: every line is a layer, darker ones come earlier. Above, what verdicts are read from. The scale at t = 0
is level in both, but for the readout of µP, which starts smaller by design. How far the layers have moved since then
shows the difference from the first step on: in SP the change is proportional to the width, in µP it is level. Below,
the scale alone at every step, as the field draws it: what does not change hides at first how fast the rest does.
"""

import torch
import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# One fixed batch, and two factories that differ in nothing but initialisation and learning rates.

inputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
targets = torch.randint(10, (64,), generator=torch.Generator().manual_seed(1))
factories = {"SP": mlp("SP", "adam", lr=5e-3), "µP": mlp("µP", "adam", lr=5e-3)}
widths, seeds = ((64, 128, 256, 512), 5) if lesson.FULL else ((64, 128, 256), 3)
report = coordcheck.check(factories, (inputs, targets), loss=F.cross_entropy, widths=widths, seeds=seeds)
print(report)

# %%
# The scale before training, and the change after it, against the width: this is what verdicts are read from.

lesson.save(report.figure(), "sp_versus_mup_mlp")

# %%
# The figure of the field: scale against width, a column per step.

lesson.save(report.figure(quantity="activation"), "sp_versus_mup_mlp_scales")

# %%
# The lesson: after one step the change of every hidden layer grows in SP, and in µP it does not.

at_one = report.slopes.query("quantity == 'change' and step == 1 and layer.str.match(r'hidden\\.\\d')")
change = at_one.groupby("label")["slope"]
print(change.agg(["min", "max"]))
assert change.min()["SP"] > 0.5, "a hidden layer of SP keeps its scale"
assert change.max()["µP"] < 0.25, "a hidden layer of µP blows up"
assert report.status == {"SP": "blows up", "µP": "ok"}, "the verdicts have changed"
