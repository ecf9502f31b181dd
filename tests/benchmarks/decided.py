"""How often a check of a correct model decides, by its widths and seeds.

    python tests/benchmarks/decided.py [--repetitions 5]

Correct µP models of transformers and of mup are checked with sets of seeds that do not overlap, on small batches. A
check that does not pass is undecided, or a false alarm; both are counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from zoo import FAMILIES, in_mup

import coordcheck

MODELS = (
    *("gpt2", "gpt2 heads=4", "llama", "llama heads=4"),
    *("mup mlp MuAdam", "mup mlp MuSGD", "mup encoder MuAdam", "mup encoder MuSGD"),
)
GRIDS = (
    *(((64, 128, 256), 3), ((64, 128, 256), 5), ((64, 128, 256), 8)),
    ((64, 128, 256, 512), 3),  # the default
    ((32, 128, 512), 3),  # the marker of the guide
)


def status(name: str, widths: tuple[int, ...], seeds: tuple[int, ...]) -> str:
    """The verdict on one model."""
    family = FAMILIES[name]
    build = family.mup or partial(in_mup, family)
    report = coordcheck.check({"µP": build}, family.batch(), loss=family.loss, widths=widths, seeds=seeds)
    return report.status["µP"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="sets of seeds (default: %(default)s)")
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    print("widths               seeds  checks  verdicts                      seconds per check")
    for widths, count in GRIDS:
        started, found = time.perf_counter(), Counter[str]()
        for start in range(0, repetitions * count, count):
            found.update(status(name, widths, tuple(range(start, start + count))) for name in MODELS)
        checks = found.total()
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in found.most_common())
        each = (time.perf_counter() - started) / checks
        print(f"{', '.join(map(str, widths)):20} {count:5}  {checks:6}  {verdicts:28}  {each:.1f}", flush=True)


if __name__ == "__main__":
    main()
