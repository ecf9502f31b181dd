"""What a recorder leaves of a run: its record, in a file, by way of other ranks where there are any."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Set
from os import PathLike

from coordcheck.common.escaping import printable
from coordcheck.recording.distributed.reduction import SharedRun
from coordcheck.recording.step_counter import StepCounter
from coordcheck.runs.files import RunFolder
from coordcheck.runs.records import RunRecord, kept
from coordcheck.runs.words import Outcome


class RecordedRun:
    """One run's record, and where it goes.

    Args:
        record: the record.
        save_to: a folder for the run file, if there is to be one.
        ranks: those that train the model together, where there are several.

    Attributes:
        begun: whether the recording was begun, which it is once.

    Raises:
        CoordCheckError: `save_to` is no folder.
    """

    def __init__(self, record: RunRecord, save_to: str | PathLike[str] | None, ranks: Set[int]) -> None:
        self.record = record
        self._folder = None if save_to is None else RunFolder(save_to)
        self._shared = SharedRun(record, set(ranks)) if ranks else None
        self._started = 0.0
        self.begun = False

    def probe(self) -> None:
        """Make sure that a file can be written.

        Raises:
            CoordCheckError: it cannot.
        """
        if self._folder is not None:
            self._folder.probe()

    def begin(self) -> None:
        """The recording begins."""
        self.begun, self._started = True, time.perf_counter()
        if self._shared is not None:
            self._shared.begin()

    def note_failure(self, error: Exception) -> None:
        """What went wrong inside of the recorder becomes a note and a line in the log, once."""
        note = kept(f"recording failed: {type(error).__name__}: {error}")
        if note not in self.record.notes:
            self.record.notes.append(note)
            logging.getLogger("coordcheck").warning("%s", printable(note))

    def note_ending(self, error: BaseException | None, steps: StepCounter, *, probe_failed: bool) -> None:
        """Why the loop ended before everything was recorded, where it did."""
        record = self.record
        if steps.done:
            return
        if error is not None:
            record.outcome, record.reason = Outcome.FAILED, type(error).__name__
            record.reason = f"{type(error).__name__}: {error}"  # the text of an error may itself be one
        else:
            seen = "nothing" if steps.recorded is None else f"t=0..{steps.recorded}"
            why = ": the pass on the probe failed" if probe_failed else ""
            if steps.recorded is None and not why:
                why = ": no training call of the model was seen; was it compiled?"
            record.notes.append(f"width {record.key.width}: recorded {seen} of t=0..{steps.steps}{why}")

    def end(self, sizes: Mapping[tuple[int, int], int]) -> None:
        """The recording is over: the run file is written, or this rank's share handed in.

        Args:
            sizes: how many coordinates of this rank each row stands for, by site and step.
        """
        self.record.seconds = time.perf_counter() - self._started
        if self._shared is None:
            self._save()
        else:
            self._shared.hand_in(sizes)

    def gather(self, patience: float | None = None) -> None:
        """Write the run file of several ranks, on the one that does, once their shares are there."""
        if self._shared is not None and self._shared.gathered(patience):
            self._save()

    def _save(self) -> None:
        self.record.tidy()  # the other ranks' notes too
        if self._folder is not None:
            if self._folder.run_path(self.record.key).exists():
                logging.getLogger("coordcheck").warning(
                    "the run file of %s is replaced", printable(str(self.record.key))
                )
            self._folder.save(self.record)
