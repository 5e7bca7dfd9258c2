"""The pace of group commits.

A transaction over many slots costs a statement for each of them, however few rows it carries. So where rows come all
the time, but slower than the machine could take them, transactions that follow each other at once use it up with
statements of one row. A few milliseconds between their beginnings, and each carries several times as much.
"""

from __future__ import annotations

import asyncio

from sharded_wf.clock import Clock
from sharded_wf.limits import GATHER_MIN_ROWS


class Gathering:
    """Keeps the transactions of one loop so many seconds apart while there is much to do."""

    __slots__ = ("_begun", "_clock", "_rows", "_seconds")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._begun = 0.0
        self._rows = 0

    async def waited(self) -> bool:
        """Wait until the next transaction may begin: not at all if the last one carried little, or took long. Whether
        there was anything to wait for: meanwhile all may have changed."""
        if self._rows < GATHER_MIN_ROWS:
            return False
        left = self._begun + self._seconds - self._clock.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(left)
        return True

    def note(self, begun: float, rows: int) -> None:
        """A transaction that began at this moment (monotonic) carries so many rows."""
        self._begun = begun
        self._rows = rows
