"""The words of reports, figures and tables, each with its meaning: data, of which all explanations are made."""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """A word that a reader may meet."""

    name: str
    kind: str
    """One of `KINDS`."""
    meaning: str
    see: tuple[str, ...] = ()
    """Names of other terms."""


KINDS = {
    "word": "words of the report",
    "verdict": "verdicts, of a layer or of a parameter",
    "cause": "causes: what is wrong with a parameter, and what to multiply",
    "role": "roles of parameters, by the axes that grow with the width",
    "quantity": "quantities: what a row of measurements holds",
    "status": "statuses of a value: whether it could be measured",
    "outcome": "outcomes: how a run ended",
    "kind of layer": "kinds of layers",
    "parametrization": "parametrizations",
}


def _terms(kind: str, *entries: tuple[str, ...]) -> tuple[Term, ...]:
    return tuple(Term(name, kind, meaning, tuple(see)) for name, meaning, *see in entries)


# fmt: off
TERMS: tuple[Term, ...] = (
    *_terms(
        "word",
        ("m",
         "Width / base width, where the base width is the one at which the learning rate was tuned. All "
         "factors are powers of it: lr × m^-1 divides the learning rate by 4 where the width is 4 times the "
         "base width, and changes nothing at the base width.", "slope", "multiplier"),
        ("width",
         "The number that build(width) takes: what the model is made larger by. Along another axis (--axis) it "
         "counts something else: depth, heads, batch size.", "axis", "m"),
        ("axis", "What the widths count. Along another axis than the width only scales are judged, not parameters."),
        ("seed",
         "Of the random numbers of a run. Runs of one seed share it at every width; seeds are what intervals "
         "are made of."),
        ("step", "t, the number of optimizer updates that have been made: t = 0 is initialisation."),
        ("run", "One model, of one label, width and seed, trained for t = 0..steps."),
        ("label", "The name of one factory in a check: SP, µP, before, after."),
        ("layer",
         "A call of a module, by the path of the module. A parameter of the diagnosis is named by its own path "
         "beside it.", "passthrough", "@", "/"),
        ("scale",
         "How large the coordinates of a tensor are: their root mean square, in the tensor's own units.",
         "activation", "change"),
        ("slope",
         "d log(scale) / d log(width): 0 does not depend on the width, 0.5 grows as its square root, 1 in "
         "proportion. With ± stands half of its 95 % interval.", "tolerance", "power law"),
        ("tolerance",
         "How far a slope may lie from the exponent that it is held against: 0.25, because exponents in "
         "practice are multiples of 1/2. The whole 95 % interval must lie on one side.", "undecided"),
        ("power law",
         "Whether a scale follows one power of the width: the slope of the two widest widths agrees with the "
         "fit within 0.2. If not, the slope is no exponent."),
        ("by design",
         "A slope other than 0 that is as it should be: the output of a µP readout falls as m^-0.5 at "
         "initialisation, and that part fades in training.", "readout", "expected"),
        ("expected",
         "The exponent that a layer should have: 0, unless --expect or a scalar around it says otherwise."),
        ("diagnosis",
         "Which parameter is to blame: a fresh model is trained for an update or two on a few examples, and "
         "each parameter's operation is called again with its own new value alone.", "gain", "response", "probe"),
        ("probe", "The few examples or tokens on which the diagnosis works.", "diagnosis"),
        ("culprit",
         "A parameter that is to blame: an exponent of its own is off, wherever the symptoms show.",
         "own", "inherited"),
        ("own", "Cause of a layer's symptom: the parameter of that layer is a culprit.", "inherited", "culprit"),
        ("inherited",
         "Cause of a layer's symptom: what arrives from earlier layers; the layer itself is right, and becomes "
         "flat when the culprits before it are mended.", "own", "culprit"),
        ("multiplier",
         "A scalar that multiplies what a parameter makes (or takes), in the forward pass. A remedy that names "
         "it changes that scalar: it acts on the scale at initialisation and on the updates at once.", "init", "lr"),
        ("provisional",
         "Of a learning rate's remedy: an initialisation or a multiplier is off as well, and it changes the "
         "gradients. Mend that first, check again, and then set learning rates."),
        ("remedy", "What to change, and by which power of m.", "m", "provisional"),
        ("gain",
         "RMS of what a parameter makes at initialisation over the RMS of what it takes; its exponent tells of "
         "the initialisation. In µP it is 0, and -0.5 of a readout.", "init", "response"),
        ("response",
         "RMS of what one update of a parameter changes over the RMS of what it takes, with the gradient's own "
         "scale divided out by the degree; its exponent tells of the learning rate.", "lr", "gain", "degree"),
        ("alignment",
         "How well an update and its input point the same way, as an exponent: 1 of aligned ones, whose sums "
         "grow as the number of terms, 1/2 of independent ones. The response of a parameter's own side takes "
         "it as 1.", "response"),
        ("degree",
         "The power of the gradient that an update is: 1 of SGD, 0 of Adam and of all that normalises. In "
         "between, Adam's eps is as large as the gradient, or some of its coordinates are clipped.",
         "response", "eps", "clipping"),
        ("clipping",
         "Gradients above a threshold are made smaller before the update. Adam does not notice; of SGD every "
         "update has the threshold's size where all steps are clipped, whatever the gradient's: a threshold "
         "that grows or falls as the norm does mends it. What is clipped at some widths alone is no power of "
         "m, and decides nothing.", "degree"),
        ("eps",
         "The number that Adam adds to the root of the squared gradient. Gradients fall with the width; where "
         "they reach eps, updates do not follow the learning rate any more.", "degree"),
        ("fan-in", "How many coordinates of the input one coordinate of the output sums over.", "fan-out"),
        ("fan-out", "How many coordinates of the output one coordinate of the input acts on.", "fan-in"),
        ("tied",
         "A parameter that is used more than once, such as an embedding that is the readout as well. Its init "
         "and learning rate are those of its first use; the others have a multiplier.", "@", "multiplier"),
        ("@",
         "name@operation is a second use of the parameter: wte.weight@linear is the embedding's matrix where "
         "it serves as the readout.", "tied"),
        ("/",
         "path/operation is an operation without a parameter in the module at path: attention/sdpa is the "
         "product of queries and keys, block/forward a module that has no parameters.",
         "attention scale", "forward scale"),
        ("[0]",
         "name[0], name[1], ... are blocks of rows of one parameter that act apart, such as queries, keys and "
         "values in one matrix."),
        ("#2", "path#2 is the second call of a module in one forward pass."),
        ("sdpa", "Scaled dot-product attention.", "attention scale", "/"),
        ("fold", "Repeated blocks as one layer, so that models of different depth can be compared.", "axis"),
        ("growth", "By which factor a scale grows from the least to the greatest width.", "slope"),
        ("baseline", "Exponents that were reviewed once and are stored beside a test: a check must find them again."),
        ("control", "A model that must fail the same check: proof that it is not too weak to find anything."),
        ("violated", "A layer's scale or change depends on the width, or a parameter is to blame: exit code 1."),
        ("incomplete", "Nothing is violated, and runs are missing: exit code 3.", "undecided"),
    ),
    *_terms(
        "verdict",
        ("ok", "The slope is within the tolerance of its exponent, with its whole 95 % interval.", "tolerance"),
        ("ok, changes not judged",
         "The scales at initialisation are right, and the changes in training could not be judged, because the "
         "input was another one at every step: give one fixed batch, or a probe.", "moved input"),
        ("blows up",
         "A layer's change in training grows with the width. Look for the culprit: its own parameter, or one "
         "before it.", "change", "own", "inherited"),
        ("vanishes",
         "A layer's change in training shrinks with the width: wide models do not learn there.", "change"),
        ("initialised too large",
         "Of a layer: its scale at t = 0 grows with the width. Of a parameter: its gain does.", "gain", "init"),
        ("initialised too small",
         "Of a layer: its scale at t = 0 shrinks with the width. Of a parameter: its gain does.", "gain", "init"),
        ("learns too fast", "Of a parameter: its own update grows with the width.", "response", "lr"),
        ("learns too slowly", "Of a parameter: its own update shrinks with the width.", "response", "lr"),
        ("not finite",
         "NaN or Inf, at the layer and step that is named: lower the learning rate, or look for a division by "
         "zero."),
        ("undecided",
         "The 95 % interval reaches across the tolerance: the data do not tell. Widen the range of widths "
         "first, then add seeds, then examples. Exit code 3.", "tolerance"),
        ("frozen",
         "Of a layer: its output never changed, as of buffers and untrained layers. Of a parameter: it is not "
         "trained."),
        ("not visible",
         "Of a parameter: its use in the forward pass could not be followed, or the loss does not depend on "
         "it; the explanation says which. It is not judged."),
        ("not compared",
         "The layer was seen at some widths only, sees other rows at other steps, as experts do, or gives integers, "
         "as which expert it chose.", "fold"),
    ),
    *_terms(
        "cause",
        ("init", "Multiply the initial standard deviation (the initial values) of the parameter.", "gain"),
        ("lr", "Multiply the learning rate of the parameter: give it a parameter group of its own.", "response"),
        ("multiplier",
         "Gain and response are off together: multiply the scalar beside the parameter, or add one.",
         "gain", "response"),
        ("frozen", "It has a gradient and never moves: give it to the optimizer, with a learning rate."),
        ("attention scale",
         "The factor of the logits q·k: µP wants 1/head size and not 1/√(head size), because queries and keys "
         "align in training.", "sdpa"),
        ("gradient fan-in",
         "The gradient sums over a number of terms that grows with the width, or another use's gradient drives "
         "it: with SGD the learning rate must make up for it.", "degree"),
        ("forward scale",
         "A module without parameters gives an output that scales with the width though its input does not: "
         "multiply its output.", "/"),
        ("eps",
         "The gradient of training falls with the width down to the optimizer's eps, which does not: the wider the "
         "model, the less of its learning rate it moves by. Multiply eps by that power, or make it small "
         "everywhere, such as 1e-12.", "degree"),
    ),
    *_terms(
        "role",
        ("input", "Only the fan-out grows: input matrices, embeddings.", "fan-out"),
        ("hidden", "Fan-in and fan-out grow.", "fan-in"),
        ("readout", "Only the fan-in grows, and nothing that grows follows: the last matrix, or head.", "by design"),
        ("narrow",
         "Only the fan-in grows, and layers that grow follow: a router, shared keys and values, LoRA's first "
         "matrix."),
        ("vector", "One axis grows and nothing is summed over it: biases, gains of a norm, positional tables."),
        ("constant", "Nothing grows: a readout's bias, a scalar."),
        ("attention logits", "No parameter: the product of queries and keys.", "attention scale"),
        ("function", "No parameter: a module without any, between its input and its output.", "forward scale"),
    ),
    *_terms(
        "quantity",
        ("activation", "RMS over all coordinates of a layer's output h_t."),
        ("mean_abs", "Mean absolute coordinate of h_t: the field's l1."),
        ("change", "RMS of h_t - h_0 on the same input: what training changed.", "moved input"),
        ("own_update",
         "RMS of f(p_t; x_0) - f(p_0; x_0): what training this parameter alone changed in what it makes.",
         "inherited"),
        ("inherited",
         "RMS of f(p_0; x_t) - f(p_0; x_0): what arrived from before, through the initial weights.", "own_update"),
        ("input", "RMS of x_0, what the parameter acts on; 1 of the ids of an embedding."),
        ("output", "RMS of the parameter's own part of h_0: a linear layer's output without its bias.", "gain"),
        ("gradient", "RMS of dL/dh at the output of the parameter's operation."),
        ("weight", "RMS of p_0, the initial values."),
        ("weight_update", "RMS of p_t - p_0, over the coordinates that had a gradient."),
        ("weight_update_norm", "Largest singular value of p_t - p_0 as a (fan-out, fan-in) matrix."),
        ("weight_update_abs",
         "Mean absolute coordinate of p_t - p_0 as such a matrix: its RMS where it is a matrix of signs."),
        ("batch_update",
         "own_update / input on the whole batch, after several updates: of optimizers that look at a whole matrix, "
         "whose updates depend on the number of examples.", "own_update"),
        ("weight_gradient", "RMS of dL/dp, where it is not zero."),
        ("logits", "RMS of the attention logits before the softmax, without masked ones."),
        ("query", "RMS of the queries; in files of earlier versions."),
        ("key", "RMS of the keys; in files of earlier versions."),
    ),
    *_terms(
        "status",
        ("ok", "A number; only these enter a slope."),
        ("zero", "Exactly zero, such as a zero-initialised readout at t = 0: it has no logarithm."),
        ("nan", "Not a number.", "not finite"),
        ("inf", "Infinite.", "not finite"),
        ("empty", "A tensor without coordinates."),
        ("integer", "An integer or boolean tensor, which has no scale."),
        ("unsupported", "A kind of tensor whose coordinates cannot be read."),
        ("not called", "The layer was called at another step, but not at this one."),
        ("zero input",
         "The layer's input at t = 0 is all zeros, as the state of a recurrent net is at first: what it gives there is "
         "a bias alone, which may be of any scale."),
        ("moved input",
         "The model's input is not the one of t = 0, so that h_t - h_0 is no effect of training alone: give "
         "one fixed batch, or a probe.", "change"),
        ("shape changed", "The output has another shape than at t = 0.", "not compared"),
        ("too few widths", "Of a slope: fewer than 3 widths have a number."),
    ),
    *_terms(
        "outcome",
        ("finished", "The run ended as it should."),
        ("failed", "Something in it raised; the reason is the end of its traceback."),
        ("out of memory", "It did not fit: check narrower widths, or a smaller batch."),
        ("crashed", "Its process ended."),
        ("timed out", "It took longer than --timeout, and its process was ended."),
        ("refused", "What build, batch or loss gave cannot be checked; the reason says what is accepted."),
        ("not run", "Planned in the folder, and not there yet: the check was interrupted or is at work."),
    ),
    *_terms(
        "kind of layer",
        ("module", "A call of a module that computed its output itself."),
        ("passthrough",
         "A call that handed on the very tensor of another layer (Sequential, Identity): judged once."),
        ("parameter", "A parameter, or a block of its rows, with the operation that it acts in."),
        ("function", "An operation without parameters.", "/"),
    ),
    *_terms(
        "parametrization",
        ("µP",
         "Maximal update parametrization (muP): every layer learns at the same rate at all widths, and so the "
         "best learning rate stays.", "SP", "NTK"),
        ("SP", "Standard parametrization: PyTorch's own init, and one learning rate for all widths."),
        ("NTK", "Every scale is kept, and features stop changing in wide models."),
        ("mean-field", "Gains as in µP, and other learning rates."),
    ),
)
# fmt: on
