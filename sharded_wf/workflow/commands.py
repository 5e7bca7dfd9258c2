"""What a run's code asks for, other than steps: timers, messages, children. One class each.

A command goes ISSUED → LIVE → RECORDING → ENDED, or MATCHED → ENDED when its result is already in the history.
``begin`` sets it going, on the host's loop; ``deliver`` hands its recorded result to the code; ``abandon`` is called
when the code gave it up. A command that was given up before anything was recorded leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.errors import StoredValueMismatch, WorkflowFailed
from sharded_wf.model.history import Entry, EntryKind
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Message, Outcome, Start
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.serialization.outcomes import decode_outcome
from sharded_wf.serialization.values import ValueCodec
from sharded_wf.workflow.blame import recorded_error
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, RECORDING

if TYPE_CHECKING:
    from sharded_wf.workflow.run import WorkflowRun

NULL = b"null"
TIMER_NAME = "sleep"


class Answer(Protocol):
    """Where the code waits for a result: an asyncio future on the workflow's loop, or a thread's own."""

    def done(self) -> bool: ...
    def set_result(self, value: Any, /) -> None: ...
    def set_exception(self, error: Any, /) -> None: ...


class TimerCommand:
    """A moment to wait for. As the handle that asyncio's ``call_later`` returns it has ``cancel`` and ``when``."""

    __slots__ = ("args", "callback", "context", "deadline_us", "delay_ms", "fingerprint", "phase", "place", "run")
    kind = EntryKind.TIMER
    name = TIMER_NAME
    place: int
    fingerprint: int
    phase: int

    def __init__(
        self,
        run: WorkflowRun,
        now_us: Microseconds,
        delay_us: int,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> None:
        self.run = run
        self.deadline_us = now_us + delay_us
        # Milliseconds, because a delay that went through floats may come out a microsecond longer elsewhere.
        self.delay_ms = (delay_us + 500) // 1000
        self.callback: Callable[..., Any] | None = callback
        self.args = args
        self.context = context

    def describe(self) -> str:
        return f"a timer of {self.delay_ms / 1000:g} s"

    def begin(self) -> None:
        self.phase = LIVE
        self.run.arm(self)

    def fire(self) -> None:
        """The deadline has passed."""
        self.phase = RECORDING
        now_us = self.run.host.clock.now_us()
        asked_us = self.deadline_us - self.delay_ms * 1000
        self.run.record(self, NULL, None, asked_us, max(now_us, self.deadline_us))

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        callback, self.callback = self.callback, None
        if callback is not None:
            self.run.some_waits().last_timer = self.place
            self.run.call_back(callback, self.args, self.context)

    def resumed(self, ended_us: Microseconds, resumed_us: Microseconds, *, anew: bool) -> None:
        """The workflow had ended and was resumed, and its clock stood still meanwhile. ``anew``: the whole delay begins
        then."""
        self.deadline_us = resumed_us + self.delay_ms * 1000 if anew else self.deadline_us + resumed_us - ended_us

    def cancel(self) -> None:
        """Give it up; asyncio's name for it."""
        if self.callback is not None:
            self.callback = None
            self.args = ()
            if self.phase == ISSUED or self.phase == LIVE:
                self.run.forget(self)

    abandon = cancel

    def cancelled(self) -> bool:
        return self.callback is None and self.phase != ENDED

    def when(self) -> float:
        """The deadline in seconds of the loop's time."""
        return self.deadline_us / SECOND_US


class StoredMessage(msgspec.Struct, frozen=True):
    """A received message as an entry keeps it."""

    sender: str
    seq: int
    payload: msgspec.Raw


_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(StoredMessage).decode


def read_message(entry: Entry) -> StoredMessage:
    """The message of an entry."""
    return _decode_message(entry.output or NULL)


class ReceiveCommand:
    """A message to wait for."""

    __slots__ = ("codec", "fingerprint", "future", "name", "phase", "place", "run", "taken")
    kind = EntryKind.MESSAGE
    place: int
    fingerprint: int
    phase: int
    taken: bytes
    """The message that is being recorded for it."""

    def __init__(self, run: WorkflowRun, topic: str, codec: ValueCodec[Any], future: Answer) -> None:
        self.run = run
        self.name = topic
        self.codec = codec
        self.future: Any = future

    def describe(self) -> str:
        return f"a message on topic {self.name!r}"

    def begin(self) -> None:
        self.phase = LIVE
        self.run.await_message(self)

    def take(self, message: Message) -> None:
        """This is the message: make it the code's."""
        self.phase = RECORDING
        self.taken = message.payload
        output = _encode(StoredMessage(message.sender, message.seq, msgspec.Raw(message.payload)))
        now_us = self.run.host.clock.now_us()
        self.run.record(self, output, None, message.sent_at, now_us, message)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        stored = read_message(entry)
        if self.future.done():
            # Received for code that no longer waits for it: it belongs to whoever asks next.
            self.run.give_back(self.name, stored.payload)
        else:
            self.resolve(stored.payload)

    def resolve(self, payload: msgspec.Raw) -> None:
        try:
            value = self.codec.decode(payload)
        except StoredValueMismatch as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)

    def abandon(self) -> None:
        if self.phase == ISSUED or self.phase == LIVE:
            self.run.forget(self)


