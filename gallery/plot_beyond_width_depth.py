"""Depth: the same check along another axis
========================================

Nothing in the check is particular to the width: ``widths`` is whatever number ``build`` takes. A pre-norm residual
net sums as many blocks as it is deep, so its stream grows as √depth at t = 0, and once blocks have learned, so that
their contributions agree, as fast as the depth. Dividing every block by √depth settles the first half, and dividing
Adam's learning rate inside of the blocks by √depth the second: depth-µP, Yang et al. 2023, `arXiv:2310.02244
<https://arxiv.org/abs/2310.02244>`_.

What to see: left, the residual stream behind the last block at t = 0, against the depth; right, how far one Adam step
has moved it. Circles: a plain net grows as √L and then as L. Squares: with blocks divided by √L the stream is level,
but its change still grows as √L. Diamonds: with the learning rate divided, too, both are level.
"""

import torch
import torch.nn.functional as F
from torch import nn

import coordcheck
import lesson

# %%
# A residual net of 128 units: every block adds a matrix times a normalised stream.


class Block(nn.Linear):
    """x + multiplier * W relu(norm(x))."""

    def __init__(self, width, multiplier):
        super().__init__(width, width, bias=False)
        self.multiplier = multiplier

    def forward(self, x):
        return x + self.multiplier * super().forward(F.rms_norm(x, x.shape[-1:]).relu())


def factory(multiplier, lr, width=128, base=2):
    """Blocks times depth ** multiplier, their Adam learning rates times (depth / base) ** lr."""

    def build(depth):
        blocks = nn.Sequential(*(Block(width, depth**multiplier) for _ in range(depth)))
        model = nn.Sequential(nn.Linear(64, width), blocks, nn.LayerNorm(width), nn.Linear(width, 10))
        inside = {"params": list(blocks.parameters()), "lr": 1e-3 * (depth / base) ** lr}
        outside = {"params": [p for i in (0, 2, 3) for p in model[i].parameters()]}
        return model, torch.optim.Adam([inside, outside], lr=1e-3)

    return build


# %%
# ``fold`` gives blocks of models of different depth one name: here the last one, whose output is the stream.

factories = {"plain": factory(0, 0), "blocks / √L": factory(-0.5, 0), "blocks and lr / √L": factory(-0.5, -0.5)}
depths = (4, 8, 16, 32, 64, 128) if lesson.FULL else (4, 8, 16, 32)
options = {"axis": "depth", "fold": {"1": "last"}, "steps": 1}
report = coordcheck.check(factories, lesson.points(16), loss=F.cross_entropy, widths=depths, **options)
print(report)

# %%
# The stream behind the last block.

figure, axes = lesson.subplots(1, 2, height=2.3)
rows = report.measurements.query("layer == '1.last'")
last = rows.pivot_table(index="width", columns=["quantity", "step", "label"], values="value")
looks = {"o-": lesson.RED, "s-": lesson.BLUE, "D-": lesson.GREEN}
titles = {("activation", 0): "t = 0: scale of the stream", ("change", 1): "t = 1: its change"}
for axis, (key, title) in zip(axes, titles.items(), strict=True):
    lesson.curves(axis, last[key][list(factories)], looks, title=title, xlabel="depth L")
axes[0].lines[1].set(fillstyle="none", markersize=7)  # it lies below another curve
lesson.guide(axes[0], depths, last["activation", 0, "plain"][4] * 1.3, 0.5, "√L")
lesson.guide(axes[1], depths, last["change", 1, "blocks / √L"][4] * 0.8, 0.5, "√L")
lesson.guide(axes[1], depths, last["change", 1, "plain"][4] * 1.3, 1.0, "L")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
lesson.save(figure, "beyond_width_depth")

# %%
# The lesson: only with both are scale and change of the stream independent of the depth.

slopes = report.slopes.query("layer == '1.last'").set_index(["quantity", "step", "label"])["slope"].unstack()
print(slopes[list(factories)])
assert report.status["blocks and lr / √L"] == "ok", "depth-µP depends on the depth"
assert slopes.loc[("activation", 0), "plain"] > 0.25 > slopes.loc[("activation", 0), "blocks / √L"], "t = 0 is wrong"
assert slopes.loc[("change", 1), "blocks / √L"] > 0.25, "the multiplier alone is enough"
