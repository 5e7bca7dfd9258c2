"""What one run waits for, other than steps: deadlines, messages, children. Made when it first waits: most never do."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from random import Random
from typing import TYPE_CHECKING

import msgspec

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.model.history import EntryKind, History
from sharded_wf.workflow.commands import ChildCommand, ReceiveCommand, TimerCommand, read_message
from sharded_wf.workflow.mailbox import Mailbox
from sharded_wf.workflow.replay import LIVE

if TYPE_CHECKING:
    from sharded_wf.workflow.events import WaitEventCommand
    from sharded_wf.workflow.host import Host


class Waits:
    """Deadlines, the mailbox, and those who wait for messages and children."""

    __slots__ = (
        "alarm",
        "child_counts",
        "children",
        "event_counts",
        "events",
        "host",
        "limit_alarm",
        "limit_us",
        "mailbox",
        "notices",
        "receivers",
        "retries",
        "returned",
        "send_counts",
        "streams",
        "timed_out",
        "timers",
    )

    def __init__(self, host: Host, history: History) -> None:
        self.host = host
        self.timers: list[tuple[Microseconds, int, TimerCommand]] = []
        self.alarm: asyncio.TimerHandle | None = None
        self.retries: dict[int, Microseconds] = {}
        """Steps that wait for their next attempt: when it is due, by place."""
        self.mailbox = Mailbox()
        for entry in history.entries:
            if entry.kind is EntryKind.MESSAGE:
                message = read_message(entry)
                self.mailbox.remember(message.sender, entry.name, message.seq)
        self.receivers: dict[str, deque[ReceiveCommand]] = {}
        self.returned: dict[str, deque[msgspec.Raw]] = {}
        """Messages that are recorded and that no code has received."""
        self.children: dict[str, ChildCommand] = {}
        self.child_counts: dict[str, int] = {}
        self.send_counts: dict[tuple[str, str], int] = {}
        self.event_counts: dict[str, int] = {}
        self.events: dict[tuple[str, str], list[WaitEventCommand]] = {}
        """Those who wait for an event, by workflow and key."""
        self.limit_us: Microseconds | None = None
        """When the workflow's time is over; ``None`` when it has been told so."""
        self.limit_alarm: asyncio.TimerHandle | None = None
        self.timed_out = False
        """Whether the code has been told that its time is over."""
        self.notices: set[str] = set()
        """Senders of messages about events, by which each is known, that have been acted on."""
        self.streams: dict[str, Random] = {}
        """Random numbers that the code has begun to draw."""

    def arm(self, timer: TimerCommand) -> None:
        """Wait for a timer's deadline."""
        heapq.heappush(self.timers, (timer.deadline_us, timer.place, timer))
        if self.timers[0][2] is timer:
            self._set_alarm()

    def deadline(self) -> Microseconds | None:
        """The earliest moment at which something is due, or ``None``."""
        timers = self._live_timers()
        deadline = timers[0][0] if timers else None
        if self.retries:
            earliest = min(self.retries.values())
            deadline = earliest if deadline is None else min(deadline, earliest)
        if self.limit_us is not None:
            deadline = self.limit_us if deadline is None else min(deadline, self.limit_us)
        return deadline

    def stop(self) -> None:
        """No deadline matters any more."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        if self.limit_alarm is not None:
            self.limit_alarm.cancel()

    def _live_timers(self) -> list[tuple[Microseconds, int, TimerCommand]]:
        """The heap of timers, with one on top that nobody gave up."""
        timers = self.timers
        while timers and timers[0][2].phase != LIVE:
            heapq.heappop(timers)
        return timers

    def _set_alarm(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        timers = self._live_timers()
        if timers:
            delay_us = max(0, timers[0][0] - self.host.clock.now_us())
            self.alarm = self.host.loop.call_later(delay_us / SECOND_US, self._ring)

    def _ring(self) -> None:
        self.alarm = None
        now_us = self.host.clock.now_us()
        while (timers := self._live_timers()) and timers[0][0] <= now_us:
            heapq.heappop(timers)[2].fire()
        self._set_alarm()
