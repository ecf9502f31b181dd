"""After fix, the best learning rate stays where it is
====================================================

Three models as people write them, in PyTorch's or their library's initialisation and with one learning rate: a decoder,
GPT-2 of ``transformers`` with its tied readout, and a convolutional net. `coordcheck.fix` brings each to µP from
outside of its code, in seconds. Whether that is worth anything is told by training: the learning rate of least loss
falls with the width before, and stays after (the experiment of figure 1 of Yang et al. 2022,
`arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_).

What to see: final loss on held-out data against the learning rate, a line per width, the range of the seeds, and the
optimum with its 95 % interval; a row per model, left as it came, right with the rules of its fix. Above each panel, how
many octaves the optimum moves when the width doubles.
"""

from functools import partial

import coordcheck
import lesson
import plain
from coordcheck.checks.demo import next_byte_loss
from coordcheck.reporting.figures.transfer import name_widths, panel

WIDTHS, STEPS = ((32, 64, 128), 60) if lesson.FULL else ((32, 128), 20)


def batches(make, seed):
    """A batch per update."""
    return (make(seed=1000 * seed + step) for step in range(STEPS + 1))


# %%
# What they are trained on: text, and images whose classes a random network gives; held out are other pieces of it.

models = {
    "decoder": (plain.decoder, plain.pieces, next_byte_loss, {"validation": True}),
    "GPT-2": (plain.gpt2, plain.text, None, {"validation": True}),
    "convolutions": (plain.convolutions, plain.images, lesson.class_loss, {}),
}
powers = {"decoder": range(-10, -3), "GPT-2": range(-11, -4), "convolutions": range(-11, -4)}  # of learning rates
seeds = {"decoder": 3, "GPT-2": 3, "convolutions": 6}  # its classes are harder to tell

# %%
# Fix each of them at its widths from 64 on, and train it with every learning rate, before and after.

fixes, sweeps = {}, {}
for name, (build, make, loss, where) in models.items():
    held_out = [make(seed=-1 - index, **where) for index in range(4 if lesson.FULL else 1)]
    fixes[name] = coordcheck.fix(build, make(seed=0), loss=loss, base_width=32, widths=lesson.GRID["widths"])
    grid = {"lrs": [2.0**power for power in powers[name]], "widths": WIDTHS, "seeds": seeds[name]}
    grid |= {} if lesson.FULL else {"lrs": grid["lrs"][:: 3 if lesson.QUICK else 2], "seeds": 1}
    sweeps[name] = fixes[name].transfer(partial(batches, make), evaluate=held_out, steps=STEPS, **grid)
    print(name, fixes[name], sweeps[name], sep="\n")

# %%
# The lesson: before, every optimum falls; after, none moves.

figure, axes = lesson.subplots(3, 2, height=6.2, width=4.6, sharex=True, sharey="row")
shift = {}
for row, (name, sweep) in zip(axes, sweeps.items(), strict=True):
    for axis, label in zip(row, ("before", "after"), strict=True):
        found = [table[table["label"] == label] for table in (sweep.losses, sweep.optima, sweep.shift)]
        panel(axis, *found, sweep.losses["loss"].dropna())
        axis.set_title(f"{name}, {label}", loc="left", fontweight="bold", fontsize=8.5, pad=12)
        shift[name, label] = found[2].iloc[0]
    row[0].set_ylabel("final loss")
    name_widths(row[1])
for axis in axes[-1]:
    axis.set_xlabel("log2 learning rate")
lesson.save(figure, "fix_transfer")
assert not any(fix.exit_code for fix in fixes.values()), "a model is not in µP after its fix"
for name in models if lesson.FULL else ():
    before, after = shift[name, "before"], shift[name, "after"]
    assert before["high"] < 0, f"the optimum of {name} does not move before"
    assert after["low"] < 0 < after["high"], f"the optimum of {name} moves after"
    assert abs(after["shift"]) <= 0.3, f"the optimum of {name} moves after"
