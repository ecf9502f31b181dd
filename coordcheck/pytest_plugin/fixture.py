"""What the fixture `coordcheck` is: one test's checks, each recorded, held against what it should be, and explained."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from coordcheck.common.errors import BaselineChanged, CoordCheckError, IncompleteCheck, RunFileError
from coordcheck.pytest_plugin.outcomes import Files, folder_name, properties, write_files
from coordcheck.pytest_plugin.settings import Settings, marked, on_the_command_line, resolved

if TYPE_CHECKING:
    from coordcheck.pytest_plugin.baselines import Baseline
    from coordcheck.reporting.report import Report

FOLDER = "coordcheck_baselines"
PLUGIN = "coordcheck.pytest_plugin"
WRITTEN = pytest.StashKey[dict[Path, tuple[str, int]]]()


class Stored(NamedTuple):
    """The baseline that a check names."""

    name: str
    path: Path
    content: Baseline | None
    tolerance: float


class Check:
    """Checks the models of one test; calling it is what `coordcheck.assert_width_invariant` is, with what pytest knows.

    Settings come from the command line, the call, the closest marker, the ini file, and the defaults of
    `coordcheck.check`, in this order: see `coordcheck.pytest_plugin.settings`.
    """

    def __init__(self, node: pytest.Item, settings: Settings) -> None:
        self._node, self._settings, self._number = node, settings, 0

    def __repr__(self) -> str:
        return "the fixture of coordcheck"  # pytest shows it above a failing test

    def __call__(
        self,
        build: Any,
        batch: Any = None,
        *,
        control: Any = None,
        baseline: str | None = None,
        baseline_tolerance: float | None = None,
        invariant: bool = True,
        **options: Any,
    ) -> Report:
        """Fail the test unless the model keeps its scale as it gets wider.

        Args:
            build: as for `coordcheck.check`.
            batch: as for `coordcheck.check`.
            control: a factory that must fail the same check, such as your model in SP: proof that it is not too weak.
            baseline: the name of stored exponents, which this check must find again; `--coordcheck-update` stores them.
            baseline_tolerance: how far an exponent may be from the stored one, 0.1 if not given.
            invariant: whether the exponents must be width-invariant, too; False holds a model with known faults to its
                baseline, and accepts whatever the verdict is.
            options: the other arguments of `coordcheck.check`.

        Returns:
            The report.

        Raises:
            NotWidthInvariant: (an AssertionError) a layer is violated.
            BaselineChanged: (an AssertionError) an exponent is not the stored one, or none is stored.
            IncompleteCheck: runs are missing, the evidence does not decide, or the control passed.
            RunFileError: the baseline is damaged, or a newer version wrote it.
            CoordCheckError: input that cannot be checked.
        """
        __tracebackhide__ = True  # a failing test shows its own line and the message
        self._number += 1
        self._record([("status", "bad input")], anew=True)  # until it is known better
        try:
            stored = None if baseline is None else self._stored(baseline, baseline_tolerance)
            chosen = resolved(self._settings, marked(self._node), options)
            return self._checked(build, batch, chosen, control, stored, invariant)
        except CoordCheckError as error:
            if self._node.config.getoption("fulltrace", False):
                raise
            raise error.with_traceback(None) from None

    def _checked(
        self, build: Any, batch: Any, options: dict[str, Any], control: Any, stored: Stored | None, invariant: bool
    ) -> Report:
        """Run the check, and raise with the whole explanation when anything is not as it should be."""
        from coordcheck.checks import assertions
        from coordcheck.checks import check as checks

        assertions.check_control(control)
        _known(options)
        with _share_of_the_cores():
            report = checks.check(build, batch, **options)
        self._record(properties(report))
        try:
            if invariant:
                report.raise_for_status()
            else:
                _measured(report)
            if control is not None:
                with _share_of_the_cores():
                    assertions.assert_control_fails(control, batch, **options)
            if stored is not None:
                self._hold_baseline(report, stored)
        except CoordCheckError as error:
            told = [str(error), *_moved(report, stored, error), self._files(report, always=True)]
            raise type(error)("\n".join([*told, f"rerun: {self._command()}"])) from None
        self._files(report, always=self._settings.report_all)
        return report

    def _record(self, found: Iterable[tuple[str, Any]], *, anew: bool = False) -> None:
        """Put properties of this check on the test: they reach JUnit files, and the summary under pytest-xdist.

        `anew` forgets what an earlier attempt of the test left, where a plugin repeats tests.
        """
        prefix = "coordcheck" if self._number == 1 else f"coordcheck.{self._number}"
        named = {f"{prefix}.{name}": value for name, value in found}
        own = re.compile(re.escape(prefix) + r"\.[a-z_]+")
        kept = [p for p in self._node.user_properties if p[0] not in named and not (anew and own.fullmatch(p[0]))]
        self._node.user_properties[:] = [*kept, *named.items()]

    def _files(self, report: Report, *, always: bool) -> str:
        """Write figures, page and JSON where they are wanted, and say where they are."""
        if self._settings.report is None:
            return "files: none; --coordcheck-report=DIR writes the figures and the whole report"
        if not always:
            return ""
        suffix = "" if self._number == 1 else f"-{self._number}"
        files: Files = write_files(report, self._settings.report / (folder_name(self._test) + suffix))
        text = files.text(self._start)
        self._record([("files", text)])
        return f"files: {text}"

    def _stored(self, name: str, tolerance: float | None) -> Stored:
        """The baseline of a name, looked at before any time is spent on training."""
        from coordcheck.pytest_plugin.baselines import TOLERANCE
        from coordcheck.pytest_plugin.baselines.files import NewerBaseline, read_baseline
        from coordcheck.runs.numbers import positive

        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", name):
            raise CoordCheckError(
                f"baseline must be a name of 1 to 80 letters, digits, '-', '_' and '.', got {name!r:.90}. "
                "It becomes a file beside the test."
            )
        allowed = TOLERANCE if tolerance is None else positive("baseline_tolerance", tolerance)
        path = self._node.path.parent / FOLDER / self._node.path.stem / f"{name}.json"
        if path.exists():
            try:
                return Stored(name, path, read_baseline(path), allowed)
            except RunFileError as error:
                self._record([("status", "not checked"), ("baseline", f"damaged: {self._shown(path)}")])
                if isinstance(error, NewerBaseline):
                    raise
                if not self._settings.update:
                    raise RunFileError(f"{error}\n{self._advice('anew')}") from None
        elif not self._settings.update:
            self._record([("status", "not checked"), ("baseline", f"missing: {self._shown(path)}")])
            where = f"there is no baseline {name!r} yet ({self._shown(path)})."
            raise BaselineChanged(f"{where}\n{self._advice('it')}")
        return Stored(name, path, None, allowed)

    def _hold_baseline(self, report: Report, stored: Stored) -> None:
        """Compare with what is stored, or store it."""
        from coordcheck.pytest_plugin.baselines import baseline_of, compare
        from coordcheck.pytest_plugin.baselines.files import write_baseline

        path = self._shown(stored.path)
        found = None if stored.content is None else compare(stored.content, report, stored.tolerance)
        if found is not None and found.same:
            self._record([("baseline", f"same: {path}")])
            return
        if found is not None and not self._settings.update:
            self._record([("baseline", f"changed: {path}")])
            allowed = f"rule: an exponent may move by {stored.tolerance:g}, or by the 95 % interval of the difference"
            raise BaselineChanged(
                f"baseline {stored.name!r} ({path}): {found}\n{allowed}\n{self._advice('what changed')}"
            )
        owners, owner = self._node.config.stash.setdefault(WRITTEN, {}), (self._test, self._number)
        if owners.setdefault(stored.path, owner) != owner:
            raise BaselineChanged(
                f"the baseline {stored.name!r} was written a moment ago by {owners[stored.path][0]}, with other "
                "exponents. Give each check a name of its own."
            )
        write_baseline(stored.path, baseline_of(report))
        self._record([("baseline", f"written: {path}")])

    def _advice(self, what: str) -> str:
        return f"To write {what}, and then to review and commit it: {self._command('--coordcheck-update')}"

    @property
    def _start(self) -> Path:
        return self._node.config.invocation_params.dir

    def _shown(self, path: Path) -> str:
        """A path as one types it where pytest was started."""
        try:
            return Path(os.path.relpath(path, self._start)).as_posix()
        except ValueError:  # another drive
            return path.as_posix()

    @property
    def _test(self) -> str:
        """The test's id from the root folder, without what pytest-xdist adds to it."""
        return f"{self._node.nodeid.partition('::')[0]}::{self._names}"

    @property
    def _names(self) -> str:
        return "::".join(n.name for n in self._node.listchain() if isinstance(n, (pytest.Class, pytest.Item)))

    def _command(self, *options: str) -> str:
        """The command that runs this test again, quoted for a shell."""
        manager = self._node.config.pluginmanager
        # loaded by its name and not by the installed entry point, it has to be named again
        loading = [] if manager.has_plugin("coordcheck") else ["-p", PLUGIN]
        words = [*started_by(self._node.config), f"{self._shown(self._node.path)}::{self._names}", *loading]
        return shlex.join([*words, *on_the_command_line(self._settings.command_line), *options])


