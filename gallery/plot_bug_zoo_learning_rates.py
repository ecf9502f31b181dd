"""Bug zoo: learning rates overwritten, forgotten, or given to the wrong parameters
===================================================================================

µP is a table of learning rates (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, table 3), and
a scheduler, a wrapper or a list that is one name short undoes it without any error. Eight such bugs, as they were
reported, rebuilt in small models that are in µP otherwise: the diagnosis names every parameter that has the wrong rate,
and by which power of m = width / 64.

What to see: a line is a layer after four updates, with markers where a parameter of it learns at the wrong rate; heavy
lines are those that the plain coordinate check flags. The first row is healthy. Where the head alone is too fast, the
plain check finds it. Where many layers are, it flags few of them, and innocent ones. Where vectors learn ever more
slowly (lm-engine), all lines are flat.

What no width check can see: DeepSpeed's scheduler also gave Muon's own matrices twenty times too small a rate. That is
the same at every width. And dion's pull request took the factor 1/√n out, because training went better without;
what keeps the update of the logits at one scale for all widths is 1/n, so that both are too fast here.
"""

from functools import partial

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import bugs
import coordcheck
import lesson
from bugs import Bug
from coordcheck.models import mlp

# %%
# The healthy models are a Transformer under AdamW, the same with Muon for its hidden matrices, and an MLP under SGD.


def under_sgd(width):
    """An MLP, with a batch and a loss of its own."""
    return coordcheck.Trial(*mlp("µP", "sgd", lr=0.1)(width), batch=lesson.points(64), loss=cross_entropy)


# %%
# Schedulers: one that gives every group the same rate, whatever the group was made with, has been written three times.


def scheduled(width, build, rate):
    """A healthy model, with such a scheduler for each of its optimizers."""
    made = build(width)
    trial = made if isinstance(made, coordcheck.Trial) else coordcheck.Trial(*made)
    optimizers = trial.optimizer if isinstance(trial.optimizer, list) else [trial.optimizer]
    for optimizer in optimizers:
        LambdaLR(optimizer, [lambda step, own=group["lr"]: rate / own for group in optimizer.param_groups])
    return trial


constant_warmup = partial(scheduled, build=bugs.under_adamw, rate=bugs.RATE)
own_scheduler = partial(scheduled, build=under_sgd, rate=0.1)
one_maximum = partial(scheduled, build=bugs.under_muon, rate=1e-3)

# %%
# Wrappers that make groups of their own: the caller's are lost, or Muon finds no matrix and AdamW gets all of them.


def flattened_groups(width):
    """The parameters of the caller's groups, at the two rates of a configuration file."""
    model, (muon, adamw) = bugs.under_muon(width)
    others = [parameter for group in adamw.param_groups for parameter in group["params"]]
    return model, [muon, torch.optim.AdamW(others, lr=bugs.RATE, weight_decay=0.0)]


muon_off = partial(bugs.under_adamw, **dict.fromkeys(bugs.HIDDEN, 0.0))

# %%
# Lists of names: the head is left out, or has the factor of another optimizer, or the vectors are scaled, too.

no_head, lions_head = partial(bugs.under_adamw, unembedding=0.0), partial(bugs.under_adamw, unembedding=-0.5)
all_scaled = partial(bugs.under_adamw, gain=-1.0)

# %%
# What the diagnosis must say: which parameters, and the power of m that their learning rates lack.

hidden = dict.fromkeys(bugs.MATRICES, ("lr", -1.0))
head, half_head = {"unembedding.weight": ("lr", -1.0)}, {"unembedding.weight": ("lr", -0.5)}
gains = {"*norm.weight": ("lr", 1.0)}
in_sgd = dict.fromkeys(("input.*", "hidden.*.bias"), ("lr", 1.0)) | {"readout.weight": ("lr", -1.0)}
zoo = [
    Bug("healthy: AdamW", "", bugs.under_adamw),
    Bug("healthy: SGD", "", under_sgd),
    Bug("healthy: Muon and AdamW", "", bugs.under_muon),
    Bug("huggingface/nanotron/pull/404", "constant warm-up: one rate for all groups", constant_warmup, hidden | head),
    Bug("microsoft/mup/issues/40", "a scheduler of the user's own: one rate", own_scheduler, in_sgd),
    Bug("deepspeedai/DeepSpeed/issues/7713", "WarmupLR: one maximum for Muon and Adam", one_maximum, head),
    Bug("deepspeedai/DeepSpeed/pull/8440", "Muon discards the caller's groups", flattened_groups, head),
    Bug("deepspeedai/DeepSpeed/pull/8438", "Muon is off: hidden matrices are AdamW's", muon_off, hidden),
    Bug("mlfoundations/open_lm/pull/25", "the head is not in the list of scaled layers", no_head, head),
    Bug("microsoft/dion/pull/94", "the head has Lion's factor 1/√n under AdamW", lions_head, half_head),
    Bug("open-lm-engine/lm-engine/pull/515", "a catch-all group scales the vectors, too", all_scaled, gains),
]

# %%
report = bugs.check(zoo, **lesson.GRID)
lesson.save(bugs.page(report, zoo), "bug_zoo_learning_rates")
lesson.table(bugs.summary(report, zoo), "bug_zoo_learning_rates")
assert not bugs.wrong(report, zoo), "the diagnosis does not say what the bugs are"
