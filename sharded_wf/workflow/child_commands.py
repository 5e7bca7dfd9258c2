"""Children that the code starts and goes on beside: starting one, asking for its outcome later, telling it to end.

A start is an entry of its own, which holds the child's ID: on replay nothing is started again. Asking for the outcome
is another, made when the code asks. Telling a child to end is a message; like a start it is sure to be made once it
began, even if the code gave it up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sharded_wf.model.history import Entry, EntryKind
from sharded_wf.model.workflow import CANCEL_TOPIC, Message, Start
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.blame import recorded_error
from sharded_wf.workflow.commands import NULL, Answer, ChildCommand
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, RECORDING

if TYPE_CHECKING:
    from sharded_wf.workflow.run import WorkflowRun

_encode_id = msgspec.json.Encoder().encode
_decode_id = msgspec.json.Decoder(str).decode


class StartCommand:
    """A child to be started. The code gets its ID. ``closes``: it is to be cancelled when its parent ends."""

    __slots__ = ("closes", "fingerprint", "future", "name", "phase", "place", "run", "start", "started_at")
    kind = EntryKind.START
    place: int
    fingerprint: int
    phase: int

    def __init__(self, run: WorkflowRun, start: Start, closes: bool, future: Answer) -> None:
        self.run = run
        self.name = start.name
        self.start = start
        self.closes = closes
        self.future: Any = future

    def describe(self) -> str:
        return f"the start of child workflow {self.name!r} with input {self.start.input.decode()[:200]}"

    def begin(self) -> None:
        self.phase = LIVE
        self.started_at = self.run.host.clock.now_us()
        self.run.start_beside(self)

    def started(self) -> None:
        """The child exists."""
        self._record(_encode_id(self.start.id), None)

    def refuse(self, error: BaseException) -> None:
        """The child can never be started."""
        self._record(None, encode_error(error))

    def _record(self, output: bytes | None, error: bytes | None) -> None:
        self.phase = RECORDING
        self.run.record(self, output, error, self.started_at, self.run.host.clock.now_us())

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        if entry.error is not None:
            if not self.future.done():
                self.future.set_exception(recorded_error(entry))
            return
        if self.closes:
            self.run.note_closing(self.start.id, entry.ordinal)
        if not self.future.done():
            self.future.set_result(_decode_id(entry.output or b'""'))

    def abandon(self) -> None:
        """A start that is under way goes on: the child may exist already."""
        if self.phase == ISSUED:
            if self.closes and self.run.attempt > 1:
                self.run.some_waits().unbegun.append(self.start)
            self.run.forget(self)


class OutcomeCommand(ChildCommand):
    """The outcome of a child that was started before. It is asked for once, however often the code awaits it."""

    __slots__ = ()
    own = False

    def describe(self) -> str:
        return f"the outcome of child workflow {self.start.id!r}"

    def begin(self) -> None:
        self.phase = LIVE
        self.started_at = self.run.host.clock.now_us()
        self.run.await_outcome(self)

    def deliver(self, entry: Entry) -> None:
        self.run.some_waits().closing.pop(self.start.id, None)
        super().deliver(entry)


class CancelChildCommand:
    """A request to a child to end."""

    __slots__ = ("child_id", "fingerprint", "future", "phase", "place", "run")
    kind = EntryKind.SEND
    name = CANCEL_TOPIC
    place: int
    fingerprint: int
    phase: int

    def __init__(self, run: WorkflowRun, child_id: str, future: Answer | None) -> None:
        self.run = run
        self.child_id = child_id
        self.future: Any = future

    def describe(self) -> str:
        return f"a request to cancel {self.child_id!r}"

    def begin(self) -> None:
        self.phase = LIVE
        self.run.tell_to_end(self)

    def send(self) -> None:
        """The child exists, or was never asked for: tell it."""
        now_us = self.run.host.clock.now_us()
        self.run.send(self, Message(self.child_id, CANCEL_TOPIC, self.run.id, 1, NULL, now_us))

    def acknowledge(self, outbox: Message | None, _error: BaseException | None) -> None:
        """It is told, or there is nobody to tell."""
        self.phase = RECORDING
        now_us = self.run.host.clock.now_us()
        self.run.record(self, NULL, None, now_us, now_us, None, outbox)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        waits = self.run.some_waits()
        waits.cancelling.pop(self.child_id, None)
        waits.cancelled_children.add(self.child_id)
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def abandon(self) -> None:
        """A request that the code made is made."""
