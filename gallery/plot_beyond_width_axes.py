"""Batch size, sequence length, heads: what need not be flat
=========================================================

Along other axes than the width a slope of 0 is not always right, and then the check is a measurement rather than a
verdict. A loss that is summed, not averaged, makes every SGD step as large as the batch; attention averages over more
values in a longer sequence; and attention logits under µP's scale of 1/D fall with the head size D at t = 0, by
design (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_), but not with the number of heads.

What to see: left, how far one step moves the last block, against the batch size: averaged losses shrink a little,
because gradients of different sequences disagree; the summed loss (circles) grows under SGD nearly as the batch, and
Adam (diamonds) does not see it. Middle, at t = 0 against the sequence length: attention's output falls with it as
means of ever more values do (the grey line: if they were independent), the rest is level. Right, attention logits at
t = 0 when the width grows by more heads (circles), or by larger heads with 1/D (squares) and with 1/√D (diamonds),
which the diagnosis objects to: trained logits would grow.
"""

import torch.nn.functional as F

import coordcheck
import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import transformer


def summed(model, tokens):
    """The next byte's cross-entropy, with the mean forgotten."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def trial(loss, optimizer, lr, sequences=8, context=32):
    """The µP Transformer at width 64, with a batch of its own."""
    model, optimizer = transformer("µP", optimizer, lr=lr, context=512)(64)
    return coordcheck.Trial(model, optimizer, batch=lesson.text_batch(sequences, context), loss=loss)


# %%
# A ``Trial`` brings its batch, so that a batch may depend on the number that is checked.

sizes = (2, 8, 32, 128) if lesson.FULL else (2, 8, 32)
batches = {
    "SGD, sum": lambda size: trial(summed, "sgd", 1e-4, sequences=size),
    "SGD, mean": lambda size: trial(next_byte_loss, "sgd", 0.1, sequences=size),
    "Adam, sum": lambda size: trial(summed, "adam", 1e-3, sequences=size),
}
by_batch = coordcheck.check(batches, widths=sizes, axis="batch size", steps=1)
lengths = (8, 32, 128, 512) if lesson.FULL else (8, 32, 128)
longer = {"µP": lambda length: trial(next_byte_loss, "adam", 1e-3, context=length)}
by_length = coordcheck.check(longer, widths=lengths, axis="sequence length", steps=0)

# %%
# Attention logits are recorded by the diagnosis, with the width as the axis.

attention = {"heads": "1/D", "head size, 1/D": "1/D", "head size, 1/√D": "1/sqrt(D)"}
shapes = {name: transformer(grows=name.split(",")[0], attention_scale=scale) for name, scale in attention.items()}
widths = (64, 128, 256, 512) if lesson.FULL else (64, 128, 256)
by_heads = coordcheck.diagnose(shapes, lesson.text_batch(), loss=next_byte_loss, widths=widths)

# %%
# One panel per axis; the grey line is the RMS of means over 1, 2, ..., T independent values.

scales = by_length.measurements.query("quantity == 'activation' and layer.str.startswith('blocks.0.')")
panels = {
    ("change of blocks.1, t = 1", "batch size"): (
        by_batch.measurements.query("layer == 'blocks.1' and quantity == 'change'"),
        list(batches),
    ),
    ("scale, t = 0", "sequence length T"): (
        scales.assign(label=scales["layer"].str.removeprefix("blocks.0.")),
        ["attention.output", "attention.value", "mlp.down"],
    ),
    ("attention logits, t = 0", "width"): (
        by_heads.measurements.query("layer == 'blocks.0.attention/sdpa' and quantity == 'logits' and step == 0"),
        list(shapes),
    ),
}
figure, axes = lesson.subplots(1, 3, height=2.5)
looks, slopes = {"o-": lesson.RED, "s-": lesson.BLUE, "D-": lesson.GREEN}, {}
for axis, ((title, xlabel), (rows, names)) in zip(axes, panels.items(), strict=True):
    means = rows.pivot_table(index="width", columns="label", values="value")[names]
    lesson.curves(axis, means, looks, title=title, xlabel=xlabel)
    slopes |= {name: coordcheck.fit_slope(list(means.index), list(means[name])).slope for name in names}
    axis.set_ylim(bottom=axis.get_ylim()[0] / 2.5)
    axis.legend(loc="lower right" if axis is axes[0] else "lower left")
independent = [(sum(1 / k for k in range(1, length + 1)) / length) ** 0.5 for length in lengths]
axes[1].plot(lengths, independent, color="0.65", linestyle=(0, (4, 2)), zorder=1)
lesson.save(figure, "beyond_width_axes")

# %%
# The lesson: each of these slopes is what the argument above says, and only 1/√D with larger heads is blamed.

print({name: round(slope, 2) for name, slope in slopes.items()})
assert slopes["SGD, sum"] > 0.6 > 0.1 > slopes["SGD, mean"] > -0.5, "a sum does not grow as the batch, or a mean does"
assert abs(slopes["Adam, sum"]) < 0.1, "Adam sees the sum"
assert slopes["attention.output"] < -0.2 < -0.1 < slopes["attention.value"], "attention does not average"
assert abs(slopes["heads"]) < 0.1 < 0.4 < -slopes["head size, 1/D"] < 0.6, "attention logits are not what D makes them"
assert set(by_heads.culprits["label"]) == {"head size, 1/√D"}, "the attention scale is not blamed, or another one is"
