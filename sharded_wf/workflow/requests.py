"""What others ask of a workflow itself, rather than of its code: to end, to pause, to go on after it had ended.

Cancelling is cooperative: the request becomes an entry, the code gets a ``CancelledError`` where it waits, and has a
while to clean up. In the same flush the children that it waits for are told. Terminating asks nobody. A paused workflow
keeps what is under way and begins nothing more, until it is parked or unpaused.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

import msgspec

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.errors import WorkflowTerminated
from sharded_wf.limits import REPLAY_LOOK_SECONDS, TERMINATE_REPLAY_MAX_SECONDS
from sharded_wf.model.history import Entry, EntryKind, continuation_of, read_cancellation
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, PAUSE_TOPIC, TERMINATE_TOPIC, UNPAUSE_TOPIC, Outcome
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.commands import NULL, TimerCommand
from sharded_wf.workflow.guarded import GuardedStepCommand
from sharded_wf.workflow.lifetime import LongLivedRun
from sharded_wf.workflow.replay import Replay

if TYPE_CHECKING:
    from sharded_wf.workflow.waits import Waits


class RequestedRun(LongLivedRun):
    """The part of a run that honours such requests."""

    __slots__ = ("history", "replay")

    @abstractmethod
    def replaying(self) -> bool:
        """Whether recorded results are still to be handed back, or the run was dropped."""

    @abstractmethod
    def code_time_us(self) -> Microseconds:
        """The workflow's time, as its code sees it: the same on replay."""

    def honour(self, waits: Waits, topic: str) -> bool:
        """Somebody asks for something of the workflow itself, not of its code. Whether it goes on."""
        if topic == TERMINATE_TOPIC:
            self._terminate(self.host.clock.monotonic())
        elif topic == CANCEL_TOPIC:
            self.record_cancels(waits)
        elif topic == PAUSE_TOPIC:
            # What is to end is not to be held up.
            waits.pausing = waits.cleanup_until is None and not waits.mailbox.has(CANCEL_TOPIC)
        elif topic == UNPAUSE_TOPIC:
            self.unpause(waits)
        return not self.stopped

    def _terminate(self, asked_at: float) -> None:
        """Ends when replay has shown which children there are: a little later, if that goes on in a thread."""
        if self.stopped:
            return
        host = self.host
        if self.caught_up() or host.clock.monotonic() > asked_at + TERMINATE_REPLAY_MAX_SECONDS:
            error = WorkflowTerminated("WorkflowTerminated", f"workflow {self.id!r} was terminated")
            self.end(self._ended(error))
        else:
            host.loop.call_later(REPLAY_LOOK_SECONDS, self._terminate, asked_at)

    def caught_up(self) -> bool:
        """Whether the code has been replayed, and waits or runs a step: it is known what it asked for."""
        return self.attempt == 1 or (self.replay is not None and not self.replaying())

    def unpause(self, waits: Waits) -> None:
        """It is paused no longer."""
        if waits.pausing:
            waits.pausing = False
            self.unpaused()

    @abstractmethod
    def unpaused(self) -> None:
        """It is paused no longer: begin what was held back."""

    def note_cancelled(self, entry: Entry) -> None:
        """A request to cancel, or the end of its time, has reached the code: from now on it cleans up, and not for
        ever."""
        waits = self.some_waits()
        if waits.cleanup_until is None and not self.stopped:
            waits.cleanup_us = round(read_cancellation(entry.output).cleanup_seconds * SECOND_US)
            self._limit_cleanup(waits, entry.completed_at + waits.cleanup_us)

    def _limit_cleanup(self, waits: Waits, until: Microseconds) -> None:
        waits.cleanup_until = until
        if waits.cleanup_alarm is not None:
            waits.cleanup_alarm.cancel()
        delay_us = max(0, until - self.host.clock.now_us())
        waits.cleanup_alarm = self.host.loop.call_later(delay_us / SECOND_US, self._cleanup_over)

    def saga_opened(self) -> int:
        """Until it is closed, what was done in it is finished or undone, however long that takes: a clean-up has no
        deadline meanwhile. Returns the number of the first step that can be recorded in it."""
        self.some_waits().sagas += 1
        replay = self.replay
        if replay is None or replay.position == replay.total:
            return self.last_ordinal + 1
        return 1 if replay.position == 0 else replay.entries[replay.position - 1].ordinal + 1

    def saga_undoes(self, error: BaseException, from_step: int) -> None:
        """A saga begins to undo what was done in it since ``from_step``, because of ``error``."""
        if isinstance(error, asyncio.CancelledError):
            self.on_loop(self._note_undoing, from_step)  # which has been told by then what the code was cancelled for

    def _note_undoing(self, from_step: int) -> None:
        waits = self.waits
        if waits is not None and (waits.cleanup_until is not None or waits.timed_out):
            waits.undone_from = min(from_step, waits.undone_from or from_step)

    def saga_closed(self) -> None:
        """What remains to be cleaned up has its whole time from now on."""
        waits = self.waits
        if waits is not None and not self.stopped:
            waits.sagas -= 1
            if not waits.sagas:
                self.on_loop(self._limit_cleanup_anew, self.code_time_us())

    def _limit_cleanup_anew(self, now_us: Microseconds) -> None:
        waits = self.waits
        if waits is not None and not self.stopped and waits.cleanup_until is not None:
            self._limit_cleanup(waits, now_us + waits.cleanup_us)

    def time_jumped(self) -> None:
        super().time_jumped()
        waits = self.waits
        if waits is not None and not self.stopped and waits.cleanup_until is not None:
            self._limit_cleanup(waits, waits.cleanup_until)

    def _cleanup_over(self) -> None:
        waits = self.waits
        if waits is None or self.outcome is not None or self.stopped or waits.sagas:
            return
        if self.replaying():  # in a thread: whether it is in a saga will be seen
            waits.cleanup_alarm = self.host.loop.call_later(REPLAY_LOOK_SECONDS, self._cleanup_over)
        elif waits.timed_out:
            self.end(self.failed(asyncio.CancelledError()))
        else:
            text = f"workflow {self.id!r} was cancelled, and its clean-up took too long"
            self.end(self._ended(WorkflowTerminated("WorkflowTerminated", text)))

    def _ended(self, error: WorkflowTerminated) -> Outcome:
        undone = None if self.waits is None else self.waits.undone_from
        return Outcome(Status.CANCELLED, None, encode_error(error, (), undone), self.open_children())

    def record_cancels(self, waits: Waits) -> None:
        """Make requests to cancel part of the history, and in the same flush pass them on to the children that the code
        waits for. Children that may not exist yet could not be told: first they must. What the code began since to
        clean up ends when the code itself gives it up."""
        if waits.starting:
            return
        while (message := waits.mailbox.take(CANCEL_TOPIC)) is not None:
            if waits.out_of_time and message.payload == NULL:
                continue  # its parent's time was over too; what it cleans up is not to be cut short for that
            if self.replay is None:
                self.replay = Replay(self.history)
            self.busy += 1
            self.last_ordinal += 1
            now_us = self.host.clock.now_us()
            place = self.take_place()
            told = list(self.open_children()) if waits.cleanup_until is None else []
            asked = read_cancellation(message.payload)
            waits.cancels[place] = asked.cleanup_seconds
            output = msgspec.json.encode(
                msgspec.structs.replace(asked, told=told, told_as=self.closer(), sender=message.sender)
            )
            entry = Entry(
                place, self.last_ordinal, EntryKind.CANCEL, "cancel", 0, output, None, message.sent_at, now_us
            )
            self.host.record(self, entry, message)
            self.unpause(waits)

    def note_resumed(self, entry: Entry) -> None:
        """The workflow had ended, and this entry says that it goes on."""
        waits = self.some_waits()
        waits.epoch += 1
        waits.send_counts.clear()
        waits.cancelled_children.clear()
        self.on_loop(waits.end_cleanup)
        before = continuation_of(self.history)
        if before is not None and waits.epoch == waits.resumes:
            for child_id in before.closing:
                self.on_loop(self.revive, child_id)
        assert self.replay is not None
        for command in self.replay.fresh:
            if isinstance(command, (TimerCommand, GuardedStepCommand)):
                anew = command.fingerprint in self.replay.restarted
                command.resumed(entry.started_at, entry.completed_at, anew=anew)
