"""What others ask of a workflow itself, rather than of its code: to end, to pause, to go on after it had ended.

Cancelling is cooperative: the request becomes an entry, the code gets a ``CancelledError`` where it waits, and has a
while to clean up. In the same flush the children that it waits for are told. Terminating asks nobody. A paused workflow
keeps what is under way and begins nothing more, until it is parked or unpaused.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import msgspec

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.errors import WorkflowTerminated
from sharded_wf.model.history import Cancellation, Entry, EntryKind, History
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, PAUSE_TOPIC, TERMINATE_TOPIC, UNPAUSE_TOPIC, Outcome
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.commands import TimerCommand
from sharded_wf.workflow.host import Host
from sharded_wf.workflow.lifetime import LongLivedRun
from sharded_wf.workflow.replay import LIVE, Replay

if TYPE_CHECKING:
    from sharded_wf.workflow.waits import Waits

decode_cancellation = msgspec.json.Decoder(Cancellation | None).decode


class RequestedRun(LongLivedRun):
    """The part of a run that honours such requests."""

    __slots__ = ("history", "host", "replay", "stopped", "waits")
    history: History
    host: Host
    replay: Replay | None
    stopped: bool
    waits: Waits | None

    @abstractmethod
    def take_place(self) -> int:
        """A place for an entry that no code asked for."""

    def honour(self, waits: Waits, topic: str) -> None:
        """Somebody asks for something of the workflow itself, not of its code."""
        if topic == TERMINATE_TOPIC:
            error = WorkflowTerminated("WorkflowTerminated", f"workflow {self.id!r} was terminated")
            self.conclude(self._ended(error))
        elif topic == CANCEL_TOPIC:
            self.record_cancels(waits)
        elif topic == PAUSE_TOPIC:
            # What is to end is not to be held up.
            waits.pausing = waits.cleanup_until is None and not waits.mailbox.has(CANCEL_TOPIC)
        elif topic == UNPAUSE_TOPIC:
            self._unpause(waits)

    def _unpause(self, waits: Waits) -> None:
        if waits.pausing:
            waits.pausing = False
            self.unpaused()

    @abstractmethod
    def unpaused(self) -> None:
        """It is paused no longer: begin what was held back."""

    def note_cancelled(self, entry: Entry) -> None:
        """A request to cancel has reached the code: from now on it cleans up, and not for ever."""
        waits = self.some_waits()
        said = decode_cancellation(entry.output or b"null") or Cancellation()
        waits.cancelled_children.update(said.told)
        if waits.cleanup_until is None and not self.stopped:
            waits.cleanup_until = entry.completed_at + round(said.cleanup_seconds * SECOND_US)
            self._limit_cleanup(waits, waits.cleanup_until)

    def _limit_cleanup(self, waits: Waits, until: Microseconds) -> None:
        if waits.cleanup_alarm is not None:
            waits.cleanup_alarm.cancel()
        delay_us = max(0, until - self.host.clock.now_us())
        waits.cleanup_alarm = self.host.loop.call_later(delay_us / SECOND_US, self._cleanup_over)

    def time_jumped(self) -> None:
        super().time_jumped()
        waits = self.waits
        if waits is not None and not self.stopped and waits.cleanup_until is not None:
            self._limit_cleanup(waits, waits.cleanup_until)

    def _cleanup_over(self) -> None:
        if self.outcome is None and not self.stopped:
            text = f"workflow {self.id!r} was cancelled, and its clean-up took too long"
            self.conclude(self._ended(WorkflowTerminated("WorkflowTerminated", text)))

    def _ended(self, error: WorkflowTerminated) -> Outcome:
        return Outcome(Status.CANCELLED, None, encode_error(error), self.open_children())

    def open_children(self) -> tuple[str, ...]:
        """Children whose outcome the code still waits for, and that were not told to end."""
        waits = self.waits
        if waits is None:
            return ()
        told = waits.cancelled_children
        return tuple(id_ for id_, child in waits.children.items() if child.phase == LIVE and id_ not in told)

    def record_cancels(self, waits: Waits) -> None:
        """Make requests to cancel part of the history, and in the same flush pass them on to the children that the code
        waits for. Children that may not exist yet could not be told: first they must."""
        if waits.starting:
            return
        while (message := waits.mailbox.take(CANCEL_TOPIC)) is not None:
            if self.replay is None:
                self.replay = Replay(self.history)
            self.busy += 1
            self.last_ordinal += 1
            now_us = self.host.clock.now_us()
            place = self.take_place()
            told = self.open_children()
            waits.cancelled_children.update(told)
            asked = decode_cancellation(message.payload) or Cancellation()
            waits.cancels[place] = asked.cleanup_seconds
            output = msgspec.json.encode(msgspec.structs.replace(asked, told=list(told)))
            entry = Entry(
                place, self.last_ordinal, EntryKind.CANCEL, "cancel", 0, output, None, message.sent_at, now_us
            )
            self.host.record(self, entry, message)
            self._unpause(waits)

    def note_resumed(self, entry: Entry) -> None:
        """The workflow had ended, and this entry says that it goes on."""
        waits = self.some_waits()
        waits.epoch += 1
        waits.send_counts.clear()
        waits.end_cleanup()
        assert self.replay is not None
        for command in self.replay.fresh:
            if isinstance(command, TimerCommand):
                anew = command.fingerprint in self.replay.restarted
                command.resumed(entry.started_at, entry.completed_at, anew=anew)
