"""NTK passes the plain check, and learns no features
==================================================

The classical coordinate check looks at the scale of each layer's output, and under NTK every one of them is level, at
every step. But the hidden layers of a wide NTK network hardly move at all: their change falls as 1/√n, and in the
limit features stay as they were initialised (Yang & Hu 2021, `arXiv:2011.14522 <https://arxiv.org/abs/2011.14522>`_).
Verdicts are therefore read from the change h_t − h_0, and the diagnosis says which learning rates are too small.

What to see: above, the outputs after four steps of SGD: NTK (left) and µP (right) look alike, all hidden layers are
level. Below, how far the same layers have moved: in NTK they fall along the grey line of 1/√n, in µP they do not. The
dashed line is the network's output, which learns in both.
"""

import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# The same learning rate at the smallest width, plain SGD, one fixed batch.

factories = {"NTK": mlp("NTK", "sgd", lr=0.1), "µP": mlp("µP", "sgd", lr=0.1)}
widths, seeds = ((64, 128, 256, 512, 1024, 2048), 5) if lesson.FULL else ((64, 128, 256, 512), 3)
report = coordcheck.check(factories, lesson.points(16), loss=F.cross_entropy, widths=widths, seeds=seeds)
print(report)

# %%
# Outputs and changes after four updates. The lesson: no scale of NTK depends on the width, all hidden changes do.

last = report.measurements.query("step == 4")
last = last.pivot_table(index="width", columns=["label", "quantity", "layer"], values="value")
layers, looks = (
    ["input", "hidden.0", "hidden.1", "readout"],
    dict(zip(("o-", "s-", "^-", "D--"), lesson.shades(4), strict=True)),
)
figure, axes = lesson.subplots(2, 2, height=3.4, sharex=True, sharey="row")
titles = {"activation": "scale of h(4): what the plain check sees", "change": "scale of h(4) − h(0)"}
for row, (quantity, title) in zip(axes, titles.items(), strict=True):
    for axis, label in zip(row, factories, strict=True):
        lesson.curves(axis, last[label, quantity][layers], looks, title=f"{label}: {title}")
        axis.set_xlabel("width n" if quantity == "change" else "")
lesson.guide(axes[1, 0], widths, last["NTK", "change", "hidden.0"].iloc[0] * 1.3, -0.5, "1/√n")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
lesson.save(figure, "ntk_passes_the_plain_check")
slopes = report.slopes.query("label == 'NTK' and step > 0").set_index(["quantity", "layer"])["slope"]
assert slopes["activation"].abs().max() < 0.25, "the plain check does see it"
assert slopes["change"][layers[:3]].between(-0.6, -0.35).all(), "hidden layers of NTK learn"
assert report.parametrizations["NTK"] == "NTK", "it is misnamed"
assert report.status == {"NTK": "vanishes", "µP": "ok"}, "the verdicts have changed"
