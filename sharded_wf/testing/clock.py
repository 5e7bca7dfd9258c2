"""A clock that can be set forward. Its wall time runs on with the machine's; its monotonic time is the machine's."""

from __future__ import annotations

from sharded_wf.clock import SYSTEM_CLOCK, Microseconds


class SkippingClock:
    """The wall time of one test, in executor and client alike, so that leases and connections' deadlines stay real."""

    def __init__(self, start: Microseconds | None = None) -> None:
        """``start``: what it shows now, in microseconds since the epoch; None: the time."""
        self._ahead_us = 0 if start is None else start - SYSTEM_CLOCK.now_us()

    def now_us(self) -> Microseconds:
        return SYSTEM_CLOCK.now_us() + self._ahead_us

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    def advance_to(self, moment: Microseconds) -> None:
        """Show this moment, or leave it if it has passed."""
        self._ahead_us += max(0, moment - self.now_us())
