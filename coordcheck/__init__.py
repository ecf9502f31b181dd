"""coordcheck: does a PyTorch model keep its scale as it gets wider?

    report = coordcheck.check({"SP": build_sp, "µP": build_mup}, batch, loss=torch.nn.functional.cross_entropy)
    print(report)
    report.figure(path="coordinate_check.png")

Names are imported when they are first used: `import coordcheck` loads neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coordcheck.version import __version__ as __version__

if TYPE_CHECKING:
    from coordcheck import models
    from coordcheck.checks import assert_width_invariant, check, diagnose
    from coordcheck.configs import huggingface
    from coordcheck.errors import CoordCheckError, IncompleteCheck, NotWidthInvariant, RunFileError, SweepInterrupted
    from coordcheck.losses import model_loss, output_loss
    from coordcheck.plans import plan
    from coordcheck.recorder import Recorder
    from coordcheck.report import Report, load
    from coordcheck.slopes import SlopeFit, fit_slope
    from coordcheck.transfer import transfer_sweep
    from coordcheck.trials import Trial

_HOMES = {
    "assert_width_invariant": "checks",
    "check": "checks",
    "diagnose": "checks",
    "huggingface": "configs",
    "CoordCheckError": "errors",
    "IncompleteCheck": "errors",
    "NotWidthInvariant": "errors",
    "RunFileError": "errors",
    "SweepInterrupted": "errors",
    "plan": "plans",
    "Recorder": "recorder",
    "Report": "report",
    "load": "report",
    "SlopeFit": "slopes",
    "fit_slope": "slopes",
    "transfer_sweep": "transfer",
    "Trial": "trials",
    "model_loss": "losses",
    "output_loss": "losses",
}

__all__ = [
    "CoordCheckError",
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
