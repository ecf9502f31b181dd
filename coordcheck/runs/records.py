"""What one training run leaves behind: plain data, no torch, ready for a run file.

The words of the tidy table (quantities, statuses, kinds) are defined here once.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from coordcheck.common.escaping import printable as printable
from coordcheck.common.escaping import shortened
from coordcheck.common.redaction import redacted

KEPT = 8000  # characters of a reason or note

NOT_COMPARED = "not compared: "
"""How the name of a setting begins that tells why a value, which the runs may depend on, could not be read."""


class Quantity(str, Enum):
    """What a row of the tidy table measures; every value is in the tensor's own units."""

    ACTIVATION = "activation"
    """RMS over all coordinates of a layer's output h_t."""
    MEAN_ABS = "mean_abs"
    """Mean absolute coordinate of h_t, the field's "l1"."""
    CHANGE = "change"
    """RMS of h_t - h_0 on the same input, over a fixed subset of rows when the output is large."""

    # of the diagnosis: per parameter p with its operation f, on the probe. x_t is what f acts on at step t, before any
    # adjacent multiplication by a scalar; such scalars count as part of f
    OWN_UPDATE = "own_update"
    """RMS of f(p_t; x_0) - f(p_0; x_0): what training p alone changed."""
    INHERITED = "inherited"
    """RMS of f(p_0; x_t) - f(p_0; x_0): what arrived from upstream through the initial weights."""
    INPUT = "input"
    """RMS of x_0 (1 for the ids of an embedding)."""
    OUTPUT = "output"
    """RMS of p's own part of h_0: f(p_0; x_0) - f(0; x_0), a linear layer's output without its bias."""
    GRADIENT = "gradient"
    """RMS of dL/dh at the operation's output h, before the update that follows step t."""
    WEIGHT = "weight"
    """RMS of p_0."""
    WEIGHT_UPDATE = "weight_update"
    """RMS of p_t - p_0, over coordinates that had a gradient."""
    WEIGHT_UPDATE_NORM = "weight_update_norm"
    """Largest singular value of p_t - p_0 as a (fan-out, fan-in) matrix."""
    WEIGHT_GRADIENT = "weight_gradient"
    """RMS of dL/dp, over coordinates where it is not zero, before the update that follows step t."""

    # of the diagnosis: per attention
    LOGITS = "logits"
    """RMS of the attention logits q k^T * scale before the softmax, masked ones left out."""
    QUERY = "query"
    """RMS of q: of run files that an earlier version wrote."""
    KEY = "key"
    """RMS of k: likewise."""


class Status(str, Enum):
    """Whether a value could be measured; only `ok` values enter a slope."""

    OK = "ok"
    ZERO = "zero"
    """Exactly zero, such as a zero-initialised readout (or below float32's range): log2 is undefined."""
    NAN = "nan"
    INF = "inf"
    EMPTY = "empty"
    """A tensor without coordinates."""
    INTEGER = "integer"
    """An integer or boolean tensor, which has no scale."""
    UNSUPPORTED = "unsupported"
    """A tensor kind whose coordinates cannot be read (meta, fake, exotic layouts)."""
    NOT_CALLED = "not called"
    """The layer was called at another step, but not at this one."""
    MOVED_INPUT = "moved input"
    """The model's input differs from the input at t=0, so h_t - h_0 is not an effect of training."""
    SHAPE_CHANGED = "shape changed"
    """The output's shape differs from its shape at t=0."""

    @property
    def not_finite(self) -> bool:
        return self is Status.NAN or self is Status.INF


class Kind(str, Enum):
    """What a layer is."""

    MODULE = "module"
    """A module call that computed its output itself."""
    PASSTHROUGH = "passthrough"
    """A module call that handed on the very tensor another layer returned (Sequential, Identity):
    its values are that layer's, and it is not judged a second time."""
    PARAMETER = "parameter"
    """A parameter, or a block of its rows, with the operation it acts in; its layer is its qualified name."""
    FUNCTION = "function"
    """A functional operation without parameters; its layer is `module path/operation`."""


