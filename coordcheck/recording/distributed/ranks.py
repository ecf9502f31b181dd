"""One run that several ranks train together: their rows become those of the whole.

Nothing here is a collective. Every rank leaves what it recorded in the key-value store of `torch.distributed`, and the
lowest one reads it there: no rank ever waits inside the training, and one that failed, or recorded other layers, leaves
a note behind instead of a hang.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from coordcheck.common.errors import CoordCheckError
from coordcheck.recording.distributed.shards import spread_over
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.schemas import read_run

PATIENCE = 60.0  # seconds for which the end of the block waits for other ranks that recorded this run
ABSENCE = 10.0  # seconds for which it waits for ranks that did not even begin
PAUSE = 0.02  # seconds between two looks into the store
PIECE = 2**20  # bytes of one value in the store, which takes 8 MiB at most


class Share(NamedTuple):
    """What one rank recorded."""

    rank: int
    record: RunRecord
    sizes: Mapping[tuple[int, int], int]
    """How many coordinates this rank's rows of a site and step stand for."""


def sharing_ranks(model: nn.Module, group: Any = None) -> set[int]:
    """The ranks that train one model together with this one; empty when there are no others.

    Those of `group` where it is given; else those over which a DistributedDataParallel in the model, or a parameter
    that is a DTensor (`fully_shard`, `parallelize_module`), is spread. Plain models of several ranks are several runs.

    Raises:
        CoordCheckError: there is a group, but this rank is not in it.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return set()
    if group is not None:
        ranks = set(distributed.get_process_group_ranks(group))
    else:
        ranks = spread_over(model)
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                ranks |= set(distributed.get_process_group_ranks(module.process_group))
    if len(ranks) > 1 and distributed.get_rank() not in ranks:
        raise CoordCheckError(f"this is rank {distributed.get_rank()}, which group= does not hold ({listed(ranks)}).")
    return ranks if len(ranks) > 1 else set()


def own_rank() -> int:
    """The rank of this process among all of them."""
    return torch.distributed.get_rank()


class Exchange:
    """Where the ranks of one run leave what they recorded.

    Args:
        key: the run, the same on every rank; ranks of other runs are strangers.
        ranks: those that share it, as this rank sees it.

    Attributes:
        ranks: those that share it, as far as is known.

    Raises:
        CoordCheckError: the backend of the process group keeps no store.
    """

    _used: dict[RunKey, int] = {}

    def __init__(self, key: RunKey, ranks: Iterable[int]) -> None:
        from torch.distributed import distributed_c10d

        store = distributed_c10d._get_default_store()
        if store is None:
            raise CoordCheckError("this backend of torch.distributed keeps no store. Use gloo or nccl.")
        # a process may record one run twice, and the ranks do so equally often
        self._used[key] = turn = self._used.get(key, 0) + 1
        self._store: Any = distributed_c10d.PrefixStore(f"coordcheck/{key}/{turn}", store)
        self._rank, self.ranks = own_rank(), sorted(ranks)
        self._known: set[int] = set()
        self._store.set(f"{self._rank}", json.dumps(self.ranks))

    def leads(self, patience: float) -> bool:
        """Whether this is the lowest rank that takes part, which writes the run file.

        Lower ones that did not begin are waited for, `patience` seconds or `ABSENCE` at most; without any patience they
        are taken to be about to.
        """
        lower = [rank for rank in self.ranks if rank < self._rank]
        if not patience:
            return not lower
        until = time.monotonic() + min(patience, ABSENCE)
        while lower and time.monotonic() < until and not any(map(self._began, lower)):
            time.sleep(PAUSE)
        return not any(map(self._began, lower))

    def post(self, share: Share) -> None:
        """Leave what this rank recorded."""
        sizes = [[site, step, size] for (site, step), size in share.sizes.items()]
        data = zlib.compress(json.dumps({"record": share.record.to_json(), "sizes": sizes}).encode(), 1)
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"{share.rank}/{number}", piece)
        self._store.set(f"{share.rank}/pieces", str(len(pieces)))

    def complete(self) -> bool:
        """Whether every rank has left what it recorded."""
        return not self._missing()

    def gather(self, patience: float) -> list[Share]:
        """What the other ranks recorded, by rank.

        Those that began are waited for, `patience` seconds at most, and those that did not `ABSENCE`, if that is less.
        """
        start = time.monotonic()
        while missing := self._missing():
            most = patience if any(map(self._began, missing)) else min(patience, ABSENCE)
            if time.monotonic() - start >= most:
                break
            time.sleep(PAUSE)
        return [self._read(rank) for rank in self.ranks if rank != self._rank and rank not in missing]

    def _began(self, rank: int) -> bool:
        return bool(self._store.check([f"{rank}"]))

    def _missing(self) -> list[int]:
        """The ranks that have left nothing yet: of those this rank knows of, those that they know of, and so on."""
        asked = set[int]()
        while left := set(self.ranks) - asked:
            rank = min(left)
            asked.add(rank)
            if rank not in self._known and self._began(rank):
                self._known.add(rank)
                self.ranks = sorted({*self.ranks, *json.loads(self._store.get(f"{rank}"))})
        return [rank for rank in self.ranks if not self._store.check([f"{rank}/pieces"])]

    def _read(self, rank: int) -> Share:
        pieces = range(int(self._store.get(f"{rank}/pieces")))
        data = json.loads(zlib.decompress(b"".join(self._store.get(f"{rank}/{piece}") for piece in pieces)))
        sizes = {(site, step): size for site, step, size in data["sizes"]}
        return Share(rank, read_run(data["record"]), sizes)


def listed(ranks: Iterable[int]) -> str:
    """Ranks in words.

    >>> listed([1]), listed({0, 2, 1})
    ('rank 1', 'ranks 0, 1, 2')
    """
    ranks = sorted(ranks)
    return f"rank{'s' * (len(ranks) != 1)} {', '.join(map(str, ranks))}"


def notes_of(shares: Sequence[Share], expected: Sequence[int]) -> list[str]:
    """What the reader of the rows must know about the ranks; the first share is that of the writer."""
    first, *others = shares
    notes = list(first.record.notes)
    for share in others:
        if not share.record.finished:
            notes.append(f"rank {share.rank} failed: {share.record.reason}")
        notes += [f"rank {share.rank}: {note}" for note in share.record.notes if note not in first.record.notes]
    silent = set(expected) - {share.rank for share in shares}
    if silent:
        notes.append(
            f"{listed(silent)} handed in nothing: every scale is of {listed(p.rank for p in shares)} alone. "
            "Every rank needs its Recorder, of the same label, width and seed"
        )
    if others:
        notes.append(f"scales are those of {listed(share.rank for share in shares)} together")
        last = {share.rank: max((row.step for row in share.record.rows), default=-1) for share in shares}
        behind = {rank for rank, step in last.items() if step < max(last.values())}
        if behind:
            earliest = min(last[rank] for rank in behind) + 1
            notes.append(f"scales from t={earliest} on are not those of the whole: {listed(behind)} stopped before")
    return notes
