"""Bug zoo: the scale of attention logits
=========================================

The logits of attention are divided by √D in the standard parametrization, D being the size of a head, and by D in µP,
because training aligns queries with keys (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_,
definition 4.1). Five reports of code that lost that scale, or applied it twice: the diagnosis reads the scale and the
head size of every call, fused or not, and says which power of m = width / 64 is missing.

What to see: a line is a layer after four updates, dashed are the attention logits. With random queries and keys they
fall as 1/√D in µP (first row), so that where they are flat (second row), they are too large. None of the layers shows
it, and the plain coordinate check flags nothing: what attention gives is an average, whatever its logits are, and a
fused attention shows them to nobody. In OPT it accuses the queries, which only carry the scale. The second figure is of
SP, where flat logits are right (``expect="sp"``), and heavy lines only say that SP blows up, as its healthy model does.

What a width check sees here depends on what grows. At a fixed head size, with more heads, all five are constants, and
invisible. And OPT's scale, applied twice, is 1/√D · 1/√D: a bug in SP, and in µP just what it should be (first row).
"""

from functools import partial

import pandas as pd

import bugs
import lesson
from bugs import Bug
from coordcheck.models import transformer
from coordcheck.models.transformer import Attention

# %%
# A Transformer of one block with four heads, whose size D grows; the scale of its logits is any function of D.


class Eager(Attention):
    """Attention by plain matrix products, with one scale for all that it is given."""

    def forward(self, x):
        """(batch, time, n) -> (batch, time, n)."""
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(-2, -1)) * self.scale
        mixed = scores.where(scores.new_ones(scores.shape[-2:]).tril() > 0, float("-inf")).softmax(-1) @ value
        return self.output(mixed.transpose(1, 2).flatten(-2))


def build(name, scale, width, kind=Attention, twice=False):
    """The model in one parametrization; without a scale, the fused call takes its own: 1/√D."""
    model, optimizer = transformer(name, "adam", lr=bugs.RATE, context=bugs.CONTEXT, depth=1)(width)
    attention = model.blocks[0].attention
    attention.__class__, attention.scale = kind, SCALES[scale](attention.head_size)
    if twice:
        attention.query.register_forward_hook(lambda module, inputs, query: query * attention.head_size**-0.5)
    return model, optimizer


SCALES = {
    "1/D": lambda size: 1 / size,
    "1/√D": lambda size: size**-0.5,
    "1": lambda size: 1.0,
    "none": lambda size: None,
}

# %%
# What the diagnosis must say: the power of m that the scale lacks.

mup, sp = partial(partial, build, "µP"), partial(partial, build, "SP")
large, small = ({"*attention/*": ("attention scale", power)} for power in (-0.5, 0.5))
in_mup = [
    Bug("healthy: fused", "", mup("1/D")),
    Bug("healthy: eager", "", mup("1/D", kind=Eager)),
    Bug("healthy: OPT's two scales", "1/√D · 1/√D", mup("none", twice=True)),
    Bug("gmboquet/mixle/pull/258", "1/√D was never switched to 1/D", mup("1/√D", kind=Eager), large),
    Bug("huggingface/transformers/pull/44397", "GPT-2: fused attention ignores the scale", mup("none"), large),
    Bug("huggingface/pytorch-image-models/issues/2280", "ViT: the same", mup("none"), large),
]
in_sp = [
    Bug("healthy: SP", "", sp("none")),
    Bug("mlc-ai/mlc-llm/pull/3426", "a fallback has no scale at all", sp("1", kind=Eager), large),
    Bug("huggingface/transformers/pull/38290", "OPT: scaled by two", sp("none", twice=True), small),
]

# %%
report, report_of_sp = bugs.check(in_mup, **lesson.GRID), bugs.check(in_sp, expect="sp", **lesson.GRID)
lesson.save(bugs.page(report, in_mup, "logits"), "bug_zoo_attention")
lesson.save(bugs.page(report_of_sp, in_sp, "logits"), "bug_zoo_attention_sp")
both = [bugs.summary(report, in_mup), bugs.summary(report_of_sp, in_sp)]
lesson.table(pd.concat(both), "bug_zoo_attention")
assert not bugs.wrong(report, in_mup) + bugs.wrong(report_of_sp, in_sp), "the diagnosis does not say what the bugs are"