def started_by(config: pytest.Config) -> list[str]:
    """The words with which pytest was started: `python -m pytest` has the current folder on its path, `pytest` not.

    A program that is not the one that its name alone would find keeps its path.
    """
    workers = getattr(config, "workerinput", None)  # pytest-xdist's, whose own command says nothing
    program = Path((sys.argv if workers is None else workers.get("mainargv", [""]))[0] or "pytest")
    if program.name == "__main__.py":
        typed = sys.orig_argv[0] if workers is None and sys.orig_argv else "python"
        return [typed, "-m", "pytest"]
    found = shutil.which(program.name)
    if program.name not in ("pytest", "py.test") or (found and os.path.realpath(found) == os.path.realpath(program)):
        return ["pytest"]
    return [str(program)]


def _known(options: Mapping[str, Any]) -> None:
    """Refuse an option that `coordcheck.check` does not take, without a traceback through its callers."""
    from coordcheck.checks import check as checks
    from coordcheck.runs.arguments import suggestion

    parameters = inspect.signature(checks.check).parameters.values()
    known = [parameter.name for parameter in parameters]
    for name in options:
        if name not in known and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            raise CoordCheckError(f"coordcheck() takes no {name!r}{suggestion(name, known)}.")


@contextmanager
def _share_of_the_cores() -> Iterator[None]:
    """Under pytest-xdist a check uses its worker's share of the cores: threads that spin beside others' are slow."""
    import torch

    workers, before = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) // workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _moved(report: Report, stored: Stored | None, error: CoordCheckError) -> list[str]:
    """What changed against the baseline, where a check failed for another reason: it may be the cause."""
    if stored is None or stored.content is None or isinstance(error, BaselineChanged):
        return []
    from coordcheck.pytest_plugin.baselines import compare

    found = compare(stored.content, report, stored.tolerance)
    return [] if found.same else [f"baseline {stored.name!r}: {found}"]


def _measured(report: Report) -> None:
    """Raise when a check could not be made, whatever its verdict is."""
    from coordcheck.reporting.summaries import failure

    if report.missing or report.too_few_widths:
        raise (IncompleteCheck if report.missing else CoordCheckError)(failure(report))
