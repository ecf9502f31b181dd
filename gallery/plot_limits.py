"""What is wrong at every width, or later
======================================

A coordinate check compares widths, at the first steps. So it is blind to a constant that is wrong at every width, and
to what weight decay does in the long run (Wang & Aitchison 2024, `arXiv:2405.13698
<https://arxiv.org/abs/2405.13698>`_; Kosson et al. 2025, `arXiv:2510.19093 <https://arxiv.org/abs/2510.19093>`_). The
report says so under every verdict.

What to see: what became of µP networks with Adam, all of which pass the check. Left: with every learning rate ten
times too small (circles), or with the input layer's alone ten times too large (triangles), the loss is higher at
every width. Right: the share of a hidden matrix's initial weights that is left under AdamW. With one constant decay
(circles) a wide network forgets less, because µP's smaller rate also makes its decay smaller; a decay that grows with
the width (diamonds) mends it.
"""

import pandas as pd
import torch

import coordcheck
import lesson
from coordcheck.models import mlp


def factory(lr=1e-2, inputs=1.0, decay=0.0, power=0):
    """The µP MLP, its input layer's rate times `inputs`; AdamW's decay times m ** power where the rate is lr / m."""

    def build(width):
        model, adam = mlp("µP", lr=lr)(width)
        groups = []
        for group in adam.param_groups:
            pull = decay * (lr / group["lr"]) ** power
            for p in group["params"]:
                rate = group["lr"] * (inputs if p is model.input.weight else 1.0)
                groups.append({"params": [p], "lr": rate, "weight_decay": pull})
        return model, torch.optim.AdamW(groups)

    return build


# %%
# All of them pass: no verdict, no parameter to blame. (An audit reads AdamW's groups, and notes the constant decay.)

constants = {"right": factory(), "all rates / 10": factory(lr=1e-3), "input rate × 10": factory(inputs=10)}
decays = {"decay × m": factory(decay=1.0, power=1), "constant decay": factory(decay=1.0)}
report = coordcheck.check(constants | decays, lesson.taught(0), loss=lesson.class_loss, widths=(64, 128, 256, 512))
print(report)

# %%
# Training for longer, on new examples at every step.

STEPS = 200 if lesson.FULL else 100


def trained(build, width):
    """(loss on new examples, share of the initial hidden matrix that is left)."""
    start, end = (lesson.train(build, width, map(lesson.taught, range(steps)))[0] for steps in (0, STEPS))
    initial, last = (model.hidden[1].weight.detach() for model in (start, end))
    left = (last * initial).sum() / initial.square().sum()
    return lesson.class_loss(end, lesson.taught(10**6, 4096)).item(), left.item()


widths = (64, 128, 256, 512, 1024) if lesson.FULL else (64, 256)
loss = {name: [trained(build, width)[0] for width in widths] for name, build in constants.items()}
left = {name: [trained(build, width)[1] for width in widths] for name, build in decays.items()}

# %%
# The wrong ones against the right ones.

figure, axes = lesson.subplots(1, 2, height=2.3)
looks = {"D--": lesson.GREEN, "o-": lesson.RED, "^-": lesson.ORANGE}
for axis, ends, title in zip(axes, (loss, left), ("loss after training", "share of W(0) that is left"), strict=True):
    lesson.curves(axis, pd.DataFrame(ends, index=widths), looks, y=False, title=title, xlabel="width")
    axis.legend()
lesson.save(figure, "limits")

# %%
# The lesson: everything passes, and only "right" and "decay × m" are right.

print(loss, left)
assert set(report.status.values()) == {"ok"}, "the check sees one of them"
assert report.culprits.empty, "the diagnosis sees one of them"
wrong = [name for name in loss if name != "right"]
harm = [bad - good for name in wrong for bad, good in zip(loss[name], loss["right"], strict=True)]
assert min(harm) > 0.02, "a constant that is ten times off does no harm"
assert left["constant decay"][-1] > left["constant decay"][0] + 0.2, "a constant decay does not depend on the width"
