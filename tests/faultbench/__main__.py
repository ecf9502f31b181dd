"""Print the score of `coordcheck.diagnose` on the planted faults: `python -m faultbench` from `tests/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from loky import get_reusable_executor

from faultbench.faults import controls, faults
from faultbench.foreign import KINDS
from faultbench.scoring import CONTROL_SEEDS, Score, owners, score, share, whole_check
from faultbench.sides import count

PLAIN = {"plain check": "plain", "plain check, readout may shrink": "excused", "symptoms": "symptoms"}


def scores(names: Sequence[str], jobs: int, plain: bool) -> list[Score]:
    """Every case's score, in the order of the names."""
    if jobs == 1:
        return [score(name, plain=plain) for name in names]
    with get_reusable_executor(max_workers=jobs) as pool:
        return list(pool.map(partial(score, plain=plain), names))


def summary(half: str, found: Sequence[Score], plain: bool) -> str:
    """The figures of one half; a check that names layers is exact when they are the modules of the true culprits."""
    broken, healthy = [s for s in found if not s.case.healthy], [s for s in found if s.case.healthy]
    alarms = [alarm for s in healthy for alarm in s.alarms]
    rows = [("", "recall", "exact set", "exact exponent", "false alarms")]
    rows += [
        (
            "diagnose",
            share(s.found for s in broken),
            share(s.exact_set for s in broken),
            share(s.exact for s in broken),
            share(alarm.false for alarm in alarms),
        )
    ]
    for name, field in PLAIN.items() if plain else ():
        rows += [
            (
                name,
                share(bool(getattr(s, field)) for s in broken),
                share(getattr(s, field) == owners(s.case) for s in broken),
                "-",
                share(bool(getattr(s, field)) for s in healthy),
            )
        ]
    undecided = share(bool(alarm.undecided) for alarm in alarms)
    failed, seconds = sum(bool(s.error) for s in found), [s.seconds for s in found]
    time = f"mean {sum(seconds) / len(seconds):.2f}, most {max(seconds):.2f}"
    return "\n".join(
        [
            f"{half}: {len(broken)} faults, {len(healthy)} controls x {len(CONTROL_SEEDS)} pairs of seeds",
            *(f"{name:32}{''.join(f'{cell:>20}' for cell in cells)}" for name, *cells in rows),
            f"controls x pairs of seeds with something undecided: {undecided}",
            f"failed: {failed}; seconds of a diagnosis: {time}",
        ]
    )


def table(half: str, found: Sequence[Score]) -> str:
    """A row per kind: found, exact set, exact exponent of the planted faults, false alarms of the healthy models."""
    titles = ("found", "exact set", "exact exponent", "false alarms", "undecided")
    lines = [f"{half:66}" + "".join(f"{title:>16}" for title in titles)]
    for name, own in (
        *((kind, [s for s in found if s.case.kind == kind]) for kind in sorted({s.case.kind for s in found})),
        ("all", found),
    ):
        broken, alarms = [s for s in own if not s.case.healthy], [alarm for s in own for alarm in s.alarms]
        failed = [s for s in own if s.case.healthy and s.error]
        cells = (
            *([getattr(s, what) for s in broken] for what in ("found", "exact_set", "exact")),
            [alarm.false for alarm in alarms] + [True for _ in failed],
            [bool(alarm.undecided) for alarm in alarms],
        )
        title = f"{name}  {KINDS.get(name, 'kinds')}"
        lines += [f"{title:66}" + "".join(f"{f'{sum(cell)}/{len(cell)}':>16}" for cell in cells)]
    return "\n".join(lines)


def misses(found: Sequence[Score]) -> str:
    """Every case that was not answered exactly."""
    lines = []
    for s in found:
        case = s.case
        if s.error:
            lines += [f"{s.name}\n    failed: {s.error}"]
        elif case.healthy and any(alarm.false for alarm in s.alarms):
            lines += [f"{s.name}\n    false alarms: {[a.culprits or a.violated for a in s.alarms if a.false]}"]
        elif not case.healthy and not s.exact:
            lines += [f"{s.name}\n    truth:  {dict(case.truth)}\n    answer: {s.answer}\n    {case.mechanism}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="faultbench", description=__doc__)
    parser.add_argument("--half", choices=("dev", "held-out", "both"), default="both")
    parser.add_argument("--misses", action="store_true", help="list every miss")
    parser.add_argument("--no-plain", action="store_true", help="leave the classical coordinate check out")
    parser.add_argument("--checks", action="store_true", help="only run `coordcheck.check` on the healthy models")
    parser.add_argument("--jobs", type=int, default=1)
    kinds_help = "the models of the kinds in `foreign`, a row per kind; letters choose some"
    parser.add_argument("--kinds", nargs="?", const="".join(sorted(KINDS)), help=kinds_help)
    parser.add_argument("--sides", action="store_true", help="count which side decided: measured, or structure")
    arguments = parser.parse_args()
    for half in ("dev", "held-out") if arguments.half == "both" else (arguments.half,):
        kinds = arguments.kinds or [""]
        if arguments.checks:
            codes = {case.name: whole_check(case.name) for kind in kinds for case in controls(half, kind)}
            words = {0: "ok", 1: "violated", 3: "undecided"}
            told = ", ".join(f"{[*codes.values()].count(code)} {word}" for code, word in words.items())
            print(f"{half}: {len(codes)} healthy models under check: {told}", flush=True)
            if arguments.misses:
                print("\n".join(f"{words[code]:12}{name}" for name, code in codes.items() if code))
            continue
        plain = not arguments.no_plain and not arguments.kinds
        cases = [case for kind in kinds for case in [*faults(half, kind), *controls(half, kind)]]
        found = scores([case.name for case in cases], arguments.jobs, plain)
        print(table(half, found) if arguments.kinds else summary(half, found, plain))
        if arguments.sides or arguments.kinds:
            print(f"\n{count(decision for s in found for decision in s.decisions)}")
        if arguments.misses:
            print(f"\n{misses(found)}")
        print(flush=True)


if __name__ == "__main__":
    main()
