"""Time, in one place, so that tests can replace it.

The engine knows two kinds of time. *Wall time* is stored and compared between machines: whole microseconds since the
Unix epoch, as an ``int``, because that is what Postgres keeps and what replay must give back exactly. *Monotonic time*
measures how long something took on this machine: seconds, as a ``float``, never stored.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sharded_wf.limits import TIMER_MAX_SECONDS

Microseconds = int
"""A wall time: whole microseconds since the Unix epoch (UTC)."""

SECOND_US: int = 1_000_000
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What the engine asks of a clock."""

    def now_us(self) -> Microseconds:
        """The wall time, in whole microseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_us(self) -> Microseconds:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM_CLOCK: Clock = SystemClock()


def seconds_of(duration: timedelta | float) -> float:
    """A duration as seconds: ``timedelta`` or a number of seconds, everywhere in the public surface. Raises
    ``TypeError`` for anything else."""
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    given: object = duration
    if isinstance(given, str):  # which float() would take
        raise TypeError(f"a duration is a timedelta or a number of seconds, not {given!r}")
    return float(duration)


def microseconds_of(duration: timedelta | float) -> int:
    """A duration to wait, at least 0, at most the longest timer: what is added to a wall time can still be stored.
    Raises as ``seconds_of``; ``ValueError`` for NaN."""
    seconds = seconds_of(duration)
    if math.isnan(seconds):
        raise ValueError("a duration can't be NaN")
    return max(0, round(min(seconds, TIMER_MAX_SECONDS) * SECOND_US))
