"""What retention removes, as JSON Lines: a file for each shard, process and day, that only grows.

A line is on the disk (fsync) before its workflow is deleted. So nothing is deleted that is not in a file; after a crash
between the two a workflow is exported once more, to another file, and the last line of the old one may be torn. ``id``
and ``created_at`` tell such copies apart from another workflow that had the same ID.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from sharded_wf.clock import SECOND_US, Clock


class Export:
    """The files of one process for one shard. Blocking: call it in a thread."""

    def __init__(self, directory: str | Path, shard: str, clock: Clock) -> None:
        self._directory = Path(directory)
        self._shard = shard
        self._clock = clock
        self._unique = uuid.uuid4().hex[:12]
        self._day = ""
        self._file: FileIO | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines, and return when they are on the disk. Raises ``OSError``; what was written may then be torn."""
        day = datetime.fromtimestamp(self._clock.now_us() / SECOND_US, UTC).strftime("%Y-%m-%d")
        if self._file is None or day != self._day:
            self._open(day)
        assert self._file is not None
        try:
            left = memoryview(b"".join([line.replace(b"\n", b" ") + b"\n" for line in lines]))
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self.close()
            self._unique = uuid.uuid4().hex[:12]  # whatever comes next must not be glued to a torn line
            raise

    def _open(self, day: str) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{self._shard}-{day}-{self._unique}.jsonl"
        self._file = FileIO(str(path), "ab")
        self._day = day
        directory = os.open(self._directory, os.O_RDONLY)  # the file's name must be on the disk, too
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
