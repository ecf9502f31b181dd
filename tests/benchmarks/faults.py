"""What happens when things go wrong, in figures: the table behind gallery/guide/faults.md.

    python tests/benchmarks/faults.py                 # about two minutes on two cores
    python tests/benchmarks/faults.py --count 200     # at full size
    python tests/benchmarks/faults.py --only torn     # one line of it

Each line is one experiment; its goal stands beside what was found. Times are medians on this machine as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import test_faults as faults  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from conftest import pair_batch  # noqa: E402

import coordcheck  # noqa: E402
from coordcheck.common.errors import RunFileError  # noqa: E402
from coordcheck.models import mlp  # noqa: E402
from coordcheck.runs.agreement import largest_difference  # noqa: E402
from coordcheck.runs.claims import Claims  # noqa: E402
from coordcheck.runs.files import RunFolder  # noqa: E402
from coordcheck.runs.records import RunKey  # noqa: E402
from coordcheck.training.keeper import FolderKeeper  # noqa: E402

Found = tuple[str, str, str]
"""What was done, what was found, and the goal."""

SEEDS = 12  # runs per width of a check that is killed


def check(build: Any, **options: Any) -> coordcheck.Report:
    given = {"loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": SEEDS, "steps": 1, "probe": None}
    return coordcheck.check({"net": build}, pair_batch(), **{**given, "tolerance": 100.0, **options})


# ---- user code that fails


def injected(count: int) -> Iterator[Found]:
    """Every way to leave, at every place, in one check: here, and in two workers."""
    builds = {f"{place.__name__}, {name}": _trial(place(leave)) for place in faults.PLACES for name, leave in ways()}
    widths = faults.WIDTHS[:3]
    for how, options in {"serial": {}, "two workers": {"jobs": 2}}.items():
        with faults.nothing_left(_recorded(builds)) as watched, contextlib.redirect_stderr(io.StringIO()):
            labels = {label: _of_label(watched, label) for label in builds} if not options else builds
            if options:  # there must be a model to look at; those of workers are gone with them
                with torch.random.fork_rng():
                    watched(("healthy", 16))
            report = coordcheck.check(labels, widths=widths, seeds=1, steps=1, probe=None, tolerance=100.0, **options)
        right = 0
        for label in builds:
            outcomes = {r.key.width: r.outcome.value for r in report.records if r.key.label == label}
            bad = widths if label.startswith("in_batch_of_seed") else (faults.BAD,)
            right += outcomes == {width: "failed" if width in bad else "finished" for width in widths}
        found = f"{right} of {len(builds)} end as specified, exit {report.exit_code}, no hook or global left"
        yield f"faults injected, {how}", found, "all, exit 3"


def ways() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from faults.LEAVING.items()


def _trial(options: dict[str, Any]) -> Callable[[int], Any]:
    """A build that brings its own loss and batch, so that all faults fit into one check."""
    build, loss, batch = options["build"], options.get("loss"), options.get("batch")

    def made(width: int) -> Any:
        model, optimizer = build(width)
        own = batch(1) if callable(batch) else pair_batch()
        return coordcheck.Trial(model, optimizer, batch=own, loss=loss or coordcheck.output_loss(F.cross_entropy))

    return made


def _recorded(builds: dict[str, Any]) -> Callable[[Any], Any]:
    def build(key: Any) -> Any:
        label, width = key
        if label == "healthy":
            return mlp("µP")(width)
        trial = builds[label](width)
        _recorded.trial = trial
        return trial.model, trial.optimizer

    return build


def _of_label(watched: Callable[[Any], Any], label: str) -> Callable[[int], Any]:
    def build(width: int) -> Any:
        watched((label, width))
        return _recorded.trial

    return build


# ---- processes that are killed


def killed(count: int) -> Iterator[Found]:
    """Random kill -9, then the same call again, against a check that nobody interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        _forked(lambda: check(mlp("µP"), save_to=Path(folder) / "whole")).join()
        started = time.perf_counter()
        _forked(lambda: check(mlp("µP"), save_to=Path(folder) / "timed")).join()
        length = time.perf_counter() - started
        whole = _runs(Path(folder) / "whole")
        for how, options, times in (("serial", {}, count), ("two workers", {"jobs": 2}, max(1, count // 20))):
            lost = changed = wrong = 0
            seconds = length if not options else length + 8
            for number in range(times):
                place = Path(folder) / f"{how}-{number}"
                process = _forked(lambda place=place, options=options: check(mlp("µP"), save_to=place, **options))
                time.sleep(random.uniform(0, seconds))
                process.kill()
                process.join()
                before = {path: path.read_bytes() for path in place.rglob("*-*.json")}
                _forked(lambda place=place: check(mlp("µP"), save_to=place)).join()
                lost += sum(not path.exists() for path in before)
                changed += sum(path.exists() and path.read_bytes() != data for path, data in before.items())
                wrong += _runs(place) != whole
            found = f"{times} kills: {lost} runs lost, {changed} rewritten, {wrong} folders unlike an uninterrupted one"
            yield f"kill -9 at random, {how}, resumed", found, "0, 0, 0"


def _forked(work: Callable[[], Any]) -> multiprocessing.Process:
    def quiet() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()

    process = multiprocessing.get_context("fork").Process(target=quiet)
    process.start()
    return process


def _runs(folder: Path) -> dict[str, Any]:
    """Every run file without the time that it took."""
    found = {}
    for path in sorted((folder / "runs").rglob("*.json")):
        content = json.loads(path.read_bytes())["content"]
        found[path.name] = {name: value for name, value in content.items() if name != "seconds"}
    return found


def signalled(count: int) -> Iterator[Found]:
    """Signals at random moments of a command, from its first instant on."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "-m", "coordcheck", "run", "coordcheck.checks.demo:build_sp", "--seeds", "200"]
        right = total = lost = 0
        for number in range(max(3, count // 4)):
            which = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP][number % 3]
            place = Path(folder) / str(number)
            with subprocess.Popen(
                [*arguments, "--save-to", place], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            ) as process:
                time.sleep(random.uniform(0.0, 12.0))
                process.send_signal(which)
                code = process.wait(timeout=60)
            total += 1
            right += code in (128 + which, -which)  # the latter before Python has read a line of ours
            for path in place.rglob("*-*.json"):
                with contextlib.suppress(RunFileError):
                    RunFolder(place).find(RunKey("build_sp", *map(int, path.stem.split("-"))))
                    continue
                lost += 1
        found = f"{right} of {total} exit codes are right, {lost} damaged files"
        yield "signals at random, from the first instant on", found, "all, 0"


# ---- disks


def torn(count: int) -> Iterator[Found]:
    """A run file that is cut at every byte."""
    with tempfile.TemporaryDirectory() as folder:
        report = check(mlp("µP"), seeds=1, steps=4, save_to=folder)
        path = RunFolder(folder).run_path(report.records[0].key)
        data, accepted = path.read_bytes(), 0
        for length in range(len(data)):
            path.write_bytes(data[:length])
            try:
                RunFolder(folder).find(report.records[0].key)
                accepted += 1
            except RunFileError:
                continue
        path.unlink()
        again = check(mlp("µP"), seeds=1, steps=4, save_to=folder)
        found = f"{len(data)} offsets: {accepted} accepted; the same check without it: exit {again.exit_code}"
        yield "a run file cut at every byte", found, "0 accepted, exit 0"


def full(count: int) -> Iterator[Found]:
    """The k-th write to the disk fails, for every k: run files, figure, page."""
    destroyed = passed = k = 0
    with tempfile.TemporaryDirectory() as folder:
        old = {name: f"old {name}".encode() for name in ("check.svg", "check.html")}
        writes = True
        while writes:
            for name, data in old.items():
                (Path(folder) / name).write_bytes(data)
            with _failing_write(k) as state:
                try:
                    report = check(mlp("µP"), seeds=1, save_to=Path(folder) / str(k))
                    code = report.exit_code
                    report.figure(path=Path(folder) / "check.svg")
                    report.save_html(Path(folder) / "check.html")
                except coordcheck.CoordCheckError as error:
                    code = error.exit_code
            writes = state["failed"]
            passed += writes and code == 0 and not state["retried"]
            for name, data in old.items():
                found = (Path(folder) / name).read_bytes()
                destroyed += found != data and not found.startswith((b"<?xml", b"<!DOCTYPE", b"<!doctype"))
            k += writes
    found = f"{k} writes: {destroyed} files destroyed, {passed} successes claimed"
    yield "the k-th write fails, for every k", found, "0, 0"


@contextlib.contextmanager
def _failing_write(k: int) -> Iterator[dict[str, Any]]:
    sync, state, calls = os.fsync, {"failed": False, "retried": False}, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == k + 1:
            state["failed"] = True
            raise OSError(28, "No space left on device")
        state["retried"] |= state["failed"]  # there is room again, and what failed is tried once more
        sync(descriptor)

    os.fsync = fsync
    try:
        yield state
    finally:
        os.fsync = sync


# ---- numbers and times


def determinism(count: int) -> Iterator[Found]:
    """The same runs here, in workers, and in a pool of spawned processes."""
    serial = check(mlp("SP"), seeds=2, probe="auto")
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        others = {
            "two workers": check(mlp("SP"), seeds=2, probe="auto", jobs=2),
            "spawned": check(mlp("SP"), seeds=2, probe="auto", executor=pool),
            "widths in another order": check(mlp("SP"), seeds=[1, 0], widths=(64, 16, 32), probe="auto"),
        }
    by_key = {record.key: record for record in serial.records}
    for how, report in others.items():
        pairs = [largest_difference(by_key[record.key], record) for record in report.records]
        values = sum(pair.values for pair in pairs)
        yield f"serial against {how}", f"{values} values, largest difference {max(p.relative for p in pairs):g}", "0"


def journal(count: int) -> Iterator[Found]:
    """Milliseconds to save a run, the lock of the folder included."""
    with tempfile.TemporaryDirectory() as folder:
        record = check(mlp("µP"), seeds=1, steps=4).records[0]
        keeper, times = FolderKeeper(RunFolder(folder), Claims(Path(folder))), []
        for seed in range(max(20, count)):
            record.key = RunKey("net", 16, seed)
            started = time.perf_counter()
            keeper.save(record)
            times.append(1e3 * (time.perf_counter() - started))
    yield "a run is saved", f"{statistics.median(times):.1f} ms", "<= 10 ms"


def starts(count: int) -> Iterator[Found]:
    """How long the parts take to start, each beside the same without it."""
    help_, bare = _seconds("-m", "coordcheck", "--help"), _seconds("-c", "pass")
    yield "coordcheck --help", f"{help_:.2f} s (python alone {bare:.2f} s)", "<= 0.3 s"
    both = "import torch, coordcheck"
    yield "import coordcheck, beside torch", f"{1e3 * _import_seconds(both):.0f} ms", "<= 50 ms"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_one.py").write_text("def test(): pass\n", encoding="utf-8")
        usual = _seconds("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:coordcheck", folder)
        with_plugin = _seconds("-m", "pytest", "-q", "-p", "no:cacheprovider", folder)
    yield "the pytest plugin", f"{1e3 * (with_plugin - usual):.0f} ms of {with_plugin:.2f} s", "<= 20 ms"


# as installed: where bytecode is forbidden, every start compiles all that it imports
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _seconds(*arguments: str) -> float:
    """The least of five, which the load of a machine disturbs least."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, env=COMPILED)
        times.append(time.perf_counter() - started)
    return min(times)


def _import_seconds(statement: str) -> float:
    code = f"import torch, time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def fuzzed(count: int) -> Iterator[Found]:
    """Run files that were changed at random, with and without a checksum that is right."""
    from fuzz import figures

    found = figures(100 * count)
    yield "run files fuzzed", ", ".join(f"{name} {value:g}" for name, value in found.items()), "no crash, none silent"


EXPERIMENTS = (injected, killed, signalled, torn, full, determinism, journal, starts, fuzzed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="repetitions of what is random (default: %(default)s)")
    parser.add_argument("--only", choices=[experiment.__name__ for experiment in EXPERIMENTS])
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    print("| what is done | found | goal |\n|---|---|---|")
    for experiment in EXPERIMENTS:
        if options.only in (None, experiment.__name__):
            for line in experiment(options.count):
                print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