class Role(str, Enum):
    """What a parameter is, by the axes that grow with the width."""

    INPUT = "input"
    """Only the fan-out grows: input matrices, embeddings, depthwise convolutions."""
    HIDDEN = "hidden"
    """Fan-in and fan-out grow."""
    READOUT = "readout"
    """Only the fan-in grows, and nothing that grows follows."""
    NARROW = "narrow"
    """Only the fan-in grows, and layers that grow follow: shared keys and values, a router, LoRA's first matrix."""
    VECTOR = "vector"
    """One growing axis and no sum over it: biases, norm gains, positional tables."""
    CONSTANT = "constant"
    """Nothing grows: a readout's bias, a scalar."""
    ATTENTION = "attention logits"
    FUNCTION = "function"
    """A module without parameters, between an input and an output of its own."""


FORWARD = "forward"  # the operation of such a module


class Outcome(str, Enum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    OUT_OF_MEMORY = "out of memory"
    CRASHED = "crashed"
    """Its process ended, twice."""
    TIMED_OUT = "timed out"
    REFUSED = "refused"
    """What `build`, the batch or the loss gave cannot be checked."""
    NOT_RUN = "not run"
    """Planned by the check that wrote the folder, which was interrupted or is still at work."""


def status_of(value: float) -> Status:
    """The status of a measured scale.

    >>> [status_of(v).value for v in (1.0, 0.0, math.inf, math.nan)]
    ['ok', 'zero', 'inf', 'nan']
    """
    if math.isfinite(value):
        return Status.OK if value else Status.ZERO
    return Status.NAN if math.isnan(value) else Status.INF


def same_label(label: str) -> str:
    r"""The form in which labels are compared: NFKC, so that the two Unicode mu signs are one.

    Two halves of a surrogate pair are one character, as they are when JSON is read.

    >>> same_label("\u00b5P") == same_label("\u03bcP")
    True
    """
    pairs_joined = label.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return unicodedata.normalize("NFKC", pairs_joined)


def distinct(name: str, taken: Container[str]) -> str:
    """A name that is made here, such as `fc#2`, where the user has given that very name to something else.

    >>> distinct("fc#2", {"fc"}), distinct("fc#2", {"fc", "fc#2"})
    ('fc#2', 'fc#2~2')
    """
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}~{count}"
    return found


