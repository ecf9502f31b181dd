"""SP against µP: a Transformer on text
====================================

The same for a decoder-only Transformer on English text, with PyTorch's default initialisation against the rules of
Lingle 2024, `arXiv:2404.05728 <https://arxiv.org/abs/2404.05728>`_, table 1: one Adam step is enough to tell them
apart, and enough to say which matrices need another learning rate.

What to see: above, every line is a layer, darker ones come earlier; heavy ones are violated, and the worst are named.
SP looks healthy at t = 0. One update moves the outputs of attention and MLP by more the wider the model is, and the
residual stream follows. In µP only the logits depend on the width, before training: they start small by design, and
change alike at every width. Below, every parameter by itself: how its own update and what it inherits scale with the
width, and how far its initialisation (diamonds) and its learning rate (circles) are from µP; red is to blame.
"""

import coordcheck
import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import transformer

# %%
# Two blocks, 8 sequences of 32 bytes of real text, and the base learning rate for both at width 64.

shared = {"optimizer": "adam", "lr": 3e-3, "context": 32}
factories = {"SP": transformer("SP (PyTorch)", **shared), "µP": transformer("µP", **shared)}
widths, seeds = ((64, 128, 256, 512), 5) if lesson.FULL else ((64, 128, 256), 3)
report = coordcheck.check(factories, lesson.text_batch(), loss=next_byte_loss, widths=widths, seeds=seeds)
print(report)

# %%
# Scale at t = 0, and change at t = 1..4, against the width.

lesson.save(report.figure(), "sp_versus_mup_transformer")

# %%
# The diagnosis holds every parameter against µP by itself: circles are exponents of learning rates, diamonds those of
# the initialisation, and red is what to change.

lesson.save(report.figure("exponents"), "sp_versus_mup_transformer_exponents")

# %%
# The lesson: after one update every matrix of the blocks has moved its output by more the wider SP is; none in µP.

layers = r"blocks\.\d\.(attention\.(query|key|value|output)|mlp\.(up|down))"
at_one = report.slopes[(report.slopes["quantity"] == "change") & (report.slopes["step"] == 1)]
change = at_one[at_one["layer"].str.fullmatch(layers)].groupby("label")["slope"]
culprits = report.culprits.groupby("label").size()
print(change.agg(["min", "max"]), culprits, sep="\n")
assert change.min()["SP"] > 0.25 > change.max()["µP"], "one step does not tell SP and µP apart"
assert culprits.to_dict() == {"SP": 15}, "to blame in SP: 12 matrices, 2 attention scales, the readout; in µP nothing"
assert report.status == {"SP": "blows up", "µP": "ok"}, "the verdicts have changed"
