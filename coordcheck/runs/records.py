"""What one training run leaves behind: plain data, no torch, ready for a run file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coordcheck.common.escaping import shortened
from coordcheck.common.redaction import redacted
from coordcheck.runs.words import Kind, Outcome, Quantity, Side, Status, Through, status_of

KEPT = 8000  # characters of a reason or note

NOT_COMPARED = "not compared: "
"""How the name of a setting begins that tells why a value, which the runs may depend on, could not be read."""


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
    return Row(site, step, quantity, value if math.isfinite(value) else None, status)


class ParameterInfo(NamedTuple):
    """One trainable parameter as the optimizer holds it at t=0, read after the first backward pass."""

    name: str
    shape: tuple[int, ...]
    learning_rate: float | None
    """None when no optimizer holds the parameter."""
    weight_decay: float | None
    visible: bool
    """False when it received a gradient though its module was never called (hooks cannot see its work)."""
    eps: float | None = None
    """What the optimizer adds to the gradient's size before it divides by it; None when it has none, or several."""
    gradient: float | None = None
    """RMS of its first gradient in training that is not zero, over the coordinates that are not; None if unknown."""
    update: float | None = None
    """RMS of the update that followed it, over the same coordinates; None if unknown."""
    pulled: bool | None = None
    """Whether its decay moves it by learning rate times weight decay, as that of AdamW does; None if unknown."""


BETWEEN = 0.25, 0.75  # degrees of an update in the gradient that are neither that of Adam, 0, nor that of SGD, 1


def is_between(degree: float) -> bool:
    """Whether an update is of a degree for which there is no target.

    >>> is_between(0.5), is_between(0.02), is_between(1.0)
    (True, False, False)
    """
    return BETWEEN[0] < degree < BETWEEN[1]


BEGINS = 1e-3  # an update this small beside the next one is none yet: clipped against a second moment of zero
ROUNDED_AWAY = "its updates are so small beside it that its own precision loses them"
SIGNS = 0.98  # mean absolute coordinate / RMS of an update from which on it is one of signs
ROUNDING = 1e-5  # of the gradient of an output, where it is not known how many of its coordinates were summed


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
    upstream: float = 1.0
    """The part of `multiplier` that stands in front of the operation."""
    outward: float = 1.0
    """The scalars between a projection and the product of queries and keys, which belong to one or the other: of a
    parameter they are not in `multiplier`, of an attention they are."""
    through: Through = Through.ITSELF
    """What of the parameter takes part in the operation."""
    rounding: float = ROUNDING
    """RMS of dL/dp beside that of dL/dh below which dL/dp is rounding error, where p is a vector."""
    module: str = ""
    """The module on which a multiplier acts on this use alone, of a second use, a block or an attention; empty where
    there is none."""
    side: Side = Side.NONE
    """Whether on what that module takes, or on what it gives."""
    channels: tuple[int, ...] = ()
    """Which channels of a parameter, and of that module's output, it is: the last of their axes in each, counted from
    the end (0 where there is none), how many axes they are, how many channels there are in all, the first one, and then
    size and step of each run of them, the outermost first. Empty for all channels."""


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
                [p.name, list(p.shape), p.learning_rate, p.weight_decay, p.visible, *p[5:]] for p in self.parameters
            ],
            "uses": [
                [
                    *(*use[:9], list(use.feeds), *use[10:13], use.through.value, use.rounding),
                    *(use.module, use.side.value, list(use.channels)),
                ]
                for use in self.uses
            ],
            "outside": self.outside,
            "notes": self.notes,
            "seconds": self.seconds,
        }
