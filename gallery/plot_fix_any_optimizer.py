"""µP for an optimizer nobody wrote rules for
============================================

Tables of µP tell what SGD and Adam need. Other optimizers move a matrix by a share of its own size: LAMB (You et al.
2020, `arXiv:1904.00962 <https://arxiv.org/abs/1904.00962>`_) and Adafactor (Shazeer & Stern 2018,
`arXiv:1804.04235 <https://arxiv.org/abs/1804.04235>`_). Entries of a hidden matrix are 1/√n, those of its update as
well, and a sum of n of them grows as √n: the learning rate has to fall as 1/√n, where Adam's falls as 1/n. The readout
of µP starts at 1/n, and one learning rate serves every width. `coordcheck.fix` knows none of this: it measures how far
each update moves what it acts on.

What to see: exponents of each matrix's own first update over its input. Bars are theory, markers are measured. With
PyTorch's initialisation and one learning rate, the hidden matrix and the readout learn √n too fast; after `fix` all
three lie on 0. The table holds its rules. The readout takes a second round: a multiplier of 1/√m stands for initial
values and learning rate as under Adam, and an update that is a share of the matrix has shrunk with it already.
"""

from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.models import mlp

# %%
# LAMB: Adam's direction, as long as a share of the matrix.


class LAMB(torch.optim.Optimizer):
    """Without weight decay, and without the bounds on the share."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-12):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                mean, square = state.setdefault("moments", (torch.zeros_like(p), torch.zeros_like(p)))
                state["steps"] = steps = state.get("steps", 0) + 1
                mean.lerp_(p.grad, 1 - one)
                square.lerp_(p.grad**2, 1 - two)
                update = mean / (1 - one**steps) / ((square / (1 - two**steps)).sqrt() + group["eps"])
                p -= group["lr"] * p.norm() / update.norm() * update


def build(optimizer, width):
    """PyTorch's initialisation, and one learning rate."""
    model, _ = mlp("SP", biases=False)(width)
    return model, optimizer(model.parameters(), lr=0.02)


optimizers = {"LAMB": LAMB, "Adafactor": partial(torch.optim.Adafactor, weight_decay=0)}
batch, names = lesson.points(4), ["input", "hidden.1", "readout"]
grid = lesson.GRID | {"probe": batch}
builds = {name: partial(build, made) for name, made in optimizers.items()}
fixes = {name: coordcheck.fix(made, batch, loss=F.cross_entropy, **grid) for name, made in builds.items()}

# %%
# The lesson: what was measured is the theory, and the rules are not Adam's.

theory = {"{}, one learning rate": (0, 0.5, 0.5), "{}, after fix": (0, 0, 0)}
rows = {text.format(name): slopes for name in fixes for text, slopes in theory.items()}
theory = pd.DataFrame(rows, index=names).T
factories = {f"{name}, one learning rate": made for name, made in builds.items()}
factories |= {f"{name}, after fix": fix.build for name, fix in fixes.items()}
report = coordcheck.diagnose(factories, batch, loss=F.cross_entropy, **grid | {"seeds": [7, 8]})
measured = lesson.over_input(report, "own_update", theory)
figure, axis = lesson.subplots(height=1.9, width=4.6)
lesson.beside_theory(axis, theory, measured, title="first own update over input")
figure.legend(loc="outside right center")
lesson.save(figure, "fix_any_optimizer")
rules = pd.concat([fix.rules.assign(optimizer=name) for name, fix in fixes.items()])
powers = rules[["optimizer", "glob", "init", "lr", "multiplier", "round"]].drop_duplicates()
lesson.table(powers, "fix_any_optimizer")
assert float((measured - theory).abs().max().max()) < 0.15, "an exponent is not that of theory"
assert (rules.loc[rules["role"] == "hidden", "lr"] == -0.5).all(), "a hidden matrix needs another rate"
assert not any(fix.exit_code for fix in fixes.values()), "a rule is missing"
