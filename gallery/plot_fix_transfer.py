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

import torch
from torch import nn
from transformers import GPT2Config

import coordcheck
import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import transformer
from coordcheck.reporting.figures.transfer import name_widths, panel

WIDTHS, SEEDS, STEPS = ((32, 64, 128, 256), 3, 60) if lesson.FULL else ((32, 128), 1, 20)
POWERS = range(-10, -1) if lesson.FULL else range(-10, -1, 4 if lesson.QUICK else 2)

# %%
# The models, and what they are trained on: text, and images whose classes a random network gives.


def convolutions(width):
    """Two convolutions of images of 8 x 8 and a readout of their mean."""
    first, second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, stride=2, padding=1)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), first, nn.ReLU(), second, nn.ReLU(), nn.AvgPool2d(2))
    model.extend([nn.Flatten(), nn.Linear(4 * width, 10)])
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def text(seed, sequences=16, **where):
    """Bytes as GPT-2 takes them."""
    tokens = lesson.text_batch(sequences, seed=seed, **where)[:, :-1]
    return {"input_ids": tokens, "labels": tokens}


def batches(make, seed):
    """A batch per update."""
    return (make(seed=1000 * seed + step) for step in range(STEPS + 1))


def held_out(make, **where):
    """Batches to evaluate on."""
    return [make(seed=-1 - index, **where) for index in range(4 if lesson.FULL else 1)]


sizes = {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
gpt2 = GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, loss_type="ForCausalLM")
pieces, images = partial(lesson.text_batch, 16), partial(lesson.taught, examples=64)
decoder = transformer("SP", grows="heads", head_size=16, base_width=32, context=32, depth=2)
models = {
    "decoder": (decoder, pieces, next_byte_loss, held_out(pieces, validation=True)),
    "GPT-2": (coordcheck.huggingface(gpt2), text, None, held_out(text, validation=True)),
    "convolutions": (convolutions, images, lesson.class_loss, held_out(images)),
}

# %%
# Fix each of them at its widths from 64 on, and train it with every learning rate, before and after.

fixes, sweeps, rates = {}, {}, [2.0**power for power in POWERS]
for name, (build, make, loss, evaluate) in models.items():
    fixes[name] = coordcheck.fix(build, make(seed=0), loss=loss, base_width=WIDTHS[0], widths=lesson.GRID["widths"])
    options = {"lrs": rates, "widths": WIDTHS, "seeds": SEEDS, "steps": STEPS, "evaluate": evaluate}
    sweeps[name] = fixes[name].transfer(partial(batches, make), **options)
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
if lesson.FULL:
    assert all(shift[name, "before"]["high"] < 0 for name in models), "an optimum does not move before"
    assert all(shift[name, "after"]["low"] < 0 < shift[name, "after"]["high"] for name in models), "one moves after"
    assert all(abs(shift[name, "after"]["shift"]) <= 0.3 for name in models), "one moves after"
