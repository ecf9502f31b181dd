"""The words of all tables: quantities, statuses, kinds, roles and outcomes, defined here once."""

from __future__ import annotations

import math
from enum import Enum

from coordcheck.common.escaping import printable as printable


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
    """RMS of x_0 (1 for the ids of an embedding). Where x_0 is zero, the first x_t that is not stands for it."""
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
    WEIGHT_UPDATE_ABS = "weight_update_abs"
    """Mean absolute coordinate of p_t - p_0 as such a matrix, over those that had a gradient: its RMS where it is a
    matrix of signs."""
    BATCH_UPDATE = "batch_update"
    """RMS of f(p_t; x_0) - f(p_0; x_0) / RMS of x_0 on the whole batch, of optimizers that look at a whole matrix."""
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
    ZERO_INPUT = "zero input"
    """The layer's input at t=0 is all zeros, as the state of a recurrent net is at first: its output there is a bias
    alone, which may be of any scale."""
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


class Through(str, Enum):
    """What of a parameter takes part in an operation."""

    ITSELF = "itself"
    """The parameter, a view or a multiple of it."""
    MADE = "made weight"
    """A weight that was computed from it: masked, noised, merged, joined, normalised by another parameter's size."""
    NORMED = "normed weight"
    """A weight in which the parameter's own size makes no difference."""


class Side(str, Enum):
    """Where on a module a multiplier acts on one use alone."""

    NONE = ""
    """Nowhere."""
    INPUT = "input"
    OUTPUT = "output"


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
