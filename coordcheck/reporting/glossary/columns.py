"""The columns of every frame that a user meets: what each holds, in which unit, and what it means."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """One column of one frame."""

    frame: str
    name: str
    holds: str
    """The kind of its values, one of `HOLDS`, and their unit."""
    meaning: str


HOLDS = ("text", "integer", "number", "yes or no", "tuple")
"""The kinds; "number" is a float, NaN where there is none."""


def _columns(frame: str, *entries: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(frame, *entry) for entry in entries)


# fmt: off
FRAMES: dict[str, tuple[Column, ...]] = {
    "measurements": _columns(
        "measurements",
        ("label", "text", "The name of the factory."),
        ("width", "integer", "What build was called with."),
        ("seed", "integer", "Of the run's random numbers."),
        ("step", "integer, updates", "t: how many updates had been made; 0 is initialisation."),
        ("layer", "text", "The path of the module's call, or the name of the parameter."),
        ("order", "number", "The layer's position in the data flow, the median over runs."),
        ("kind", "text", "The kind of layer: module, passthrough, parameter or function."),
        ("quantity", "text", "What was measured: activation, mean_abs, change, and those of the diagnosis."),
        ("value", "number, the tensor's own units", "The scale; NaN where status is neither ok nor zero."),
        ("status", "text", "Whether it could be measured: ok, zero, nan, ..."),
    ),
    "slopes": _columns(
        "slopes",
        ("label", "text", "The name of the factory."),
        ("layer", "text", "The path of the module's call, or the name of the parameter."),
        ("quantity", "text", "What was measured."),
        ("step", "integer, updates", "t: how many updates had been made."),
        ("order", "number", "The layer's position in the data flow."),
        ("slope", "number, exponent of the width", "d log2(scale) / d log2(width), by least squares."),
        ("stderr", "number, exponent of the width", "Its standard error."),
        ("low", "number, exponent of the width", "The lower end of its 95 % interval."),
        ("high", "number, exponent of the width", "The upper end of it."),
        ("last_pair", "number, exponent of the width", "The slope between the two widest widths alone."),
        ("power_law", "yes or no", "Whether last_pair agrees with slope within 0.2."),
        ("seeds", "integer", "How many seeds the fit has."),
        ("widths", "integer", "How many widths the fit has."),
        ("growth", "number, ratio", "The scale at the widest over that at the narrowest width."),
        ("not_finite", "integer", "How many values are NaN or Inf."),
        ("zeros", "integer", "How many values are exactly zero."),
        ("status", "text", "ok, or why there is no slope: too few widths, zero, ..."),
    ),
    "verdicts": _columns(
        "verdicts",
        ("label", "text", "The name of the factory."),
        ("layer", "text", "The path of the module's call, or the name of the parameter or operation."),
        ("parameter", "text", "The parameter's qualified name; missing in the rows of layers and of attention."),
        ("role", "text", "The parameter's role; missing in the rows of layers."),
        ("order", "number", "The layer's position in the data flow."),
        ("verdict", "text", "What is the matter, in the words of the report."),
        ("culprit", "yes or no", "Whether this parameter is to blame."),
        ("cause", "text", "Of a culprit: init, lr, multiplier, ...; of a violated layer: own: NAME, or inherited."),
        ("exponent", "number, power of m", "The first of the powers that mend a culprit."),
        ("remedy", "text", "What to change, in words."),
        ("quantity", "text", "Of a layer: what its verdict was read from; missing where nothing was measured."),
        ("step", "integer, updates", "Of a layer: the step at which it was read; -1 where nothing was measured."),
        ("expected", "number, exponent of the width", "Of a layer: the exponent that it should have."),
        ("slope", "number, exponent of the width", "Of a layer: the one that it has."),
        ("stderr", "number, exponent of the width", "The slope's standard error."),
        ("low", "number, exponent of the width", "The lower end of the slope's 95 % interval."),
        ("high", "number, exponent of the width", "The upper end of it."),
        ("growth", "number, ratio", "The scale at the widest over that at the narrowest width."),
        ("power_law", "yes or no", "Whether the slope of the two widest widths agrees with the fit."),
        ("init_exponent", "number, power of m", "What to multiply the initial standard deviation by; 0: nothing."),
        ("lr_exponent", "number, power of m", "What to multiply the learning rate by; 0: nothing."),
        ("multiplier_exponent", "number, power of m", "What to multiply the forward multiplier by; 0: nothing."),
        ("gain", "number, exponent of the width", "Of a parameter: its gain, as it was judged."),
        ("gain_stderr", "number, exponent of the width", "The standard error of gain."),
        ("gain_target", "number, exponent of the width", "What gain should be."),
        ("gain_measured", "number, exponent of the width", "The gain seen in what the parameter makes."),
        ("response", "number, exponent of the width", "Of a parameter: its response, as it was judged."),
        ("response_stderr", "number, exponent of the width", "The standard error of response."),
        ("response_target", "number, exponent of the width", "What response should be."),
        ("response_measured", "number, exponent of the width", "The response seen in what the parameter makes."),
        ("alignment", "number, exponent", "How update and input are aligned: 1 fully, 1/2 not at all."),
        ("degree", "number", "The power of the gradient that the update is: 0 of Adam, 1 of SGD."),
        ("own_update", "number, exponent of the width", "How what this parameter's training changed grows."),
        ("own_update_stderr", "number, exponent of the width", "The standard error of own_update."),
        ("inherited", "number, exponent of the width", "How what arrived from before grows."),
        ("inherited_stderr", "number, exponent of the width", "The standard error of inherited."),
        ("explanation", "text", "The evidence in words."),
    ),
    "plan.builds": _columns(
        "plan.builds",
        ("label", "text", "The name of the factory."),
        ("width", "integer", "What build was called with."),
        ("place", "text", "Where it was built: on the meta device, with its parameters there, or for real."),
        ("reason", "text", "Why it failed, or was not built on the meta device."),
        ("tensors", "integer", "How many parameter tensors the model has; tied ones count once."),
        ("parameters", "integer", "How many coordinates they have."),
        ("bytes", "integer, bytes", "What they take."),
        ("state_bytes", "number, bytes", "What the optimizer's state takes; NaN where it is not known."),
        ("optimizer", "text", "The class of the optimizer, or of several."),
        ("seconds", "number, seconds", "What building took."),
        ("run_seconds", "number, seconds", "What one run takes; NaN unless it was asked for."),
        ("timed", "yes or no", "Whether it was run; else the time is carried on from narrower widths."),
    ),
    "plan.parameters": _columns(
        "plan.parameters",
        ("label", "text", "The name of the factory."),
        ("parameter", "text", "The parameter's qualified name."),
        ("pattern", "text", "The same without its numbers: parameters of repeated blocks share it."),
        ("role", "text", "The role that its shapes tell; missing where they do not."),
        ("shape", "text", "Its shape, in multiples of n, the width."),
        ("learning_rate", "number", "At m = 1; NaN where no optimizer holds it."),
        ("learning_rate_exponent", "number, power of m", "How the learning rate is set against the width."),
        ("learning_rate_text", "text", "Both in short."),
        ("weight_decay", "number", "At m = 1; NaN where no optimizer holds it."),
        ("weight_decay_exponent", "number, power of m", "How the weight decay is set against the width."),
        ("weight_decay_text", "text", "Both in short."),
        ("decay_exponent", "number, power of m", "Of learning rate times weight decay."),
        ("trainable", "yes or no", "Whether it requires a gradient."),
        ("held", "yes or no", "Whether an optimizer holds it."),
        ("tied", "text", "Its other names in the model."),
        ("widths", "integer", "At how many widths the model has it."),
    ),
    "plan.shapes": _columns(
        "plan.shapes",
        ("label", "text", "The name of the factory."),
        ("parameter", "text", "The parameter's qualified name."),
        ("width", "integer", "What build was called with."),
        ("shape", "tuple", "Its shape; None of a lazy parameter."),
        ("learning_rate", "number", "At this width; NaN where no optimizer holds it."),
        ("weight_decay", "number", "At this width; NaN where no optimizer holds it."),
    ),
    "plan.problems": _columns(
        "plan.problems",
        ("label", "text", "The name of the factory."),
        ("level", "text", "stops (it cannot be checked), missing (some widths cannot), problem or note."),
        ("text", "text", "What stands in the way."),
    ),
    "sweep.curves": _columns(
        "sweep.curves",
        ("label", "text", "The name of the factory."),
        ("width", "integer", "What build was called with."),
        ("lr", "number", "The learning rate that build was called with."),
        ("seed", "integer", "Of the run's random numbers."),
        ("step", "integer, updates", "How many updates had been made."),
        ("loss", "number, the loss's own units", "Before that update; at the last step the final one."),
        ("status", "text", "ok, diverged, or why the run failed."),
    ),
    "sweep.losses": _columns(
        "sweep.losses",
        ("label", "text", "The name of the factory."),
        ("width", "integer", "What build was called with."),
        ("lr", "number", "The learning rate that build was called with."),
        ("seed", "integer", "Of the run's random numbers."),
        ("loss", "number, the loss's own units", "The final loss; NaN where the run diverged or failed."),
        ("status", "text", "ok, diverged, or why the run failed."),
    ),
    "sweep.optima": _columns(
        "sweep.optima",
        ("label", "text", "The name of the factory."),
        ("width", "integer", "What build was called with."),
        ("best", "number", "Measured: the learning rate tried with the least mean loss."),
        ("best_loss", "number, the loss's own units", "Measured: that loss, the mean over the seeds."),
        ("log2_lr", "number, log2 of a learning rate", "Fitted: where the curve through the losses is least."),
        ("stderr", "number, octaves", "The standard error of log2_lr."),
        ("low", "number, log2 of a learning rate", "The lower end of its 95 % interval."),
        ("high", "number, log2 of a learning rate", "The upper end of it."),
        ("fitted_loss", "number, the loss's own units", "Fitted: how low the curve is there."),
        ("freedom", "number", "Degrees of freedom that the noise was estimated with."),
        ("runs", "integer", "How many runs there were."),
        ("diverged", "integer", "How many of them diverged."),
        ("status", "text", "found, or why there is no optimum."),
    ),
    "sweep.shift": _columns(
        "sweep.shift",
        ("label", "text", "The name of the factory."),
        ("shift", "number, octaves per doubling", "By how much the best learning rate moves when the width doubles."),
        ("stderr", "number, octaves per doubling", "Its standard error."),
        ("low", "number, octaves per doubling", "The lower end of its 95 % interval."),
        ("high", "number, octaves per doubling", "The upper end of it."),
        ("widths", "integer", "How many widths have an optimum."),
        ("status", "text", "stays, moves, or not resolved."),
    ),
    "fix.rules": _columns(
        "fix.rules",
        ("parameter", "text", "The parameter, block of its rows, use or operation that the rule is about."),
        ("glob", "text", "The same with the numbers of all repeats in braces that are changed alike."),
        ("role", "text", "What it is, by the axes that grow: input, hidden, readout, narrow, vector, ..."),
        ("init", "number, power of m", "What its initial values are multiplied by."),
        ("lr", "number, power of m", "What its learning rate is multiplied by."),
        ("multiplier", "number, power of m", "What it is multiplied by: by init and lr, or where `where` says."),
        ("eps", "number, power of m", "What the optimizer's eps for it is multiplied by."),
        ("where", "text", "The module whose input or output has the multiplier by a hook; empty without one."),
        ("cause", "text", "The cause that the diagnosis told."),
        ("round", "integer", "The diagnosis that it comes from, from 1 on."),
    ),
}
# fmt: on
