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

The first four are about µP, or optimizers that are built for it. The others claim no µP: what falls with the width
there is no fault at the width that they were tuned at, and becomes one when they are made wider.
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
lesson.save(wild.draw(report, found), "found_in_the_wild")

# %%
# The lesson: the diagnosis names what is wrong in all eight, and by as much as it is by hand; of some, the plain check
# sees nothing.

assert not bugs.plain(report, mamba).flagged, "the plain check sees the fault"
assert "mended" not in set(report.culprits["label"]), "the remedy does not mend it"
assert (found["by hand"] - found["diagnosis"]).abs().max() < 0.1, "the diagnosis is not what is measured by hand"
assert not bugs.wrong(report, language) + bugs.wrong(of_others, others), "it does not name what is wrong"
