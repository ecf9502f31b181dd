"""The matrix: every model with every optimizer that it is trained by, by name."""

from __future__ import annotations

from fixmatrix import libraries, own
from fixmatrix.entries import Entry

MODELS = libraries.MODELS | {f"own {name}": model for name, model in own.MODELS.items()}
ENTRIES = {
    f"{name}, {kind}": Entry(f"{name}, {kind}", model, kind)
    for name, model in MODELS.items()
    for kind in model.optimizers
}
