"""Numbers that processes tell each other without asking: a small shared file, one writer for each cell."""

from __future__ import annotations

import mmap
from pathlib import Path

CELL_BYTES = 8
CELLS_MAX = 256


class Counters:
    """Whole numbers in a file. A cell has one writer; anybody reads. Eight aligned bytes are written at one stroke."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), CELL_BYTES * CELLS_MAX)
        self._cells = memoryview(self._map).cast("q")

    @classmethod
    def create(cls, path: Path) -> Counters:
        path.write_bytes(b"\0" * (CELL_BYTES * CELLS_MAX))
        return cls(path)

    def __getitem__(self, cell: int) -> int:
        return self._cells[cell]

    def __setitem__(self, cell: int, value: int) -> None:
        self._cells[cell] = value

    def total(self, first: int, count: int) -> int:
        return sum(self._cells[first : first + count])


FINISHED = 0
"""Workflows finished, a cell for each executor from here on."""
STARTED = 128
"""Workflows handed to the engine (children included), a cell for each client from here on."""
EXECUTORS_MAX = STARTED - FINISHED
CLIENTS_MAX = CELLS_MAX - STARTED
