"""The rules of µP for a Transformer, each broken once
======================================================

Table 1 of Lingle 2024, `arXiv:2404.05728 <https://arxiv.org/abs/2404.05728>`_, gives initialisation and learning rate
under Adam for the eight matrices of a Transformer. Here each of its sixteen entries is replaced by what libraries do
by default, one at a time; with the scale of attention logits and the learning rate of gains these are eighteen faults.
The diagnosis names the broken parameters of all of them, and nothing else; the plain coordinate check misses six, and
accuses innocent layers in five.

What to see: a line is a layer after four updates, and with markers it is one whose rule is broken. Heavy lines are
those that the plain check flags. Above, broken initialisations: most are plain to see, some with innocent layers beside
them. Below, broken learning rates: most lines are flat, because at this learning rate the initialisation still hides
the change. Dashed: attention logits at fault, flat where they should fall; a fused attention hides them from the plain
check. Over each panel: what both checks say, m being width / 64.
"""

import bugs
import lesson
from broken import MUP, rule

# %%
# One learning rate and one standard deviation for all matrices is what libraries do: each has a power of m more.

ROWS = {  # role in the table: its symbol, its parameters
    "embedding": ("W_E", ("embedding.weight", "positions.weight")),  # which may have both: scaled like a hidden matrix
    "query": ("W_Q", ("*.query.weight",)),
    "key": ("W_K", ("*.key.weight",)),
    "value": ("W_V", ("*.value.weight",)),
    "attention output": ("W_O", ("*.output.weight",)),
    "mlp in": ("W_FI", ("*.up.weight",)),
    "mlp out": ("W_FO", ("*.down.weight",)),
    "unembedding": ("W_U", ("unembedding.weight",)),
    "gain": ("g", ("*norm.weight",)),
}


def fault(role, what):
    """One entry of the table, broken."""
    (symbol, globs), own = ROWS[role], getattr(MUP.rules[role], what) or 0
    power = (-1 if role in ("embedding", "gain") else 1) * (0.5 if what == "init" else 1.0)
    told = f"n^{own:g} became n^{own + power:g}"
    return bugs.Bug(f"{symbol} {role}: {what}", told, rule(role, **{what: power}), dict.fromkeys(globs, (what, -power)))


logits = {"*/sdpa": ("attention scale", -0.5)}
scale = bugs.Bug("attention logits: scale", "1/D became 1/√D", rule("", attention=0.5), logits)
matrices = [role for role in ROWS if role != "gain"]
faults = bugs.zoo(*(fault(role, "init") for role in matrices), scale, *(fault(role, "lr") for role in ROWS))

# %%
# The lesson: of every broken rule, the diagnosis names its parameters alone, with the power of the width that mends it.

widths, seeds = ((64, 128, 256, 512), 3) if lesson.FULL else ((64, 128, 256), 1)
report = bugs.check(faults, widths=widths, seeds=seeds)
control = bugs.check([bugs.Bug("every rule kept", "", rule(""))], widths=widths, seeds=3)
lesson.save(bugs.page(report, faults, row=1.4), "rules_broken")
lesson.table(bugs.summary(report, faults, remedy=True), "rules_broken")
missed = [bug.name for bug in faults if not bugs.plain(report, bug).flagged]
assert len(missed) >= (1 if lesson.QUICK else 5), (
    f"the plain check has become better than the page says: it misses {missed}"
)
assert control.exit_code == 0, "the model that keeps every rule does not pass"
assert not bugs.wrong(report, faults), "the diagnosis does not name exactly what is broken"
