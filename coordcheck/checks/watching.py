"""What is said of runs while a check goes on."""

from __future__ import annotations

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.records import RunRecord


class WidthWatch:
    """Refuses a factory that ignores its width, as soon as two widths of one label have been built."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, list[tuple[str, tuple[int, ...]]]]] = {}

    def __call__(self, record: RunRecord) -> None:
        if not record.finished:
            return
        shapes = [(info.name, info.shape) for info in record.parameters]
        width, other = self._seen.setdefault(record.key.label, (record.key.width, shapes))
        if width != record.key.width and shapes == other:
            raise CoordCheckError(
                f"build of {record.key.label!r} made models with equal parameter shapes at widths {width} and "
                f"{record.key.width}: does the factory use its width argument? If another axis is checked, "
                'name it: axis="depth".'
            )
