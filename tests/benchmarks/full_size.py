"""Whether rules that were found at small widths hold at large ones.

    python tests/benchmarks/full_size.py [--width 2048] [--control]

`fix` looks at the reference Transformer in SP at widths 64, 128 and 256. Its rules, from a file, are then applied to
models of 512 up to the given width, which are checked on other text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import coordcheck
from coordcheck.checks.demo import CONTEXT, LEARNING_RATE, next_byte_loss, text_batch
from coordcheck.models import transformer

BASE, SMALLEST = 64, 512


def fixed(file: Path, width: int) -> Any:
    """A model in SP with the rules of a file applied."""
    model, optimizer = transformer("SP (PyTorch)", "adam", lr=LEARNING_RATE, context=CONTEXT)(width)
    coordcheck.Fix.load(file).apply(model, optimizer, width=width)
    return model, optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="the largest one (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the check (default: %(default)s)")
    parser.add_argument("--control", action="store_true", help="check the model in SP as well, which must fail")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build = transformer("SP (PyTorch)", "adam", lr=LEARNING_RATE, context=CONTEXT)
    widths = [SMALLEST]
    while widths[-1] < arguments.width:
        widths.append(2 * widths[-1])
    start = time.perf_counter()
    found = coordcheck.fix(build, text_batch(), loss=next_byte_loss, base_width=BASE)
    print(found)
    print(f"found in {time.perf_counter() - start:.0f} s at widths {BASE}, {2 * BASE} and {4 * BASE}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mup.json"
        found.save(file)
        builds = {**({"SP": build} if arguments.control else {}), "SP, fixed": partial(fixed, file)}
        batch = text_batch().roll(1, 0)[::2].flip(0)
        start = time.perf_counter()
        report = coordcheck.check(builds, batch, loss=next_byte_loss, widths=widths, seeds=arguments.seeds, steps=2)
    print(report)
    print(f"checked in {time.perf_counter() - start:.0f} s at widths {', '.join(map(str, widths))}")


if __name__ == "__main__":
    main()
