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

import torch

import bugs
import lesson
from coordcheck.models import Transformer, TransformerConfig, parametrization
from coordcheck.models.builders import initialise, make_optimizer

# %%
# A rule is broken in one row of the table: its initialisation or its learning rate gets a power of m = width / 64 more.

MUP = parametrization("transformer", "µP", "adam")


def broken(role, *, init=0.0, lr=0.0, attention=0.0):
    """A factory in which one role breaks its rule."""
    rules = {name: rule._replace(lr=rule.lr + lr * (name == role)) for name, rule in MUP.rules.items()}

    def build(width):
        """The broken model with its optimizer."""
        m, model = width / bugs.BASE, Transformer(width, TransformerConfig(context=bugs.CONTEXT, depth=1), MUP)
        initialise(model, MUP, zero_init=())
        with torch.no_grad():
            for parameter in (one for one, its_role in model.roles() if its_role == role):
                parameter.mul_(m**init)
        model.blocks[0].attention.scale *= m**attention
        return model, make_optimizer(model, MUP._replace(rules=rules), optimizer="adam", lr=2e-3, scale=m)

    return build


# %%
# What libraries do: one learning rate and one standard deviation for all matrices. The embedding, which may have both,
# is scaled like a hidden matrix instead, and the unembedding is drawn like one.

ROWS = {  # role in the table: its symbol, its parameters, the power of m that breaks init and learning rate
    "embedding": ("W_E", ("embedding.weight", "positions.weight"), -0.5, -1.0),
    "query": ("W_Q", ("*.query.weight",), 0.5, 1.0),
    "key": ("W_K", ("*.key.weight",), 0.5, 1.0),
    "value": ("W_V", ("*.value.weight",), 0.5, 1.0),
    "attention output": ("W_O", ("*.output.weight",), 0.5, 1.0),
    "mlp in": ("W_FI", ("*.up.weight",), 0.5, 1.0),
    "mlp out": ("W_FO", ("*.down.weight",), 0.5, 1.0),
    "unembedding": ("W_U", ("unembedding.weight",), 0.5, 1.0),
}


def fault(symbol, what, power, role, globs):
    """One entry of the table, broken."""
    rule = f"n^{getattr(MUP.rules[role], what) or 0:g}"
    name, change = f"{symbol} {role}: {what}", f"{rule} became n^{getattr(MUP.rules[role], what) + power:g}"
    return bugs.Bug(name, change, broken(role, **{what: power}), dict.fromkeys(globs, (what, -power)))


inits = [fault(symbol, "init", init, role, globs) for role, (symbol, globs, init, _) in ROWS.items()]
rates = [fault(symbol, "lr", lr, role, globs) for role, (symbol, globs, _, lr) in ROWS.items()]
scale = {"*/sdpa": ("attention scale", -0.5)}
inits.append(bugs.Bug("attention logits: scale", "1/D became 1/√D", broken("", attention=0.5), scale))
rates.append(fault("g", "lr", -1.0, "gain", ("*norm.weight",)))

# %%
# Eighteen checks, and a nineteenth of the model that keeps every rule.

widths, seeds = ((64, 128, 256, 512), 3) if lesson.FULL else ((64, 128, 256), 1)
report = bugs.check(inits + rates, widths=widths, seeds=seeds)
control = bugs.check([bugs.Bug("every rule kept", "", broken(""))], widths=widths, seeds=3)
lesson.save(bugs.page(report, inits + rates, row=1.4), "rules_broken")
lesson.table(bugs.summary(report, inits + rates, remedy=True), "rules_broken")
print(control)

# %%
# The lesson: of every broken rule, the diagnosis names its parameters alone, with the power of the width that mends it.

missed = [bug.name for bug in inits + rates if not bugs.plain(report, bug).flagged]
print(f"the plain check misses {len(missed)} of {len(inits + rates)}:", *missed, sep="\n  ")
assert len(missed) >= 5, "the plain check has become better than the page says"
assert control.exit_code == 0, "the model that keeps every rule does not pass"
assert not bugs.wrong(report, inits + rates), "the diagnosis does not name exactly what is broken"
