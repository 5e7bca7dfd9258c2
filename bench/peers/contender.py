"""What a contender is, and the rules that hold for all of them.

Counts are read from the contender's own tables after its processes have ended: how many rows say, by their own times,
that they were started, or finished, within the window. What a client or worker believes is used for one thing only: how
far the client may run ahead. All run ahead by the same rule, one second of work, so that nobody is measured while it
eats what was heaped up before the window.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.context
import multiprocessing.sharedctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg

SPAWN = multiprocessing.get_context("spawn")  # no peer inherits another one's imports, loops or locks
AHEAD_MIN = 1_000  # unfinished workflows that a client may always have
AHEAD_MAX = 30_000  # as the bare loop's
TOLD_SECONDS = 0.05  # how often a worker tells what it has finished
PAUSE_SECONDS = 0.005  # how long a client waits that is too far ahead
WARM_UP_SECONDS = 4.0  # imports, connections, first batches

Counter = multiprocessing.sharedctypes.Synchronized
Process = multiprocessing.context.SpawnProcess


@dataclass(frozen=True)
class Shape:
    """What is the same for all contenders of a run."""

    steps: int
    executors: int
    slots: int


@dataclass(frozen=True)
class Window:
    """The measured time, by the server's own clock (Unix time in seconds)."""

    begin: float
    end: float


@dataclass(frozen=True)
class Count:
    """What the tables say: started and finished within the window; steps recorded and workflows finished in all."""

    started: int
    finished: int
    finished_in_all: int
    steps_in_all: int


@dataclass
class Told:
    """How many workflows the workers say they have finished; for the client's pace alone."""

    finished: Counter[int] = field(default_factory=lambda: SPAWN.Value("q", 0))

    def add(self, count: int) -> None:
        with self.finished.get_lock():
            self.finished.value += count

    async def follow(self, read: Callable[[], int]) -> None:
        """Tell, for ever, how far ``read`` has come."""
        told = 0
        while True:
            await asyncio.sleep(TOLD_SECONDS)
            now = read()
            self.add(now - told)
            told = now


@dataclass
class Pace:
    """How far a client may run ahead: by the most that was finished within a second, within bounds."""

    told: Told
    started: int = 0
    ahead: int = AHEAD_MIN
    seen_at: float = field(default_factory=time.monotonic)
    seen: int = 0

    def may_start(self, batch: int) -> bool:
        """Whether ``batch`` more may be started; if so they count as started."""
        finished, now = self.told.finished.value, time.monotonic()
        if now - self.seen_at >= 1:
            rate = (finished - self.seen) / (now - self.seen_at)
            self.ahead = round(min(max(rate, self.ahead), AHEAD_MAX))  # never less: a client that pauses starts nothing
            self.seen, self.seen_at = finished, now
        if self.started + batch - finished > max(self.ahead, batch):
            return False
        self.started += batch
        return True


class Contender(Protocol):
    """One that is compared. Its processes are started by ``compare``, and killed by it."""

    @property
    def name(self) -> str: ...

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions that it needs; the first one's version is reported."""
        ...

    @property
    def unit(self) -> str:
        """What it counts: ``workflows``, or ``jobs`` where there are no steps."""
        ...

    @property
    def has_steps(self) -> bool: ...

    @property
    def not_like_for_like(self) -> str:
        """One sentence: in what it owes more or less than the others; empty if it is the measure."""
        ...

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings that differ from its defaults, for the report."""
        ...

    def prepare(self, dsn: str, shape: Shape) -> None:
        """Makes its tables in the empty database ``dsn``."""
        ...

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        """The client and ``shape.executors`` workers, not yet started; ``told`` must live as long as they."""
        ...

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count: ...


def query_count(connection: psycopg.Connection[Any], statement: str, window: Window) -> Count:
    """Runs a statement that gives the four numbers of a ``Count``; ``%(begin)s`` and ``%(end)s`` are the window."""
    row = connection.execute(statement.encode(), {"begin": window.begin, "end": window.end}).fetchone()
    assert row is not None
    return Count(*(int(number or 0) for number in row))
