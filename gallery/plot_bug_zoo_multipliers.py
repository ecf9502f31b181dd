"""Bug zoo: initialisation and multipliers
=========================================

What µP asks of the forward pass is an initialisation and a multiplier per matrix (Yang et al. 2022,
`arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, tables 3 and 8). Five bugs, as they were reported: all of it was
never switched on, it had m instead of √m, stood in every layer, grew a shared matrix, or was dropped by a faster code
path. The diagnosis tells an initialisation from a multiplier, which scales the updates, too. m is width / 64.

What to see: a line is a layer after four updates, with markers where its matrix is to blame; heavy lines are those that
the plain coordinate check flags, which is good at this kind of bug. But for the first: of the model that had never been
in µP, less than half of what is to blame is flagged. The last two panels are bugs, too, and nothing is to be seen of
them: a warm-up from a rate of zero, which a check of one update notices, and keys too large at every width by a factor.

What gpt-neox's `users had reported <https://github.com/EleutherAI/gpt-neox/issues/956>`_ was a picture of µP no flatter
than that of SP: two labels with identical numbers, as here, are told in a note.
"""

import broken
import bugs
import lesson
from broken import changed
from bugs import Bug

# %%
# A Transformer of one block, changed once it is built; and what of it is to blame: of the last two, nothing.

small, lost = (dict.fromkeys(broken.MATRICES, why) for why in (("init", 0.5), ("multiplier", 1.0)))
sp = dict.fromkeys(broken.MATRICES, ("lr", -1.0))
sp |= {"unembedding.weight": ("init", -0.5), "*/sdpa": ("attention scale", -0.5)}
shared, unshared = {"embedding.weight": ("init", -0.5)}, {"embedding.weight@*": ("multiplier", -1.0)}
neox, from_zero, dropped = "EleutherAI/gpt-neox/pull", changed(broken.from_zero), changed(broken.dropped, tied=True)
zoo = bugs.zoo(
    Bug("healthy: µP", "", changed()),
    Bug("healthy: tied", "", changed(tied=True)),
    Bug(f"{neox}/1061", "built with use_mup=False", changed(name="SP"), sp),
    Bug(f"{neox}/1087 (init)", "divided by m, not by √m", changed(broken.divided_by_m), small),
    Bug(f"{neox}/1087 (multiplier)", "that of the logits in every layer", changed(broken.in_every_layer), lost),
    Bug("microsoft/mup/issues/55", "the readout rescales a shared matrix", changed(broken.rescaled, tied=True), shared),
    Bug("linkedin/Liger-Kernel/pull/1477", "a fused loss drops the multiplier", dropped, unshared),
    Bug(f"{neox}/1379", "warm-up from a rate of zero", from_zero),
    Bug("ml-explore/mlx-lm/pull/1622", "keys 32 times too large", changed(broken.large_keys)),
)

# %%
report = bugs.check(zoo, widths=lesson.GRID["widths"])
lesson.save(bugs.page(report, zoo), "bug_zoo_multipliers")
lesson.table(bugs.summary(report, zoo), "bug_zoo_multipliers")
both = [Bug(f"use_mup={asked}", "", changed(name="SP")) for asked in (False, True)]
assert any(
    "identical numbers" in note for note in bugs.check(both, widths=lesson.GRID["widths"], seeds=1, probe=None).notes
), "untold"
assert not bugs.wrong(report, zoo), "the diagnosis does not say what the bugs are"
