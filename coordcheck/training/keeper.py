"""Keeps what a sweep has finished in a folder: finds it again, saves it once, and tells what could not be saved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from coordcheck.common.errors import CoordCheckError, RunFileError
from coordcheck.runs.agreement import differences, largest_difference
from coordcheck.runs.claims import Claims
from coordcheck.runs.files import RunFolder
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.training.trials import Run


@contextmanager
def keeping(folder: RunFolder | None, runs: Sequence[Run]) -> Iterator[Keeper]:
    """A keeper for the runs of a sweep; meanwhile nobody else may make them with other settings in that folder.

    Yields:
        The keeper; without a folder, it finds and saves nothing.

    Raises:
        CoordCheckError: the folder cannot be written, or another process makes such runs with other settings.
    """
    if folder is None:
        yield Keeper()
        return
    folder.probe()
    claims = Claims(folder.path)
    with claims.claimed({run.key.label: run.settings for run in runs}):
        yield FolderKeeper(folder, claims)


class Keeper:
    """Keeps nothing: the sweep has no folder."""

    def found(self, runs: Sequence[Run]) -> dict[RunKey, RunRecord]:
        """The runs that need not be made again."""
        return {}

    def begin(self, write: Callable[[], None]) -> None:
        """Write down what is planned."""
        write()

    def save(self, record: RunRecord) -> None:
        """Save a run that has ended, a failed one as well."""

    def told(self, records: Sequence[RunRecord]) -> str:
        """Try once more to save what was not, note it where that fails, and say where the runs are."""
        return ""


class FolderKeeper(Keeper):
    """Keeps runs in a folder, which other processes may write into."""

    def __init__(self, folder: RunFolder, claims: Claims) -> None:
        self._folder, self._claims = folder, claims

    def found(self, runs: Sequence[Run]) -> dict[RunKey, RunRecord]:
        """The finished runs that the folder already holds, once their settings were compared.

        Raises:
            CoordCheckError: the folder holds a run of one of the labels that was made with other settings.
            RunFileError: a run file is damaged.
        """
        found = {}
        for label in dict.fromkeys(run.key.label for run in runs):
            other = next((record for record in self._folder.records_of(label) if record.finished), None)
            for run in (run for run in runs if run.key.label == label):
                record = self._folder.find(run.key)
                before = record if record is not None and record.finished else other
                if before is None:
                    continue
                self._compare(before, run)
                if before is record:
                    found[run.key] = record
        return found

    def _compare(self, before: RunRecord, run: Run) -> None:
        differing = differences(before.settings, run.settings)
        if differing:
            raise CoordCheckError(
                f"{self._folder} holds a run of {before.key} made with other settings: {'; '.join(differing)}. "
                f"{_hint(before.settings, run.settings)}Give another folder, or remove this one."
            )

    def begin(self, write: Callable[[], None]) -> None:
        with self._claims.locked():
            write()

    def save(self, record: RunRecord) -> None:
        """Save a run, unless another process has finished it meanwhile; what the disk refuses is kept in memory."""
        try:
            with self._claims.locked():
                before = None
                with suppress(RunFileError):  # one that is damaged is replaced
                    before = self._folder.find(record.key)
                if before is None or not before.finished:
                    self._folder.save(record)
                elif record.finished:
                    self._note_difference(record, before)
            record.unsaved = ""
        except CoordCheckError as error:
            record.unsaved = str(error)

    def _note_difference(self, record: RunRecord, before: RunRecord) -> None:
        """The same run, made twice: the first file stays, and it is told when the numbers are not the same."""
        found = largest_difference(before, record)
        if found.relative:
            record.notes.append(
                f"width {record.key.width}, seed {record.key.seed} was made by another process as well: {found}; the "
                "training is not deterministic"
            )

    def told(self, records: Sequence[RunRecord]) -> str:
        for record in records:
            if record.unsaved:
                self.save(record)
        if self._claims.problem and records:
            records[0].notes.append(self._claims.problem)
        unsaved = sum(bool(record.unsaved) for record in records)
        if unsaved:
            logging.getLogger("coordcheck").warning("%d of %d runs could not be saved", unsaved, len(records))
            return f" {unsaved} of them could not be saved in {self._folder}."
        if not records:
            return ""
        return f" They are saved in {self._folder}: the same call resumes."


def _hint(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Why settings differ that the user may not have changed knowingly."""
    if before.get("fingerprints") != after.get("fingerprints"):
        return "Another version of coordcheck wrote it, and noted less, or more, of what a build reads. "
    if before.get("batch") != after.get("batch"):
        return "Is the batch random? Call torch.manual_seed before making it. "
    return (
        "jobs= and torch.set_num_threads decide the threads. " if before.get("threads") != after.get("threads") else ""
    )
