"""Found in the wild: faults of eight public repositories
======================================================

The check was run on models of public code, as they are. Here eight of its findings are rebuilt, each in a small model
of our own that is in µP otherwise (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, tables 3
and 8), and measured by hand in plain torch, too. Links lead to the lines that were read; m is width / 64.

What to see: left, mamba.py's matrix of step sizes, which is multiplied without a call of its module. The plain check
sees three layers, and all are level. Middle, what the diagnosis measures: its product with its input falls as 1/√n, by
hand as well, and is level with the remedy that was named. Right, the thirteen parameters of all eight: by how much
each is off, as a power of the width, by hand (bars) and in the diagnosis (circles), and what the plain check shows of
its layer after four updates (crosses; missing where it sees no layer).

The first four are about µP, or optimizers that are built for it. The others claim no µP: that an embedding, a patch or
the input of a small agent falls with the width is no fault at the width that they were tuned for, and becomes one when
they are made wider.
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

columns = ["label", "quantity", "step", "layer"]
values = report.measurements.pivot_table(index="width", columns=columns, values="value")
outputs = values[mamba.name, "activation", 4][["embedding", "hidden", "readout"]]
gains = {
    name: values[label, "output", 0, "dt.weight"] / values[label, "input", 0, "dt.weight"]
    for name, label in {"init × √m, as told": "mended", "as it is": mamba.name}.items()
}
figure, (left, middle, right) = lesson.subplots(1, 3, height=2.5, width_ratios=(1, 1, 1.2))
looks = dict(zip(("o-", "s-", "D-"), lesson.shades(3), strict=True))
lesson.curves(left, outputs, looks, title="mamba.py, plain check", ylabel="RMS of outputs at t = 4")
lesson.curves(middle, pd.DataFrame(gains), {"o-": lesson.GREEN, "s-": lesson.RED}, title="mamba.py, diagnosis")
middle.plot(mamba.by_hand("dt.weight"), "|", color="black", markersize=9, label="by hand")
middle.set_ylabel("RMS(W x) / RMS(x)")
for axis in (left, middle):
    axis.set_xlabel("width n")
    axis.legend()
wild.draw(right, found)
lesson.save(figure, "found_in_the_wild")

# %%
# The lesson: the diagnosis names what is wrong in all eight, and by as much as it is by hand; of some, the plain check
# sees nothing.

missed = [fault.name for fault in language if not bugs.plain(report, fault).flagged]
print("the plain check flags nothing in:", *missed)
assert "alxndrTL/mamba.py" in missed, "the plain check sees the fault"
assert report.status["mended"] == "ok", "the remedy does not mend it"
assert (found["by hand"] - found["diagnosis"]).abs().max() < 0.1, "the diagnosis is not what is measured by hand"
assert not bugs.wrong(report, language) + bugs.wrong(of_others, others), "it does not name what is wrong"
