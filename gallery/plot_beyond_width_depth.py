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

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import coordcheck
import lesson

# %%
# A residual net of 128 units. ``fold`` gives its last block, whose output is the stream, one name at every depth.


class Block(nn.Linear):
    """x + multiplier * W relu(norm(x))."""

    def forward(self, x):
        return x + self.multiplier * super().forward(F.rms_norm(x, x.shape[-1:]).relu())


def build(multiplier, lr, depth):
    """Blocks times depth ** multiplier, their Adam learning rates times (depth / 2) ** lr."""
    blocks = nn.Sequential(*(Block(128, 128, bias=False) for _ in range(depth)))
    for block in blocks:
        block.multiplier = depth**multiplier
    ends = nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 10)
    inside, outside = {"params": blocks.parameters(), "lr": 1e-3 * (depth / 2) ** lr}, nn.ModuleList(ends).parameters()
    return nn.Sequential(ends[0], blocks, *ends[1:]), torch.optim.Adam([inside, {"params": outside}], lr=1e-3)


powers = {"plain": (0, 0), "blocks / √L": (-0.5, 0), "blocks and lr / √L": (-0.5, -0.5)}
factories = {name: partial(build, *power) for name, power in powers.items()}
depths = (4, 8, 16, 32, 64, 128) if lesson.FULL else (4, 8, 16, 32)
options = {"axis": "depth", "fold": {"1": "last"}, "steps": 1}
report = coordcheck.check(factories, lesson.points(16), loss=F.cross_entropy, widths=depths, **options)

# %%
# The lesson: only with both are scale and change of the stream independent of the depth.

stream = report.measurements.query("layer == '1.last'")
stream = stream.pivot_table(index="width", columns=["quantity", "step", "label"], values="value")
start, change = stream["activation", 0][list(factories)], stream["change", 1][list(factories)]
looks = {"o-": lesson.RED, "s-": lesson.BLUE, "D-": lesson.GREEN}
titled = {"t = 0: scale of the stream": start, "t = 1: its change": change}
figure, axes = lesson.panels(titled, [looks, looks], xlabel="depth L")
axes[0].lines[1].set(fillstyle="none", markersize=7)  # it lies below another curve
guides = (
    (0, start["plain"] * 1.3, 0.5, "√L"),
    (1, change["blocks / √L"] * 0.8, 0.5, "√L"),
    (1, change["plain"] * 1.3, 1, "L"),
)
for axis, curve, slope, text in guides:
    lesson.guide(axes[axis], depths, curve[4], slope, text)
lesson.save(figure, "beyond_width_depth")
slopes = report.slopes.query("layer == '1.last'").set_index(["quantity", "step", "label"])["slope"]
assert report.status["blocks and lr / √L"] == "ok", "depth-µP depends on the depth"
assert slopes["activation", 0, "plain"] > 0.25 > slopes["activation", 0, "blocks / √L"], "t = 0 is wrong"
assert slopes["change", 1, "blocks / √L"] > 0.25, "the multiplier alone is enough"
