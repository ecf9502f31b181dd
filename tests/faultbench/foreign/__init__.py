"""Models of kinds that others write: each healthy in µP, and with one fault planted.

Every kind has a letter and stands in a module here; its truths come from theory, and `by_hand` measures the healthy
models in plain torch. `python -m faultbench --kinds` prints a row per kind and half.
"""

from faultbench.foreign import attentions, combined, copies, gradients, masks, optimizers, scalars, starts  # noqa: F401  importing registers the cases
from faultbench.foreign.kit import KINDS

__all__ = ["KINDS"]
