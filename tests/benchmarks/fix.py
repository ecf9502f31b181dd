"""What `fix` costs beside one diagnosis of the same model.

    python tests/benchmarks/fix.py [--repetitions 5]

The reference Transformer in SP under Adam, at the default widths and seeds; medians, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import coordcheck
from coordcheck.checks.demo import build_sp


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="(default: %(default)s)")
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    calls = {"diagnose": coordcheck.diagnose, "fix": coordcheck.fix}
    found: dict[str, list[float]] = {name: [] for name in calls}
    coordcheck.diagnose(build_sp)  # imports, and what is kept of optimizers
    for _ in range(repetitions):
        for name, call in calls.items():
            found[name].append(seconds(lambda call=call: call(build_sp)))
    medians = {name: statistics.median(each) for name, each in found.items()}
    print(coordcheck.fix(build_sp))
    for name, median in medians.items():
        print(f"{name:10} {median:.2f} s")
    print(f"fix / diagnose: {medians['fix'] / medians['diagnose']:.2f}")


if __name__ == "__main__":
    main()
