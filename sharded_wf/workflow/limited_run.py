"""What a run has besides its code: random numbers, heartbeats of its steps, events, and an end of its time.

The part of ``WorkflowRun`` that most workflows never call.
"""

from __future__ import annotations

from abc import abstractmethod
from hashlib import blake2b
from random import Random
from typing import Any

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.errors import WorkflowTimedOut
from sharded_wf.model.history import EntryKind, Heartbeat
from sharded_wf.model.notices import read_notice
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Message, Outcome
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.guarded import GuardedStepCommand
from sharded_wf.workflow.replay import LIVE, Replay
from sharded_wf.workflow.requests import RequestedRun
from sharded_wf.workflow.resumption import random_origin
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.waits import EventWaits


class LimitedRun(RequestedRun):
    """See ``WorkflowRun``."""

    __slots__ = ()

    @abstractmethod
    def note_waiting(self) -> None:
        """Remember since when nothing is under way."""

    @abstractmethod
    def _command(self, place: int) -> Any: ...

    def stream(self, name: str) -> Random:
        """The random numbers of one stream. The seed is the workflow's ID and the beginning of its time; of a fork,
        those of the workflow whose results it has."""
        if self.stopped:
            raise RunDropped
        waits = self.some_waits()
        if waits.streams is None:
            waits.streams = {}
        found = waits.streams.get(name)
        if found is None:
            origin = random_origin(self.id, self.history)
            seed = blake2b(f"{origin}\0{self.started_at}\0{name}".encode("utf-8", "surrogatepass")).digest()
            found = waits.streams[name] = Random(int.from_bytes(seed, "big"))
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
        events = self.some_events().waiting
        waiting = [command for command in events.get((workflow_id, key), ()) if command.phase == LIVE]
        if value is not None or error is not None:
            events.pop((workflow_id, key), None)
            for command in waiting:
                command.take(value, error)
        elif waiting:
            self.host.expect_messages(self)
        self.note_waiting()

    def event_told(self, message: Message) -> None:
        """An event may have been set: look."""
        target, key = read_notice(message.sender)
        events = self.some_events()
        waiting = [command for command in events.waiting.get((target, key), ()) if command.phase == LIVE]
        if waiting and message.sender not in events.told:
            events.told.add(message.sender)
            waiting[0].message = message
            self.look_for_event(target, key)

    def some_events(self) -> EventWaits:
        """The events that it waits for."""
        waits = self.some_waits()
        if waits.events is None:
            waits.events = EventWaits()
        return waits.events

    # The time of the whole workflow

    def limit(self, deadline_us: Microseconds) -> bool:
        counted = () if self.replay is None else self.replay.entries  # without those that a resume declared void
        if any(entry.kind is EntryKind.TIMEOUT for entry in counted):
            self.some_waits().out_of_time = True
            return True
        if self.attempt == 1 and deadline_us <= self.host.clock.now_us():
            return False
        self.some_waits().limit_us = deadline_us
        self._set_limit_alarm()
        return True

    def _set_limit_alarm(self) -> None:
        waits = self.waits
        if waits is None or waits.limit_us is None:
            return
        if waits.limit_alarm is not None:
            waits.limit_alarm.cancel()
        left_us = waits.limit_us - self.host.clock.now_us()
        # Not before the history has been replayed, which happens in the callbacks that come first.
        waits.limit_alarm = self.host.loop.call_later(max(0, left_us) / SECOND_US, self._time_is_over)

    def _time_is_over(self) -> None:
        waits = self.waits
        if self.stopped or waits is None or waits.limit_us is None:
            return
        waits.limit_us = None
        if waits.cleanup_until is not None or waits.cancels:
            return  # it was cancelled and cleans up, for which it has a while
        if self.replay is None:
            self.replay = Replay(self.history)
        waits.out_of_time = True
        self._record_mark(self.take_place(), EntryKind.TIMEOUT, "timeout")
        self.unpause(waits)  # what is to end is not to be held up

    def expire(self) -> None:
        self.end(Outcome(Status.FAILED, None, encode_error(timed_out(self.id))))

    def time_jumped(self) -> None:
        super().time_jumped()
        if self.stopped:
            return
        self._set_limit_alarm()
        for command in () if self.replay is None else list(self.replay.commands.values()):
            if isinstance(command, GuardedStepCommand):
                command.time_jumped()


def timed_out(workflow_id: str) -> WorkflowTimedOut:
    """The error of a workflow whose time was over."""
    return WorkflowTimedOut("WorkflowTimedOut", f"the time of workflow {workflow_id!r} was over")
