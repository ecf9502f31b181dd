"""What the diagnosis says of one parameter in one use."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

from coordcheck.analysis.exponents import Exponents
from coordcheck.analysis.logs import UNKNOWN, Exponent
from coordcheck.analysis.roles import UseAcrossWidths
from coordcheck.analysis.verdicts import Verdict


class Cause(str, Enum):
    """What is wrong with a parameter; the words are the user's."""

    INIT = "init"
    LEARNING_RATE = "lr"
    MULTIPLIER = "multiplier"
    FROZEN = "frozen"
    ATTENTION_SCALE = "attention scale"
    GRADIENT_FAN_IN = "gradient fan-in"
    FORWARD_SCALE = "forward scale"
    EPS = "eps"


class Finding(NamedTuple):
    """What the diagnosis says of one use."""

    use: UseAcrossWidths
    exponents: Exponents
    verdict: Verdict
    cause: Cause | None = None
    init: float = 0.0
    """Power of width / base_width to multiply the initial standard deviation by."""
    learning_rate: float = 0.0
    multiplier: float = 0.0
    explanation: str = ""
    gain: Exponent = UNKNOWN
    gain_target: float = math.nan
    response: Exponent = UNKNOWN
    response_target: float = math.nan
    eps: float = 0.0

    @property
    def culprit(self) -> bool:
        return self.cause is not None

    @property
    def exponent(self) -> float:
        """The power of the width that mends the cause."""
        first = (self.init, self.multiplier, self.learning_rate, self.eps)
        return next((exponent for exponent in first if exponent), math.nan)
