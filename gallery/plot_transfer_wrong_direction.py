"""The learning rate of a wide model: times P / M, not M / P
=========================================================

Tune the learning rate α of a µP Transformer on a proxy of width P, give the hidden and readout matrices of the model of
width M the learning rate α P / M, and its loss follows the proxy's down from the first step, as in Yang et al. 2022,
`arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_. A published guide prints the factor upside down, α M / P. That
is a fault of the power -2 of the width, and no training run is needed to find it.

What to see: left, the wide model with α P / M learns like its proxy, and a little better; with α M / P it leaves the
picture at once. Right, after one update on a few examples: the exponent of every matrix's own update, less what it
should be. Upside down each learns too fast by the power 2, and the remedy is the power -2.
"""

import pandas as pd

import coordcheck
import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import transformer

PROXY, ALPHA = 32, 2.0**-5
WIDE, STEPS, WINDOW = (256, 120, 8) if lesson.FULL else (128, 24, 8)
SHAPE = {"grows": "heads", "head_size": 16, "gains": False, "base_width": PROXY}


def right(width):
    """The reference µP Transformer: α P / M."""
    return transformer("µP", lr=ALPHA, **SHAPE)(width)


def wrong(width):
    """The same model, with α M / P where there should be α P / M."""
    model, optimizer = right(width)
    for group in optimizer.param_groups:
        group["lr"] = ALPHA**2 / group["lr"]
    return model, optimizer


def train(build, width):
    """The loss of every batch before its update, as a running mean."""
    batches = (lesson.text_batch(16, seed=step) for step in range(STEPS))
    _, losses = lesson.train(build, width, batches, loss=next_byte_loss)
    return pd.Series(losses).rolling(WINDOW, min_periods=1).mean()


# %%
# Train the proxy, and the wide model with either factor.

kinds = {
    f"proxy, P = {PROXY}": (right, PROXY, lesson.BLACK, (0, (3, 1.5))),
    f"M = {WIDE}, α P / M": (right, WIDE, lesson.BLUE, "-"),
    f"M = {WIDE}, α M / P": (wrong, WIDE, lesson.RED, "-"),
}
curves = {name: train(build, width) for name, (build, width, _, _) in kinds.items()}

# %%
# The check that finds it: one update, three small widths.

batch, widths = lesson.text_batch(8), (32, 64, 128)
found = coordcheck.diagnose({"α P / M": right, "α M / P": wrong}, batch, loss=next_byte_loss, widths=widths)
print(found)

# %%
# The losses, and the exponent of what each matrix's own update does to its output.

figure, (left, right_panel) = lesson.subplots(1, 2, height=2.6, width_ratios=(1.15, 1))
for name, (_, _, colour, style) in kinds.items():
    left.plot(curves[name], color=colour, linestyle=style, label=name)
left.set(xlabel="update", ylabel=f"training loss (mean of {WINDOW})", title="Training", ylim=(2.4, 6.6))
left.legend(loc="upper right")
matrices = found.parameters[found.parameters["role"].isin(["hidden", "readout"])]
for label, colour, marker in (("α P / M", lesson.BLUE, "o"), ("α M / P", lesson.RED, "D")):
    rows = matrices[matrices["label"] == label].reset_index()
    right_panel.plot(rows["response"] - rows["response_target"], rows.index, marker, color=colour, label=label)
right_panel.set_yticks(rows.index, rows["parameter"].str.removesuffix(".weight"), fontsize=6)
right_panel.invert_yaxis()
right_panel.set(xlim=(-0.5, 2.6), xlabel="exponent of the width, less its target", title="Response to one update")
right_panel.legend(loc="center")
lesson.save(figure, "transfer_wrong_direction")

# %%
# The lesson: scaled the right way the wide model is no worse than its proxy; upside down it fails, and the check knows.

proxy, good, bad = (curve.iloc[-1] for curve in curves.values())
print(*(f"{name}: {curve.iloc[-1]:.3f}" for name, curve in curves.items()), sep="\n")
assert good < proxy + 0.05, "the proxy's learning rate does not serve the wide model"
assert bad > good + 0.2, "upside down does no harm at this size"
blamed = found.culprits[found.culprits["role"].isin(["hidden", "readout"])]
assert blamed["label"].tolist() == ["α M / P"] * len(rows), "the check blames others"
assert (blamed["exponent"] == -2).all(), "the check does not give the power that mends it"
