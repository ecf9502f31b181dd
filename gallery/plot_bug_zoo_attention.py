"""Bug zoo: the scale of attention logits
=========================================

The logits of attention are divided by √D in the standard parametrization, D being the size of a head, and by D in µP,
because training aligns queries with keys (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_,
definition 4.1). Five reports of code that lost that scale, or applied it twice: the diagnosis reads the scale and the
head size of every call, fused or not, and says which power of m = width / 64 is missing.

What to see: a line is a layer after four updates, dashed are the attention logits. With random queries and keys they
fall as 1/√D in µP (first row), so that where they are flat (second row), they are too large. No layer shows it, and
the plain coordinate check flags nothing: what attention gives is an average, whatever its logits are. In OPT it accuses
the queries, which only carry the scale. The second figure is of SP, where flat logits are right (``expect="sp"``), and
heavy lines only say that SP blows up, as its healthy model does. With more heads of one size all five were constants.
"""

from functools import partial

import pandas as pd

import bugs
import lesson
from broken import Eager, attention
from bugs import Bug

# %%
# A Transformer with four heads that grow, logits times D to a power; and the power of m that this scale then lacks.

mup, sp = partial(attention, "µP"), partial(attention, "SP")
large, small = {"*attention/*": ("attention scale", -0.5)}, {"*attention/*": ("attention scale", 0.5)}
in_mup = bugs.zoo(
    Bug("healthy: fused", "", mup(-1)),
    Bug("healthy: eager", "", mup(-1, kind=Eager)),
    Bug("healthy: OPT's two scales", "1/√D · 1/√D", mup(None, twice=True)),
    Bug("gmboquet/mixle/pull/258", "1/√D was never switched to 1/D", mup(-0.5, kind=Eager), large),
    Bug("huggingface/transformers/pull/44397", "GPT-2: fused attention ignores the scale", mup(None), large),
    Bug("huggingface/pytorch-image-models/issues/2280", "ViT: the same", mup(None), large),
)
in_sp = bugs.zoo(
    Bug("healthy: SP", "", sp(None)),
    Bug("mlc-ai/mlc-llm/pull/3426", "a fallback has no scale at all", sp(0, kind=Eager), large),
    Bug("huggingface/transformers/pull/38290", "OPT: scaled by two", sp(None, twice=True), small),
)

# %%
report, report_of_sp = bugs.check(in_mup, **lesson.GRID), bugs.check(in_sp, expect="sp", **lesson.GRID)
lesson.save(bugs.page(report, in_mup, "logits"), "bug_zoo_attention")
lesson.save(bugs.page(report_of_sp, in_sp, "logits"), "bug_zoo_attention_sp")
lesson.table(pd.concat([bugs.summary(report, in_mup), bugs.summary(report_of_sp, in_sp)]), "bug_zoo_attention")
assert not bugs.wrong(report, in_mup) + bugs.wrong(report_of_sp, in_sp), "the diagnosis does not say what the bugs are"
