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

from functools import partial

import pandas as pd
import torch

import coordcheck
import lesson
from coordcheck.models import mlp


def build(width, lr=1e-2, inputs=1.0, decay=0.0, power=0):
    """The µP MLP, its input layer's rate times `inputs`; AdamW's decay times m ** power where the rate is lr / m."""
    model, adam = mlp("µP", lr=lr)(width)
    groups = [{"params": [p], "lr": group["lr"]} for group in adam.param_groups for p in group["params"]]
    for group in groups:
        group["weight_decay"] = decay * (lr / group["lr"]) ** power
        group["lr"] *= inputs if group["params"][0] is model.input.weight else 1.0
    return model, torch.optim.AdamW(groups)


# %%
# All of them pass: no verdict, no parameter to blame. (An audit reads AdamW's groups, and notes the constant decay.)

rates = {"right": build, "all rates / 10": partial(build, lr=1e-3), "input rate × 10": partial(build, inputs=10)}
decays = {"decay × m": partial(build, decay=1.0, power=1), "constant decay": partial(build, decay=1.0)}
report = coordcheck.check(
    rates | decays, lesson.taught(0), loss=lesson.class_loss, widths=(64, 128, 256, 512), seeds=lesson.GRID["seeds"]
)
assert set(report.status.values()) == {"ok"}, "the check sees one of them"
assert report.culprits.empty, "the diagnosis sees one of them"

# %%
# The lesson: trained for longer, on new examples at every step, only "right" and "decay × m" are right.

widths, steps = ((64, 128, 256, 512, 1024), 200) if lesson.FULL else ((64, 256), 100)


def trained(build, width):
    """(loss on new examples, share of the initial hidden matrix that is left)."""
    start, end = (lesson.train(build, width, map(lesson.taught, range(count)))[0] for count in (0, steps))
    initial, last = (model.hidden[1].weight.detach() for model in (start, end))
    left = (last * initial).sum() / initial.square().sum()
    return lesson.class_loss(end, lesson.taught(10**6, 4096)).item(), left.item()


loss = pd.DataFrame({name: [trained(build, n)[0] for n in widths] for name, build in rates.items()}, index=widths)
left = pd.DataFrame({name: [trained(build, n)[1] for n in widths] for name, build in decays.items()}, index=widths)
panels = {"loss after training": loss, "share of W(0) that is left": left}
looks = [{"D--": lesson.GREEN, "o-": lesson.RED, "^-": lesson.ORANGE}] * 2
lesson.save(lesson.panels(panels, looks, y=False, xlabel="width")[0], "limits")
assert loss.drop(columns="right").sub(loss["right"], axis=0).min().min() > 0.02, "a constant that is off does no harm"
narrow, *_, wide = left["constant decay"]
assert wide > narrow + 0.2, "a constant decay does not depend on the width"
