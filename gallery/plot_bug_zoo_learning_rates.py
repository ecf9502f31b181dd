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

No check of the width sees that DeepSpeed's Muon also had a twentieth of its rate. And dion took the factor 1/√n out,
because training went better; what keeps the update of the logits level is 1/n, so that both are too fast here.
"""

import broken
import bugs
import lesson
from broken import one_rate, rates
from bugs import Bug

# %%
# Healthy are a Transformer under AdamW, the same with Muon for its hidden matrices, and an MLP under SGD.

hidden, gains = dict.fromkeys(broken.MATRICES, ("lr", -1.0)), {"*norm.weight": ("lr", 1.0)}
head, half_head = {"unembedding.weight": ("lr", -1.0)}, {"unembedding.weight": ("lr", -0.5)}
in_sgd = dict.fromkeys(("input.*", "hidden.*.bias"), ("lr", 1.0)) | {"readout.weight": ("lr", -1.0)}
adamw, sgd, muon, deepspeed = broken.under_adamw, broken.under_sgd, broken.under_muon, "deepspeedai/DeepSpeed"
no_muon, no_head, lions = rates(**dict.fromkeys(broken.HIDDEN, 0.0)), rates(unembedding=0.0), rates(unembedding=-0.5)
zoo = bugs.zoo(
    Bug("healthy: AdamW", "", adamw),
    Bug("healthy: SGD", "", sgd),
    Bug("healthy: Muon and AdamW", "", muon),
    Bug("huggingface/nanotron/pull/404", "constant warm-up: one rate for all groups", one_rate(adamw), hidden | head),
    Bug("microsoft/mup/issues/40", "a scheduler of the user's own: one rate", one_rate(sgd, 0.1), in_sgd),
    Bug(f"{deepspeed}/issues/7713", "WarmupLR: one maximum for Muon and Adam", one_rate(muon, 1e-3), head),
    Bug(f"{deepspeed}/pull/8440", "Muon discards the caller's groups", broken.flattened_groups, head),
    Bug(f"{deepspeed}/pull/8438", "Muon is off: hidden matrices are AdamW's", no_muon, hidden),
    Bug("mlfoundations/open_lm/pull/25", "the head is not in the list of scaled layers", no_head, head),
    Bug("microsoft/dion/pull/94", "the head has Lion's factor 1/√n under AdamW", lions, half_head),
    Bug("open-lm-engine/lm-engine/pull/515", "a catch-all group scales the vectors, too", rates(gain=-1.0), gains),
)

# %%
report = bugs.check(zoo, **lesson.GRID)
lesson.save(bugs.page(report, zoo), "bug_zoo_learning_rates")
lesson.table(bugs.summary(report, zoo), "bug_zoo_learning_rates")
assert not bugs.wrong(report, zoo), "the diagnosis does not say what the bugs are"