class ChildCommand:
    """A child workflow whose outcome the code waits for."""

    __slots__ = ("codec", "fingerprint", "future", "name", "phase", "place", "run", "start", "started_at")
    kind = EntryKind.CHILD
    own = True
    """The code awaits it on the spot, and nobody else: it ends with the awaiting."""
    place: int
    fingerprint: int
    phase: int

    def __init__(self, run: WorkflowRun, start: Start, codec: ValueCodec[Any], future: Answer) -> None:
        self.run = run
        self.name = start.name
        self.start = start
        self.codec = codec
        self.future: Any = future

    def describe(self) -> str:
        return f"child workflow {self.name!r} with input {self.start.input.decode()[:200]}"

    def begin(self) -> None:
        self.phase = LIVE
        self.started_at = self.run.host.clock.now_us()
        self.run.start_child(self)

    def take(self, message: Message) -> None:
        """The child's outcome has arrived."""
        try:
            outcome = decode_outcome(message.payload)
        except StoredValueMismatch as error:
            outcome = Outcome(Status.FAILED, None, encode_error(error))
        self.end(outcome, message)

    def end(self, outcome: Outcome, message: Message | None) -> None:
        """The child has ended."""
        error_text = outcome.error
        if outcome.output is None and error_text is None:
            error_text = encode_error(WorkflowFailed(outcome.status.label, f"child workflow {self.start.id}"))
        self._record(outcome.output if error_text is None else None, error_text, message)

    def refuse(self, error: BaseException) -> None:
        """The child can never be started."""
        self._record(None, encode_error(error), None)

    def _record(self, output: bytes | None, error: bytes | None, consumed: Message | None) -> None:
        self.phase = RECORDING
        self.run.record(self, output, error, self.started_at, self.run.host.clock.now_us(), consumed)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        deliver_recorded(self.future, self.codec, entry)

    def abandon(self) -> None:
        """Its outcome is no longer asked for. (Telling the child to end is for ``give_up_child``.)"""
        if self.phase == ISSUED or self.phase == LIVE:
            self.run.forget(self)


class SendCommand:
    """A message to another workflow.

    Once it has its number it is sent even if the code gave it up: a gap in the numbers would hold up all that follow.
    """

    __slots__ = ("fingerprint", "future", "name", "payload", "phase", "place", "receiver", "run", "sender", "seq")
    kind = EntryKind.SEND
    place: int
    fingerprint: int
    phase: int

    def __init__(self, run: WorkflowRun, receiver: str, topic: str, payload: bytes, future: Answer) -> None:
        self.run = run
        self.name = topic
        self.receiver = receiver
        self.payload = payload
        self.future: Any = future
        self.seq = 0
        self.sender = run.id

    def describe(self) -> str:
        return f"a message to {self.receiver!r} on topic {self.name!r}"

    def begin(self) -> None:
        self.phase = LIVE
        now_us = self.run.host.clock.now_us()
        self.run.send(self, Message(self.receiver, self.name, self.sender, self.seq, self.payload, now_us))

    def acknowledge(self, outbox: Message | None, error: BaseException | None) -> None:
        self.phase = RECORDING
        now_us = self.run.host.clock.now_us()
        if error is None:
            self.run.record(self, NULL, None, now_us, now_us, None, outbox)
        else:
            self.run.record(self, None, encode_error(error), now_us, now_us)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        if not self.future.done():
            if entry.error is not None:
                self.future.set_exception(recorded_error(entry))
            else:
                self.future.set_result(None)

    def abandon(self) -> None:
        if self.phase == ISSUED and self.seq == 0:
            self.run.forget(self)


def deliver_recorded(future: Answer, codec: ValueCodec[Any], entry: Entry) -> None:
    """Hand a recorded result or error to the code, unless it no longer waits."""
    if future.done():
        return
    if entry.error is not None:
        future.set_exception(recorded_error(entry))
        return
    try:
        value = codec.decode(entry.output or NULL)
    except StoredValueMismatch as error:
        future.set_exception(error)
    else:
        future.set_result(value)
