"""The same figure from the same grid, as whole processes: coordcheck against mup.coord_check.

    python tests/benchmarks/whole_process.py

Each subject imports its libraries, trains a reference model (SP, Adam) at several widths with 3 seeds for t = 0..4,
draws one row of five panels and saves it. The two take turns; what is printed is the median of the wall-clock
seconds and of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTHS = {"MLP": (64, 128, 256, 512, 1024), "Transformer": (64, 128, 256, 512)}
SEEDS = 3
LAST_STEP = 4


def with_coordcheck(model: str, path: Path) -> None:
    """Ours."""
    import torch

    import coordcheck

    build, batch = _problem(model)
    report = coordcheck.check(
        {"SP": build}, batch, loss=torch.nn.functional.cross_entropy, widths=WIDTHS[model], seeds=SEEDS
    )
    report.figure(path=path)


def with_mup(model: str, path: Path) -> None:
    """The peer: its readout of the same statistic, with its own figure."""
    import warnings

    import torch
    from mup.coord_check import _get_coord_data, plot_coord_data

    warnings.simplefilter("ignore")
    build, batch = _problem(model)
    made: dict[str, torch.optim.Optimizer] = {}

    def lazy(width: int) -> torch.nn.Module:
        model, made["optimizer"] = build(width)
        return model

    models = {width: (lambda width=width: lazy(width)) for width in WIDTHS[model]}
    frame = _get_coord_data(
        models,
        [batch],
        lambda model: made["optimizer"],
        nsteps=LAST_STEP + 1,
        nseeds=SEEDS,
        cuda=False,
        show_progress=False,
    )
    plot_coord_data(frame, save_to=path)


def _problem(model: str):
    """`build(width)` and the batch (x, y), those of the other benchmark."""
    import torch
    from overhead import cases

    torch.set_num_threads(1)
    case = next(case for case in cases() if case.name == model)
    return case.build, case.batch


SUBJECTS = {"coordcheck": with_coordcheck, "mup": with_mup}


def seconds(subject: str, model: str, path: Path) -> float:
    """Wall-clock seconds of one process."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--subject", subject, "--model", model, "--out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> int:
    """Print the table, or be one of the subjects."""
    parser = argparse.ArgumentParser(description="Whole processes, figure included.")
    parser.add_argument("--subject", choices=SUBJECTS)
    parser.add_argument("--model", choices=WIDTHS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    if options.subject:
        SUBJECTS[options.subject](options.model, options.out)
        return 0
    print(f"{'model':<12} {'coordcheck s':>12} {'mup s':>8} {'mup / coordcheck':>17}")
    for model in WIDTHS:
        times: dict[str, list[float]] = {name: [] for name in SUBJECTS}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(options.repetitions):
                for name in SUBJECTS:
                    times[name].append(seconds(name, model, Path(folder) / f"{name}.png"))
        ours, peer = (statistics.median(times[name]) for name in ("coordcheck", "mup"))
        ratio = statistics.median(b / a for a, b in zip(times["coordcheck"], times["mup"], strict=True))
        print(f"{model:<12} {ours:>12.2f} {peer:>8.2f} {ratio:>17.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
