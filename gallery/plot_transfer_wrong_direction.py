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

PROXY, ALPHA, WINDOW = 32, 2.0**-5, 8
WIDE, STEPS = (256, 120) if lesson.FULL else (128, 24)
right = transformer("µP", lr=ALPHA, grows="heads", head_size=16, gains=False, base_width=PROXY)  # α P / M


def wrong(width):
    """The same model, with α M / P where there should be α P / M."""
    model, optimizer = right(width)
    for group in optimizer.param_groups:
        group["lr"] = ALPHA**2 / group["lr"]
    return model, optimizer


# %%
# The check that finds it: one update, three small widths. The lesson: it knows who learns too fast, and by how much.

factories = {"α P / M": right, "α M / P": wrong}
found = coordcheck.diagnose(factories, lesson.text_batch(8), loss=next_byte_loss, widths=(32, 64, 128))
print(found)
matrices = found.parameters[found.parameters["role"].isin(["hidden", "readout"])].set_index("label")
blamed = matrices[matrices["culprit"].astype(bool)]
assert blamed["parameter"].tolist() == matrices.loc["α M / P", "parameter"].tolist(), "the check blames others"
assert set(blamed.index) == {"α M / P"}, "the check blames what is right"
assert (blamed["exponent"] == -2).all(), "the check does not give the power that mends it"

# %%
# Trained, the wide model is no worse than its proxy if it is scaled the right way, and upside down it fails.

figure, (left, side) = lesson.subplots(1, 2, height=2.6, width_ratios=(1.15, 1))
dashed, ends = (0, (3, 1.5)), {}
kinds = [("proxy, P = 32", right, PROXY, lesson.BLACK, dashed), (f"M = {WIDE}, α P / M", right, WIDE, lesson.BLUE, "-")]
for name, build, width, colour, style in [*kinds, (f"M = {WIDE}, α M / P", wrong, WIDE, lesson.RED, "-")]:
    batches = (lesson.text_batch(16, seed=step) for step in range(STEPS))
    curve = pd.Series(lesson.train(build, width, batches, loss=next_byte_loss)[1]).rolling(WINDOW, min_periods=1).mean()
    left.plot(curve, color=colour, linestyle=style, label=name)
    ends[name] = curve.iloc[-1]
left.set(xlabel="update", ylabel=f"training loss (mean of {WINDOW})", title="Training", ylim=(2.4, 6.6))
left.legend(loc="upper right")
for label, colour, marker in (("α P / M", lesson.BLUE, "o"), ("α M / P", lesson.RED, "D")):
    rows = matrices.loc[label].reset_index()
    side.plot(rows["response"] - rows["response_target"], rows.index, marker, color=colour, label=label)
side.set_yticks(rows.index, rows["parameter"].str.removesuffix(".weight"), fontsize=6)
side.invert_yaxis()
side.set(xlim=(-0.5, 2.6), xlabel="exponent of the width, less its target", title="Response to one update")
side.legend(loc="center")
lesson.save(figure, "transfer_wrong_direction")
proxy, good, bad = ends.values()
assert good < proxy + 0.05, "the proxy's learning rate does not serve the wide model"
assert bad > good + 0.2, "upside down does no harm at this size"
