"""Bug zoo: initialisation and multipliers
=========================================

What µP asks of the forward pass is an initialisation and a multiplier per matrix (Yang et al. 2022,
`arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, tables 3 and 8). Five bugs, as they were reported: all of it was
never switched on, it had m instead of √m, stood in every layer, grew a shared matrix, or was dropped by a faster code
path. The diagnosis tells an initialisation from a multiplier, because a multiplier scales the updates, too.

What to see: a line is a layer after four updates, with markers where its matrix is to blame; heavy lines are those that
the plain coordinate check flags, which is good at this kind of bug. But for the first: of the model that had never been
in µP, less than half of what is to blame is flagged. The last two panels are bugs, too, and nothing is to be seen of
them. m is width / 64.

What a width check does not see: gpt-neox's warm-up began at a learning rate of zero, so that the first update changed
nothing. The check gets past it, and one of a single update says that nothing moved. And mlx-lm's keys were 32 times too
large, the same at every width. What gpt-neox's `users had reported
<https://github.com/EleutherAI/gpt-neox/issues/956>`_ was a picture of µP no flatter than that of SP: two labels with
identical numbers, as here, are told in a note.
"""

from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR

import bugs
import lesson
from bugs import Bug
from coordcheck.models import transformer

# %%
# A Transformer of one block, in µP unless its name says otherwise; a bug changes it once it is built.


@torch.no_grad()
def build(change, width, name="µP", tied=False):
    """The model with its optimizer; `change` is a function of (model, optimizer, m = width / 64)."""
    model, optimizer = transformer(name, "adam", lr=bugs.RATE, context=bugs.CONTEXT, depth=1, tied=tied)(width)
    change(model, optimizer, width / bugs.BASE)
    return model, optimizer


def divided_by_m(model, optimizer, m):
    """An initial standard deviation that has m where √m belongs."""
    for matrix in (p for p in model.blocks.parameters() if p.dim() == 2):
        matrix.mul_(m**-0.5)


def in_every_layer(model, optimizer, m):
    """The multiplier of the logits in every linear layer."""
    for layer in (layer for layer in model.blocks.modules() if isinstance(layer, torch.nn.Linear)):
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] / m,))


def rescaled(model, optimizer, m):
    """A readout that rescales its matrix, which is the embedding's."""
    model.embedding.weight.mul_(m**0.5)


def dropped(model, optimizer, m):
    """A fused loss that knows of no multiplier."""
    model.readout_multiplier *= m


def from_zero(model, optimizer, m):
    """A warm-up of two updates, the first at a learning rate of zero."""
    warm_up = LambdaLR(optimizer, lambda step: min(1.0, step / 2))
    optimizer.register_step_post_hook(lambda *_: warm_up.step())


def large_keys(model, optimizer, m):
    """Keys that are too large, by a constant."""
    model.blocks[0].attention.key.register_forward_hook(lambda module, inputs, output: 32 * output)


# %%
# What the diagnosis must say: the initialisation, the multiplier, or in SP everything that µP changes. Of the last two
# bugs it says nothing.

slow, small, lost = (dict.fromkeys(bugs.MATRICES, why) for why in (("lr", -1.0), ("init", 0.5), ("multiplier", 1.0)))
sp = slow | {"unembedding.weight": ("init", -0.5), "*/sdpa": ("attention scale", -0.5)}
shared, unshared = {"embedding.weight": ("init", -0.5)}, {"embedding.weight@*": ("multiplier", -1.0)}
make = partial(partial, build)
zoo = [
    Bug("healthy: µP", "", make(lambda *_: None)),
    Bug("healthy: tied", "", make(lambda *_: None, tied=True)),
    Bug("EleutherAI/gpt-neox/pull/1061", "built with use_mup=False", make(lambda *_: None, name="SP"), sp),
    Bug("EleutherAI/gpt-neox/pull/1087 (init)", "divided by m, not by √m", make(divided_by_m), small),
    Bug("EleutherAI/gpt-neox/pull/1087 (multiplier)", "that of the logits in every layer", make(in_every_layer), lost),
    Bug("microsoft/mup/issues/55", "the readout rescales a shared matrix", make(rescaled, tied=True), shared),
    Bug("linkedin/Liger-Kernel/pull/1477", "a fused loss drops the multiplier", make(dropped, tied=True), unshared),
    Bug("EleutherAI/gpt-neox/pull/1379", "warm-up from a rate of zero", make(from_zero)),
    Bug("ml-explore/mlx-lm/pull/1622", "keys 32 times too large", make(large_keys)),
]

# %%
# Two more checks: of one update after that warm-up, and of the model that never was in µP beside the one in SP.

report = bugs.check(zoo, widths=lesson.GRID["widths"])
lesson.save(bugs.page(report, zoo), "bug_zoo_multipliers")
lesson.table(bugs.summary(report, zoo), "bug_zoo_multipliers")
print(bugs.check([Bug("one update", "", make(from_zero))], widths=(64, 128, 256), steps=1, probe=None))
both = [Bug(f"use_mup={asked}", "", make(lambda *_: None, name="SP")) for asked in (False, True)]
assert any("identical numbers" in note for note in bugs.check(both, seeds=1).notes), "untold"
assert not bugs.wrong(report, zoo), "the diagnosis does not say what the bugs are"
