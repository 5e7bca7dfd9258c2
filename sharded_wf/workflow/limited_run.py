"""What a run has besides its code: a time, random numbers, heartbeats of its steps, events, and an end of its time.

The part of ``WorkflowRun`` that most workflows never call.
"""

from __future__ import annotations

from abc import abstractmethod
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.errors import WorkflowTimedOut
from sharded_wf.model.history import Entry, EntryKind, Heartbeat, History
from sharded_wf.model.notices import read_notice
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Message, Outcome
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.commands import NULL
from sharded_wf.workflow.guarded import GuardedStepCommand
from sharded_wf.workflow.host import Host, Run
from sharded_wf.workflow.replay import LIVE, Replay
from sharded_wf.workflow.stop import RunDropped

if TYPE_CHECKING:
    from sharded_wf.workflow.waits import Waits


class LimitedRun(Run):
    """See ``WorkflowRun``, which sets these attributes."""

    __slots__ = ("attempt", "busy", "history", "host", "last_ordinal", "replay", "stopped", "waits")
    attempt: int
    busy: int
    history: History
    host: Host
    last_ordinal: int
    replay: Replay | None
    stopped: bool
    waits: Waits | None

    @abstractmethod
    def some_waits(self) -> Waits:
        """What it waits for, made now if nothing was so far."""

    @abstractmethod
    def take_place(self) -> int:
        """A place for an entry that no code asked for."""

    @abstractmethod
    def note_waiting(self) -> None:
        """Remember since when nothing is under way."""

    @abstractmethod
    def conclude(self, outcome: Outcome) -> None:
        """This is the outcome."""

    @abstractmethod
    def _command(self, place: int) -> Any: ...

    @abstractmethod
    def time_us(self) -> Microseconds:
        """The workflow's own time."""

    def stream(self, name: str) -> Random:
        """The random numbers of one stream; the workflow's ID and the beginning of its time are the seed."""
        if self.stopped:
            raise RunDropped
        streams = self.some_waits().streams
        found = streams.get(name)
        if found is None:
            seed = blake2b(f"{self.id}\0{self.started_at}\0{name}".encode("utf-8", "surrogatepass")).digest()
            found = streams[name] = Random(int.from_bytes(seed, "big"))
        return found

    def last_heartbeat(self, place: int) -> Heartbeat | None:
        """The last heartbeat that the history knows of the step at ``place``."""
        return next((beat for beat in self.history.heartbeats if beat.place == place), None)

    def record_heartbeat(self, beat: Heartbeat) -> None:
        if not self.stopped:
            self.busy += 1
            self.host.record_heartbeat(self, beat)

    def heartbeat_recorded(self, beat: Heartbeat) -> None:
        if self.stopped:
            return
        self.busy -= 1
        command = self._command(beat.place)
        if isinstance(command, GuardedStepCommand):
            command.heartbeat_recorded(beat)
        self.note_waiting()

    # Events

    def look_for_event(self, target: str, key: str) -> None:
        self.busy += 1
        self.host.look_for_event(self, target, key)

    def event_looked(self, workflow_id: str, key: str, value: bytes | None, error: BaseException | None) -> None:
        if self.stopped:
            return
        self.busy -= 1
        events = self.some_waits().events
        waiting = [command for command in events.get((workflow_id, key), ()) if command.phase == LIVE]
        if value is not None or error is not None:
            events.pop((workflow_id, key), None)
            for command in waiting:
                command.take(value, error)
        elif waiting:
            self.host.expect_messages(self)
        self.note_waiting()

    def event_told(self, waits: Waits, message: Message) -> None:
        """An event may have been set: look."""
        target, key = read_notice(message.sender)
        waiting = [command for command in waits.events.get((target, key), ()) if command.phase == LIVE]
        if waiting and message.sender not in waits.notices:
            waits.notices.add(message.sender)
            waiting[0].message = message
            self.look_for_event(target, key)

    # The time of the whole workflow

    def limit(self, deadline_us: Microseconds) -> bool:
        if any(entry.kind is EntryKind.TIMEOUT for entry in self.history.entries):
            return True
        host = self.host
        left_us = deadline_us - host.clock.now_us()
        if left_us <= 0 and self.attempt == 1:
            return False
        waits = self.some_waits()
        waits.limit_us = deadline_us
        # Not before the history has been replayed, which happens in the callbacks that come first.
        waits.limit_alarm = host.loop.call_later(max(0, left_us) / SECOND_US, self._time_is_over)
        return True

    def _time_is_over(self) -> None:
        waits = self.waits
        if self.stopped or waits is None or waits.limit_us is None:
            return
        since, waits.limit_us = waits.limit_us, None
        self.record_unasked(EntryKind.TIMEOUT, "timeout", since)

    def expire(self) -> None:
        self.conclude(Outcome(Status.FAILED, None, encode_error(timed_out(self.id))))

    def record_unasked(self, kind: EntryKind, name: str, since: Microseconds, consumed: Message | None = None) -> None:
        if self.replay is None:
            self.replay = Replay(self.history)
        self.busy += 1
        self.last_ordinal += 1
        now_us = self.host.clock.now_us()
        entry = Entry(self.take_place(), self.last_ordinal, kind, name, 0, NULL, None, since, now_us)
        self.host.record(self, entry, consumed)


def timed_out(workflow_id: str) -> WorkflowTimedOut:
    """The error of a workflow whose time was over."""
    return WorkflowTimedOut("WorkflowTimedOut", f"the time of workflow {workflow_id!r} was over")
