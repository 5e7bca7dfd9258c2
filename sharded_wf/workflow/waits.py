"""What one run waits for, other than steps: deadlines, messages, children. Made when it first waits: most never do."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING

import msgspec

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.model.history import EntryKind, History, continuation_of, read_cancellation
from sharded_wf.model.workflow import CANCEL_TOPIC
from sharded_wf.workflow.child_commands import CancelChildCommand, StartCommand
from sharded_wf.workflow.commands import ChildCommand, ReceiveCommand, TimerCommand, read_message
from sharded_wf.workflow.mailbox import Mailbox
from sharded_wf.workflow.replay import LIVE

if TYPE_CHECKING:
    from sharded_wf.model.workflow import Outcome, Start
    from sharded_wf.workflow.events import WaitEventCommand
    from sharded_wf.workflow.host import Host


class EventWaits:
    """The events of other workflows that one waits for."""

    __slots__ = ("told", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[tuple[str, str], list[WaitEventCommand]] = {}
        """Who waits, by workflow and key."""
        self.told: set[str] = set()
        """Senders of messages about events, by which each is known, that have been acted on."""


class Waits:
    """Deadlines, the mailbox, and those who wait for messages and children."""

    __slots__ = (
        "alarm",
        "cancelled_children",
        "cancelling",
        "cancels",
        "child_counts",
        "children",
        "cleanup_alarm",
        "cleanup_until",
        "cleanup_us",
        "closing",
        "ending",
        "epoch",
        "events",
        "heard_since",
        "host",
        "last_timer",
        "limit_alarm",
        "limit_us",
        "logged",
        "mailbox",
        "out_of_time",
        "outcome",
        "patches",
        "pausing",
        "receivers",
        "resumed_at",
        "resumes",
        "retries",
        "returned",
        "sagas",
        "send_counts",
        "starting",
        "starts",
        "streams",
        "timed_out",
        "timers",
        "unbegun",
        "unborn",
        "undone_from",
    )

    def __init__(self, host: Host, history: History) -> None:
        self.host = host
        self.timers: list[tuple[Microseconds, int, TimerCommand]] = []
        self.alarm: asyncio.TimerHandle | None = None
        self.retries: dict[int, Microseconds] = {}
        """Steps that wait for their next attempt: when it is due, by place."""
        self.mailbox = Mailbox()
        self.resumed_at = 0
        """The ordinal of the last resume that the history has; 0: there was none."""
        self.resumes = 0
        """How many it has."""
        self._remember(history)
        self.receivers: dict[str, deque[ReceiveCommand]] = {}
        self.returned: dict[str, deque[msgspec.Raw]] = {}
        """Messages that are recorded and that no code has received."""
        self.children: dict[str, ChildCommand] = {}
        self.child_counts: dict[str, int] = {}
        self.send_counts: dict[tuple[str, str], int] = {}
        self.starting: set[str] = set()
        """Children that are asked for and not known to exist yet."""
        self.starts: dict[str, StartCommand] = {}
        """Those of them that the code goes on beside."""
        self.heard_since: dict[str, int] = {}
        """Children that were resumed with the workflow: the least number of an outcome that is not void."""
        self.closing: dict[str, None] = {}
        """Children to be cancelled when the workflow ends."""
        self.cancelling: dict[str, CancelChildCommand] = {}
        """Children that the code wants cancelled, until they are told."""
        self.cancelled_children: set[str] = set()
        """Children of which the code knows that they were told to end."""
        self.ending: Callable[[], None] | None = None
        """How the run ends, once the children that are to be told of it exist."""
        self.outcome: Outcome | None = None
        self.unborn: set[str] = set()
        """It has its outcome, and these of the children that are to be told of that do not exist yet."""
        self.unbegun: list[Start] = []
        """Children to be cancelled when the workflow ends, whose start the code gave up on replay: an executor that had
        the workflow before may have begun it."""
        self.cleanup_until: Microseconds | None = None
        """It was cancelled, and this is when its clean-up must be over, unless a saga is open."""
        self.cleanup_us: Microseconds = 0
        """How long it has for that."""
        self.cleanup_alarm: asyncio.TimerHandle | None = None
        self.sagas = 0
        """How many sagas are open; only the code's own thread changes it."""
        self.undone_from: int | None = None
        """Since it was cancelled work has been undone, or begun to be, that began with the step of this number."""
        self.pausing = False
        """It is paused: nothing new begins."""
        self.epoch = 0
        """How often the workflow was resumed."""
        self.last_timer: int | None = None
        """The place of the timer that went off last."""
        self.logged = False
        """Whether the code has logged since it was parked or taken up."""
        self.cancels: dict[int, float] = {}
        """Requests to cancel that are being recorded: by place, the seconds to clean up."""
        self.patches: dict[str, bool] | None = None
        """Which way the code took at each patch, once it was asked."""
        self.events: EventWaits | None = None
        """Which events it waits for, once it did."""
        self.streams: dict[str, Random] | None = None
        """Random numbers that the code has begun to draw."""
        self.limit_us: Microseconds | None = None
        """When the workflow's time is over; ``None`` when it has been told so."""
        self.limit_alarm: asyncio.TimerHandle | None = None
        self.out_of_time = self.timed_out = False
        """Whether the history says that its time is over, or will; whether the code has been told."""
        if history.entries and history.entries[0].kind is EntryKind.CONTINUED:
            self._take_over(history)

    def _remember(self, history: History) -> None:
        """What was received is not received again. Requests to cancel are forgotten when the workflow is resumed: who
        made one may make another."""
        cancelled_by: list[str] = []
        for entry in history.entries:
            if entry.kind is EntryKind.MESSAGE:
                message = read_message(entry)
                self.mailbox.remember(message.sender, entry.name, message.seq)
            elif entry.kind is EntryKind.CANCEL and (sender := read_cancellation(entry.output).sender) is not None:
                cancelled_by.append(sender)
            elif entry.kind is EntryKind.RESUME:
                cancelled_by.clear()
                self.resumed_at = entry.ordinal
                self.resumes += 1
        for sender in cancelled_by:
            self.mailbox.remember(sender, CANCEL_TOPIC, 1)

    def _take_over(self, history: History) -> None:
        """Go on with what the run before has left."""
        before = continuation_of(history)
        assert before is not None
        for sender, topic, seq in before.received:
            self.mailbox.remember(sender, topic, seq)
        self.returned = {topic: deque(payloads) for topic, payloads in before.returned.items()}
        self.child_counts = dict(before.children)
        self.closing = dict.fromkeys(before.closing)

    def untold(self, children: Iterable[str]) -> tuple[str, ...]:
        """Those among these children that were not told to end."""
        return tuple(id_ for id_ in children if id_ not in self.cancelled_children)

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
        if self.cleanup_until is not None and not self.sagas:
            deadline = self.cleanup_until if deadline is None else min(deadline, self.cleanup_until)
        if self.limit_us is not None:
            deadline = self.limit_us if deadline is None else min(deadline, self.limit_us)
        return deadline

    def stop(self) -> None:
        """No deadline matters any more."""
        self._silence()
        self.end_cleanup()
        if self.limit_alarm is not None:
            self.limit_alarm.cancel()

    def end_cleanup(self) -> None:
        """There is no deadline for a clean-up any more."""
        self.cleanup_until = None
        if self.cleanup_alarm is not None:
            self.cleanup_alarm.cancel()
            self.cleanup_alarm = None

    def _silence(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None

    def _live_timers(self) -> list[tuple[Microseconds, int, TimerCommand]]:
        """The heap of timers, with one on top that nobody gave up."""
        timers = self.timers
        while timers and timers[0][2].phase != LIVE:
            heapq.heappop(timers)
        return timers

    def _set_alarm(self) -> None:
        self._silence()
        timers = self._live_timers()
        if timers:
            delay_us = max(0, timers[0][0] - self.host.clock.now_us())
            self.alarm = self.host.loop.call_later(delay_us / SECOND_US, self.ring)

    def ring(self) -> None:
        """Fire what is due, and set the alarm for the rest."""
        self._silence()
        now_us = self.host.clock.now_us()
        while (timers := self._live_timers()) and timers[0][0] <= now_us:
            heapq.heappop(timers)[2].fire()
        self._set_alarm()
