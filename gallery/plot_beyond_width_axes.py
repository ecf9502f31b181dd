"""Batch size, sequence length, heads: what need not be flat
=========================================================

Along other axes than the width a slope of 0 is not always right, and then the check is a measurement rather than a
verdict. A loss that is summed, not averaged, makes every SGD step as large as the batch; attention averages over more
values in a longer sequence; and attention logits under µP's scale of 1/D fall with the head size D at t = 0, by
design (Yang et al. 2022, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_), but not with the number of heads.

What to see: left, how far one step moves the last block, against the batch size: averaged losses shrink a little,
because gradients of different sequences disagree; the summed loss (circles) grows under SGD nearly as the batch, and
Adam (diamonds) does not see it. Middle, at t = 0 against the sequence length: attention's output falls with it as means
of ever more values do (the grey line: if they were independent), the rest is level. Right, attention logits at t = 0
when the width grows by more heads (circles), or by larger heads with 1/D (squares) and with 1/√D (diamonds), which the
diagnosis objects to: trained logits would grow.
"""

import coordcheck
import lesson
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import transformer


def trial(optimizer="adam", lr=1e-3, *, sequences=8, context=32, summed=False):
    """The µP Transformer at width 64; a ``Trial`` brings its batch, which may depend on the number that is checked."""
    model, optimizer = transformer("µP", optimizer, lr=lr, context=512)(64)
    terms = sequences * context if summed else 1  # of a mean in which the division was forgotten
    batch = lesson.text_batch(sequences, context)
    return coordcheck.Trial(model, optimizer, batch=batch, loss=lambda *run: next_byte_loss(*run) * terms)


# %%
# Three checks, with the number of sequences, their length, and the width as the axis.

batches = {
    "SGD, sum": lambda size: trial("sgd", 1e-4, sequences=size, summed=True),
    "SGD, mean": lambda size: trial("sgd", 0.1, sequences=size),
    "Adam, sum": lambda size: trial(sequences=size, summed=True),
}
sizes, lengths = ((2, 8, 32, 128), (8, 32, 128, 512)) if lesson.FULL else ((2, 8, 32), (8, 32, 128))
by_batch = coordcheck.check(batches, widths=sizes, axis="batch size", steps=1, seeds=lesson.GRID["seeds"])
by_length = coordcheck.check({"µP": lambda length: trial(context=length)}, widths=lengths, axis="length", steps=0)
scales = {"heads": "1/D", "head size, 1/D": "1/D", "head size, 1/√D": "1/sqrt(D)"}
heads = {name: transformer(grows=name.split(",")[0], attention_scale=scale) for name, scale in scales.items()}
by_heads = coordcheck.diagnose(heads, lesson.text_batch(), loss=next_byte_loss, **lesson.GRID)

# %%
# The lesson: each of these slopes is what the argument above says, and only 1/√D with larger heads is blamed.

inside = by_length.measurements.query("quantity == 'activation'").assign(label=lambda rows: rows["layer"].str[9:])
logits = "layer == 'blocks.0.attention/sdpa' and quantity == 'logits' and step == 0"
panels = {
    "change of blocks.1, t = 1": (by_batch.measurements.query("layer == 'blocks.1' and quantity == 'change'"), batches),
    "scale, t = 0": (inside, ["attention.output", "attention.value", "mlp.down"]),
    "attention logits, t = 0": (by_heads.measurements.query(logits), scales),
}
means = {
    title: rows.pivot_table(index="width", columns="label", values="value")[list(names)]
    for title, (rows, names) in panels.items()
}
looks = {"o-": lesson.RED, "s-": lesson.BLUE, "D-": lesson.GREEN}
figure, axes = lesson.panels(means, [looks] * 3, height=2.5)
for axis, xlabel in zip(axes, ("batch size", "sequence length T", "width"), strict=True):
    axis.set(xlabel=xlabel, ylim=(axis.get_ylim()[0] / 2.5, None))
    axis.legend(loc="lower right" if axis is axes[0] else "lower left")
independent = [(sum(1 / k for k in range(1, length + 1)) / length) ** 0.5 for length in lengths]
axes[1].plot(lengths, independent, color="0.65", linestyle=(0, (4, 2)), zorder=1)
lesson.save(figure, "beyond_width_axes")
slopes = {
    name: coordcheck.fit_slope(list(table.index), list(table[name])).slope for table in means.values() for name in table
}
assert slopes["SGD, sum"] > 0.6 > 0.1 > slopes["SGD, mean"] > -0.5, "a sum does not grow as the batch, or a mean does"
assert abs(slopes["Adam, sum"]) < 0.1, "Adam sees the sum"
assert slopes["attention.output"] < -0.2 < -0.1 < slopes["attention.value"], "attention does not average"
assert abs(slopes["heads"]) < 0.1 < 0.4 < -slopes["head size, 1/D"] < 0.6, "attention logits are not what D makes them"
assert set(by_heads.culprits["label"]) == {"head size, 1/√D"}, "the attention scale is not blamed, or another one is"
