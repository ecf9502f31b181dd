"""coordcheck: does a PyTorch model keep its scale as it gets wider?

    report = coordcheck.check({"SP": build_sp, "µP": build_mup}, batch, loss=torch.nn.functional.cross_entropy)
    print(report)
    report.figure(path="coordinate_check.png")

Names are imported when they are first used: `import coordcheck` loads neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coordcheck.common.version import __version__ as __version__

if TYPE_CHECKING:
    from coordcheck import models
    from coordcheck.analysis.slopes import SlopeFit, fit_slope
    from coordcheck.checks.assertions import assert_width_invariant
    from coordcheck.checks.check import check, diagnose
    from coordcheck.checks.fixing.fix import Fix
    from coordcheck.checks.fixing.verb import fix
    from coordcheck.checks.plans import plan
    from coordcheck.checks.transfer import transfer_sweep
    from coordcheck.common.errors import (
        CoordCheckError,
        IncompleteCheck,
        NotWidthInvariant,
        RunFileError,
        SweepInterrupted,
    )
    from coordcheck.integrations.huggingface import huggingface
    from coordcheck.recording.recorder import Recorder
    from coordcheck.reporting.report import Report, load
    from coordcheck.training.losses import model_loss, output_loss
    from coordcheck.training.trials import Trial

_HOMES = {
    "assert_width_invariant": "checks.assertions",
    "check": "checks.check",
    "diagnose": "checks.check",
    "Fix": "checks.fixing.fix",
    "fix": "checks.fixing.verb",
    "huggingface": "integrations.huggingface",
    "CoordCheckError": "common.errors",
    "IncompleteCheck": "common.errors",
    "NotWidthInvariant": "common.errors",
    "RunFileError": "common.errors",
    "SweepInterrupted": "common.errors",
    "plan": "checks.plans",
    "Recorder": "recording.recorder",
    "Report": "reporting.report",
    "load": "reporting.report",
    "SlopeFit": "analysis.slopes",
    "fit_slope": "analysis.slopes",
    "transfer_sweep": "checks.transfer",
    "Trial": "training.trials",
    "model_loss": "training.losses",
    "output_loss": "training.losses",
}

__all__ = [
    "CoordCheckError",
    "Fix",
    "IncompleteCheck",
    "NotWidthInvariant",
    "Recorder",
    "Report",
    "RunFileError",
    "SlopeFit",
    "SweepInterrupted",
    "Trial",
    "assert_width_invariant",
    "check",
    "diagnose",
    "fit_slope",
    "fix",
    "huggingface",
    "load",
    "model_loss",
    "models",
    "output_loss",
    "plan",
    "transfer_sweep",
]


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("coordcheck.models")
    if name in _HOMES:
        return getattr(import_module(f"coordcheck.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'coordcheck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
