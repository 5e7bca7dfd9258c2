"""What every run does, whether its code is a coroutine or runs in a thread: it numbers and records results, keeps
timers and the mailbox, starts children, and knows whether it only waits.

All of this happens on the host's loop. Only how the code is driven differs: see ``async_run`` and ``thread_run``.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.errors import ShardedWfError, WorkflowCancelled
from sharded_wf.limits import HISTORY_WARN_ENTRIES
from sharded_wf.model.history import Entry, EntryKind, FailedAttempt, History, continuation_of
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import EVENT_TOPIC, OUTCOME_TOPIC, REVIVED_TOPIC, Message, Outcome
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.workflow.blame import causes_of, undone_from
from sharded_wf.workflow.child_commands import CancelChildCommand
from sharded_wf.workflow.commands import ReceiveCommand, SendCommand, TimerCommand
from sharded_wf.workflow.context import Context
from sharded_wf.workflow.durability import explained
from sharded_wf.workflow.guarded import GuardedAttempt
from sharded_wf.workflow.history_limit import history_is_full
from sharded_wf.workflow.host import Host, Waiting
from sharded_wf.workflow.limited_run import LimitedRun, timed_out
from sharded_wf.workflow.replay import LIVE, Replay
from sharded_wf.workflow.steps import StepCommand
from sharded_wf.workflow.waits import Waits

RESUMED_SENDER = "\x1e"
"""Between a workflow's ID and how often it was resumed: under that name it numbers its messages anew."""

_SUCCEEDED = Status.SUCCEEDED

if TYPE_CHECKING:
    from sharded_wf.workflow.definitions import WorkflowDefinition


