"""Found in the wild: faults of eight public repositories
======================================================

The check was run on models of public code, as they are. Here eight of its findings are rebuilt, each in a small model
of our own that is in µP otherwise (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, tables 3
and 8), and measured by hand in plain torch, too. Links lead to the lines that were read; m is width / 64.

What to see: left, mamba.py's layers after four updates. Its matrix of step sizes, dt, is multiplied without a call of
its module: the plain check has no line for it, and all lines are level (the readout starts small by design). Middle,
what the diagnosis measures of dt, RMS(W x) / RMS(x): it falls as 1/√n, by hand (grey), too, and is level with the
remedy that the diagnosis names. Right, all thirteen parameters to blame: the power of the width by which each is off,
by hand (bars) and in the diagnosis (circles), and the slope of its layer in the plain check (ticks). Of the first, the
third and the fourth repository that check flags nothing: one is not seen, one is hidden by the initialisation, one by
four updates. In nanoGPT-mup it has to be run on the path without targets.

The first four are about µP, or optimizers that are built for it. The others claim no µP: that an embedding, a patch or
an input falls with the width is no fault at the width that they were tuned at, and becomes one when they are made
wider. The shared readout of mup stands in the bug zoo.
"""

import pandas as pd
import torch.nn.functional as F

import bugs
import coordcheck
import lesson
import wild
from coordcheck.checks.demo import next_byte_loss

# %%
# Two checks, of the models of text and of the others; the first fault also with the remedy that the diagnosis names.

mamba, language, others = wild.FAULTS[0], wild.FAULTS[:5], wild.FAULTS[5:]
factories = {fault.name: fault.build for fault in language} | {"mended": wild.mended}
report = coordcheck.check(factories, lesson.text_batch(8, bugs.CONTEXT), loss=next_byte_loss, **lesson.GRID)
factories = {fault.name: fault.build for fault in others}
of_others = coordcheck.check(factories, lesson.points(64), loss=F.cross_entropy, **lesson.GRID)
found = pd.concat([wild.compared(report, language), wild.compared(of_others, others)], ignore_index=True)
lesson.table(wild.as_told(found), "found_in_the_wild")

# %%
# What each check sees of mamba.py: the outputs of its modules, and the product that is no output of any.

DT, layers = "block.dt.weight", ["embedding", "block.narrow", "block", "readout"]
columns = ["label", "quantity", "step", "layer"]
values = report.measurements.pivot_table(index="width", columns=columns, values="value")
gains = {
    name: values[label, "output", 0, DT] / values[label, "input", 0, DT]
    for name, label in {"with init × √m": "mended", "as it is": mamba.name}.items()
}
figure, (left, middle, right) = lesson.subplots(1, 3, height=2.6, width_ratios=(1, 1, 1.5))
looks = dict.fromkeys(("o-", "s-", "^-", "D--"), lesson.BLUE)
lesson.curves(left, values[mamba.name, "activation", 4][layers], looks, title="mamba.py: outputs, t = 4")
middle.plot(mamba.by_hand(DT), color="0.85", linewidth=6, label="by hand")
looks = {"s--": lesson.RED, "o-": lesson.RED}
lesson.curves(middle, pd.DataFrame(gains), looks, title="mamba.py: gain of dt", xticks=wild.WIDTHS)
for axis in (left, middle):
    axis.set(xlabel="width n", ylim=(1 / 9, 1.4))
    axis.legend(loc="center left" if axis is left else "lower left", handlelength=2.5)
wild.draw(right, found)
figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
lesson.save(figure, "found_in_the_wild")

# %%
# The lesson: the diagnosis names what is wrong in all eight, and by as much as it is by hand; of some, the plain check
# sees nothing.

missed = [fault.name for fault in language if not bugs.plain(report, fault).flagged]
print("the plain check flags nothing in:", *missed)
assert "alxndrTL/mamba.py" in missed, "the plain check sees the fault"
assert "mended" not in set(report.culprits["label"]), "the remedy does not mend it"
assert (found["by hand"] - found["diagnosis"]).abs().max() < 0.1, "the diagnosis is not what is measured by hand"
assert not bugs.wrong(report, language) + bugs.wrong(of_others, others), "it does not name what is wrong"
