"""Time, in one place, so that tests can replace it.

The engine knows two kinds of time. *Wall time* is stored and compared between machines: whole microseconds since the
Unix epoch, as an ``int``, because that is what Postgres keeps and what replay must give back exactly. *Monotonic time*
measures how long something took on this machine: seconds, as a ``float``, never stored.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

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
    """A duration as seconds: ``timedelta`` or a number of seconds, everywhere in the public surface."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