class WorkflowRun(LimitedRun):
    """What async and ``def`` runs share."""

    __slots__ = (
        "cancel_requested",
        "input",
        "started_at",
        "waiting_since",
    )
    replay: Replay | None

    def __init__(
        self,
        definition: WorkflowDefinition[Any, Any],
        host: Host,
        workflow_id: str,
        input: bytes,
        history: History,
        started_at: Microseconds,
        attempt: int,
    ) -> None:
        self.id = workflow_id
        self.definition = definition
        self.claim = None
        self.outcome = None
        self.host = host
        self.input = input
        self.history = history
        self.started_at = started_at
        self.attempt = attempt
        self.busy = 0
        """How many things are under way that forbid parking: running steps, and what is being recorded."""
        self.waits: Waits | None = None
        if history.entries:
            self.last_ordinal = history.entries[-1].ordinal
            before = continuation_of(history)
            if before is not None:
                self.input = bytes(before.input)
                self.waits = Waits(host, history)
        else:
            self.last_ordinal = 0
        self.replay = Replay(history) if history.entries or history.attempts else None
        self.stopped = False
        self.cancel_requested = False
        self.waiting_since = 0.0

    # Asked by commands

    @abstractmethod
    def forget(self, command: Any) -> None:
        """A command was given up before anything was recorded of it."""

    def give_up(self, command: Any) -> None:
        """The code no longer waits for a command."""
        command.abandon()

    @abstractmethod
    def call_back(self, callback: Callable[..., Any], args: tuple[Any, ...], context: VariableContext | None) -> None:
        """A timer has gone off."""

    @abstractmethod
    def run_in_thread(self, command: StepCommand | GuardedAttempt, variables: VariableContext) -> None:
        """Call a ``def`` step where it may block."""

    @abstractmethod
    def replaying(self) -> bool:
        """Whether recorded results are still to be handed back."""

    def context(self) -> Context:
        """What ``current()`` gives in the workflow's own code."""
        return Context(self.id, self.definition.name, self.attempt, self.host.state, run=self, code=self)

    def issue(self, command: Any, base: int) -> None:
        """The code asks for ``command``."""
        replay = self.replay
        if replay is None:
            replay = self.replay = Replay(self.history)
        replay.issue(command, base)

    def record(
        self,
        command: Any,
        output: bytes | None,
        error: bytes | None,
        started_at: Microseconds,
        completed_at: Microseconds,
        consumed: Message | None = None,
        outbox: Message | None = None,
    ) -> None:
        """Have the result of ``command`` made durable."""
        if self.stopped:
            return
        self.busy += 1
        self.last_ordinal = ordinal = self.last_ordinal + 1
        if ordinal >= HISTORY_WARN_ENTRIES and history_is_full(self, ordinal):
            return
        entry = Entry(
            command.place,
            ordinal,
            command.kind,
            command.name,
            command.fingerprint,
            output,
            error,
            started_at,
            completed_at,
        )
        self.host.record(self, entry, consumed, outbox)

    # Steps

    def last_attempt(self, place: int) -> FailedAttempt | None:
        """The last failed attempt that the history knows of the step at ``place``."""
        replay = self.replay
        return None if replay is None or replay.attempts is None else replay.attempts.get(place)

    def record_attempt(self, attempt: FailedAttempt) -> None:
        if not self.stopped:
            self.busy += 1
            self.host.record_attempt(self, attempt)

    def attempt_recorded(self, attempt: FailedAttempt) -> None:
        if self.stopped:
            return
        self.busy -= 1
        command = self._command(attempt.place)
        if isinstance(command, StepCommand):
            command.attempt_recorded(attempt)
        self.note_waiting()

    def await_retry(self, command: StepCommand, when: Microseconds) -> None:
        self.some_waits().retries[command.place] = when

    def retry_begins(self, command: StepCommand) -> None:
        self.some_waits().retries.pop(command.place, None)

    # Timers

    def arm(self, timer: TimerCommand) -> None:
        """Wait for a timer's deadline."""
        self.some_waits().arm(timer)

    # Messages

    def some_waits(self) -> Waits:
        waits = self.waits
        if waits is None:
            waits = self.waits = Waits(self.host, self.history)
        return waits

    def await_message(self, command: ReceiveCommand) -> None:
        """Wait for a message, unless one is here."""
        waits = self.some_waits()
        message = waits.mailbox.take(command.name)
        if message is not None:
            command.take(message)
            return
        receivers = waits.receivers.get(command.name)
        if receivers is None:
            receivers = waits.receivers[command.name] = deque()
        receivers.append(command)
        self.host.expect_messages(self)

    def give_back(self, topic: str, payload: msgspec.Raw) -> None:
        """A message was recorded for code that no longer waits: the first that waits now gets it, or the next to ask.

        So it is decided by the order of requests and entries alone, which replay gives back.
        """
        replay = self.replay
        assert replay is not None  # an entry was delivered
        for command in replay.commands.values():
            if command.kind is EntryKind.MESSAGE and command.name == topic and not command.future.done():
                command.resolve(payload)
                self.give_up(command)
                return
        self.some_waits().returned.setdefault(topic, deque()).append(payload)

    def returned_message(self, topic: str) -> msgspec.Raw | None:
        """A message that was given back, or ``None``."""
        if self.waits is None:
            return None
        returned = self.waits.returned.get(topic)
        return returned.popleft() if returned else None

    def offer(self, messages: Sequence[Message]) -> None:
        if self.stopped:
            return
        waits = self.some_waits()
        for message in messages:
            if message.topic == OUTCOME_TOPIC:
                if waits.epoch and message.sender in waits.starting:
                    continue  # of its life before it is resumed; the mailbox is read again when it has been
                if waits.heard_since and message.seq < waits.heard_since.get(message.sender, 0):
                    continue  # of such a life, delivered once more
                child = waits.children.pop(message.sender, None)
                if child is not None and child.phase == LIVE:
                    child.take(message)
            elif message.topic == EVENT_TOPIC:
                self.event_told(message)
            elif message.topic != REVIVED_TOPIC and waits.mailbox.accept(message):
                if message.topic.startswith("$"):
                    if not self.honour(waits, message.topic):
                        return
                else:
                    self._serve(waits, message.topic)

    def take_outcome(self, child_id: str, outcome: Outcome) -> bool:
        waits = self.waits
        if waits is None or self.stopped or waits.epoch or child_id in waits.starting:
            return False  # after a resume it may be an outcome that is void
        child = waits.children.get(child_id)
        if child is None or child.phase != LIVE:
            return False
        del waits.children[child_id]
        child.end(outcome, None)
        return not self.stopped  # its history may be full

    # The mailbox

    def _serve(self, waits: Waits, topic: str) -> None:
        """Give what arrived on a topic to those that wait for it."""
        receivers = waits.receivers.get(topic)
        while receivers:
            if receivers[0].phase != LIVE:
                receivers.popleft()
                continue
            message = waits.mailbox.take(topic)
            if message is None:
                return
            receivers.popleft().take(message)

    def take_place(self) -> int:
        """A place for an entry that no code asked for."""
        assert self.replay is not None
        return self.replay.free_place()

    # Sending

    def number_sends(self, sends: list[SendCommand]) -> None:
        """Number the messages that the code asked for and has not given up, now that it has gone as far as it can.

        Not sooner, because a message that is given up at once must leave no gap; not later, because on replay it must
        get the same number whether or not it was recorded.
        """
        waits = self.some_waits()
        counts = waits.send_counts
        # With the moment of its first claim: another workflow that has the ID later numbers its messages from 1 again.
        # So does this one after a resume, since the numbers of sends that are never asked for again must leave no gap.
        sender = f"{self.id}@{self.started_at}"
        if waits.epoch:
            sender = f"{sender}{RESUMED_SENDER}{waits.epoch}"
        for command in sends:
            if not command.future.done():
                key = (command.receiver, command.name)
                command.seq = counts[key] = counts.get(key, 0) + 1
                command.sender = sender
        sends.clear()

    def send(self, command: SendCommand | CancelChildCommand, message: Message) -> None:
        self.busy += 1
        self.host.send(self, command.place, message)

    def acknowledge_send(self, place: int, outbox: Message | None = None, error: BaseException | None = None) -> None:
        if self.stopped:
            return
        self.busy -= 1
        command = self._command(place)
        if isinstance(command, (SendCommand, CancelChildCommand)) and command.phase == LIVE:
            command.acknowledge(outbox, error)

    def _command(self, place: int) -> Any:
        return None if self.replay is None else self.replay.commands.get(place)

    # Waiting and the end

    def note_waiting(self) -> None:
        """Remember since when nothing is under way."""
        if self.busy == 0:
            self.waiting_since = self.host.clock.monotonic()

    def is_idle(self) -> bool:
        """Whether the code itself has gone as far as it can."""
        return True

    def waiting(self) -> Waiting | None:
        if self.busy or self.stopped or self.outcome is not None or not self.is_idle():
            return None
        return Waiting(self.waiting_since, None if self.waits is None else self.waits.deadline())

    def failed(self, error: BaseException) -> Outcome:
        """The outcome of code that ``error`` left."""
        if isinstance(error, asyncio.CancelledError):
            undone = None if self.waits is None else self.waits.undone_from
            if self.waits is not None and self.waits.timed_out:
                return Outcome(Status.FAILED, None, encode_error(timed_out(self.id), (), undone))
            cancelled = WorkflowCancelled("CancelledError", str(error))
            return Outcome(Status.CANCELLED, None, encode_error(cancelled, (), undone), self.open_children())
        causes = causes_of(error, None if self.waits is None else self.waits.last_timer)
        return Outcome(Status.FAILED, None, encode_error(explained(error), causes, undone_from(error)))

    def succeeded(self, value: Any) -> Outcome:
        """The outcome of code that returned ``value``; failed, if that can't be stored."""
        definition = self.definition
        try:
            return Outcome(_SUCCEEDED, (definition.known_result or definition.result).encode(value))
        except ShardedWfError as error:
            return self.failed(error)
        except Exception as error:  # noqa: BLE001 - what the methods of a user's own class raise
            return self.failed(error)

    def release(self) -> None:
        """Stop what still runs."""
        self.stopped = True
        waits = self.waits
        if waits is not None:
            waits.stop()
        replay = self.replay
        if replay is not None and replay.commands:
            for command in list(replay.commands.values()):
                if command.kind is EntryKind.STEP and command.phase == LIVE:
                    command.stop()