def pattern(name: str) -> str:
    r"""A name with its numbers left out: parameters of repeated blocks are alike.

    >>> pattern("blocks.12.mlp.up.weight")
    'blocks.*.mlp.up.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs between two runs' settings, one text each.

    >>> differences({"steps": "4", "loss": "mse"}, {"steps": "3", "loss": "mse"})
    ['steps was 4, is 3']
    """
    return [
        f"{name} was {before.get(name, 'not set')}, is {after.get(name, 'not set')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


@dataclass(frozen=True)
class RunKey:
    """Names one run of a sweep."""

    label: str
    width: int
    seed: int

    def __str__(self) -> str:
        return f"{self.label}, width {self.width}, seed {self.seed}"


class Site(NamedTuple):
    """One call site of the model: `layer` is its module path, with `#k` from the second call on."""

    layer: str
    order: int
    """Position in the order in which the calls returned at t=0: data flow order."""
    kind: Kind
    shape: tuple[int, ...]
    dtype: str


class Row(NamedTuple):
    """One measured scale of one site at one step."""

    site: int
    """Index into the run's sites."""
    step: int
    quantity: Quantity
    value: float | None
    """None when the status says that there is no finite value."""
    status: Status


def measured_row(site: int, step: int, quantity: Quantity, value: float) -> Row:
    """The row of a measured scale, finite or not."""
    status = status_of(value)
    return Row(site, step, quantity, None if status.not_finite else value, status)


class ParameterInfo(NamedTuple):
    """One trainable parameter as the optimizer holds it at t=0, read after the first backward pass."""

    name: str
    shape: tuple[int, ...]
    learning_rate: float | None
    """None when no optimizer holds the parameter."""
    weight_decay: float | None
    visible: bool
    """False when it received a gradient though its module was never called (hooks cannot see its work)."""


BETWEEN = 0.25, 0.75  # degrees of an update in the gradient that are neither that of Adam, 0, nor that of SGD, 1


def is_between(degree: float) -> bool:
    """Whether an update is of a degree for which there is no target.

    >>> is_between(0.5), is_between(0.02), is_between(1.0)
    (True, False, False)
    """
    return BETWEEN[0] < degree < BETWEEN[1]


class Use(NamedTuple):
    """How the forward pass used a parameter, or computed attention, on the probe at t=0."""

    site: int
    """Index into the run's sites: the parameter (or block of it), or the functional operation."""
    parameter: str
    """Qualified name of the parameter; empty for attention."""
    layer: str
    """The module in whose call the operation ran."""
    operation: str
    """The function's name, such as "linear", "conv2d", "embedding", "mul"."""
    fan_in: int
    """Coordinates of the input that one coordinate of the output sums over; the head size for attention."""
    fan_out: int
    multiplier: float
    """Product of the scalars that multiply input, parameter or output next to the operation; an attention's scale."""
    degree: float | None
    """Degree of the optimizer's update in the gradient (SGD 1, Adam 0), where this run measured it."""
    exact: bool
    """Whether the operation is linear in the parameter, so that fans and multiplier tell its exponents."""
    feeds: tuple[int, ...]
    """The sites of the matrix operations and attentions that take up its output next."""
    hidden: str = ""
    """Why nothing but the parameter itself could be measured; empty when all was."""


def kept(message: str) -> str:
    """What other code said, as it may be kept in a file: without secrets, and of a length that can be read.

    >>> kept("OSError: 403 for https://host/model?token=abc")
    'OSError: 403 for https://host/model?token=***'
    """
    # once more before: a search through megabytes, as a batch that is part of a message has, would take seconds
    return shortened(redacted(shortened(message, 4 * KEPT)), KEPT)


@dataclass
class RunRecord:
    """Everything one run leaves behind."""

    key: RunKey
    settings: dict[str, str] = field(default_factory=dict)
    """Every setting that changes numbers, as text; runs with different settings are never mixed."""
    outcome: Outcome = Outcome.FINISHED
    reason: str = ""
    """Why the run did not finish: the end of its traceback."""
    losses: list[float | None] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    parameters: list[ParameterInfo] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    """What the diagnosis saw; empty when it did not run."""
    outside: dict[str, float] = field(default_factory=dict)
    """Module path -> the scalar that multiplies its output in the code around it, where there is one."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    found: bool = field(default=False, compare=False)
    """Whether a check found it in its folder instead of running it."""
    unsaved: str = field(default="", compare=False)
    """Why it could not be saved, where it should have been."""

    @property
    def finished(self) -> bool:
        return self.outcome is Outcome.FINISHED

    def tidy(self) -> None:
        """Take secrets out of its reason and its notes, and the middle out of those that are too long to be kept."""
        self.reason = kept(self.reason)
        self.notes = [kept(note) for note in self.notes]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON data: enums as their words, numbers finite."""
        return {
            "label": self.key.label,
            "width": self.key.width,
            "seed": self.key.seed,
            "settings": self.settings,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "losses": self.losses,
            "sites": [[s.layer, s.order, s.kind.value, list(s.shape), s.dtype] for s in self.sites],
            "rows": [[r.site, r.step, r.quantity.value, r.value, r.status.value] for r in self.rows],
            "parameters": [
                [p.name, list(p.shape), p.learning_rate, p.weight_decay, p.visible] for p in self.parameters
            ],
            "uses": [[*use[:9], list(use.feeds), use.hidden] for use in self.uses],
            "outside": self.outside,
            "notes": self.notes,
            "seconds": self.seconds,
        }
