"""The seam between a workflow's code and whatever makes its results durable.

The Python wing decides, the host does I/O: a run asks its host to make things durable, and the host calls the run back
when they are. The executor is the host in production; a test can be one with a dict. All of it happens on one thread,
the host's event loop: a host calls a run only from there, and is called only there.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Executor
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sharded_wf.clock import Clock, Microseconds
from sharded_wf.model.history import Entry, FailedAttempt, Heartbeat
from sharded_wf.model.workflow import Event, Message, Outcome, Start
from sharded_wf.workflow.attempts import Attempts
from sharded_wf.workflow.stage import Stage

if TYPE_CHECKING:
    from sharded_wf.workflow.transactions import TransactionCommand


class Host(Protocol):
    """What a run needs of the process that runs it. No method may block; answers come by the run's own methods."""

    clock: Clock
    loop: asyncio.AbstractEventLoop
    """The process's own event loop, on which steps run."""
    stage: Stage
    """Where the code of async workflows runs; a host that calls many runs in a row opens it around them."""
    attempts: Attempts
    """Runs the ``async def`` steps of this process, or of a part of it."""
    threads: Executor
    """Where plain ``def`` functions run."""
    state: object
    """What the app's lifespan yielded, or ``None``."""

    def record(self, run: Run, entry: Entry, consumed: Message | None = None, outbox: Message | None = None) -> None:
        """Make ``entry`` durable, in one transaction with the deletion of ``consumed`` from the mailbox and the
        insertion of ``outbox``; then call ``run.deliver(entry)``. Of one run, in the order of the calls."""
        ...

    def record_attempt(self, run: Run, attempt: FailedAttempt) -> None:
        """Make a failed attempt durable; then call ``run.attempt_recorded(attempt)``."""
        ...

    def record_heartbeat(self, run: Run, beat: Heartbeat) -> None:
        """Make a heartbeat durable in place of the step's last one, or a later one of it; then call
        ``run.heartbeat_recorded(beat)``."""
        ...

    def set_event(self, run: Run, event: Event) -> None:
        """Make an event durable, not later than the entry that is recorded next."""
        ...

    def look_for_event(self, run: Run, workflow_id: str, key: str) -> None:
        """Look whether a workflow has set an event, and if not, have this one told when it is: by a message on
        ``EVENT_TOPIC``. Then call ``run.event_looked(workflow_id, key, ...)``."""
        ...

    def transact(self, run: Run, transaction: TransactionCommand, variables: VariableContext) -> Cancellable:
        """Run the body of a transaction with a connection, and commit what it did together with its entry; then call
        ``run.deliver``. What the run records meanwhile becomes durable after it. A body that fails is handed to
        ``transaction.fail``. What is returned can be cancelled until ``transaction.begin_commit`` was called."""
        ...

    def start_child(self, run: Run, start: Start) -> None:
        """Start another workflow, once however often it is asked; then call ``run.child_started(start.id)``, or
        ``run.child_refused(start.id, error)`` if it can never be started."""
        ...

    def revive_child(self, run: Run, child_id: str, closers: tuple[str, ...]) -> None:
        """Resume a child that was cancelled under one of these names, which are those under which earlier ends of the
        workflow told it; wait for its end if it still cleans up. Leave any other as it is. Then call
        ``run.child_revived(child_id)``."""
        ...

    def send(self, run: Run, place: int, message: Message) -> None:
        """Deliver a message, once however often it is asked; then call ``run.acknowledge_send(place, ...)``."""
        ...

    def expect_messages(self, run: Run) -> None:
        """The run began to wait for a message: look what its mailbox holds and ``run.offer`` it. May be called
        often."""
        ...

    def finish(self, run: Run, outcome: Outcome) -> None:
        """The run has its outcome; it asks for nothing more."""
        ...

    def continue_as_new(
        self, run: Run, entry: Entry, capability: str, queue: str, cancels: tuple[str, ...] = ()
    ) -> None:
        """The run asks for nothing more, and a new run of the workflow is to begin: in one transaction, delete its
        history, record ``entry`` as the first of the new one, whose clock begins with ``entry.completed_at``, put the
        workflow back into the queue, and tell the children ``cancels`` to end."""
        ...


class Cancellable(Protocol):
    """What is under way, and can be stopped."""

    def cancel(self) -> bool:
        """Stop it."""
        ...


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A run that only waits: for a deadline, a message or a child. It may be parked."""

    since: float
    """When it began to wait, on the host's monotonic clock, in seconds."""
    deadline_us: Microseconds | None
    """The earliest wall time at which something is due, or ``None`` if only others can wake it."""


class Run(ABC):
    """One workflow in memory: its code, what it has lived through, and what it waits for.

    Made by ``definition.new_run(host, workflow_id, input, history, started_at, attempt)``. Every method is called on
    the host's loop, from a plain callback; called from inside a task, it puts itself off to the next callback.
    """

    __slots__ = ("claim", "definition", "id", "outcome")

    id: str
    """The workflow's ID."""
    definition: Any
    """The workflow definition that made this run."""
    host: Host
    """Who runs it."""
    claim: Any
    """The host's own: whatever it wants to remember of this run."""
    started_at: Microseconds
    """When it was first claimed: the zero of its clock."""
    outcome: Outcome | None
    """How it ended, or ``None``."""
    attempt: int
    """How often it has been taken up: the number of its outcome, if it ends now."""

    @abstractmethod
    def start(self) -> None:
        """Replay the history and go on from there until everything waits."""

    @abstractmethod
    def limit(self, deadline_us: Microseconds) -> bool:
        """Before ``start``: the workflow's time is over then. False if it was over before anything was recorded: then
        ``expire`` instead of ``start``."""

    @abstractmethod
    def expire(self) -> None:
        """It ends without having run, because its time is over."""

    @abstractmethod
    def deliver(self, entry: Entry) -> None:
        """An entry given to ``Host.record`` is durable: hand its result to the code."""

    @abstractmethod
    def attempt_recorded(self, attempt: FailedAttempt) -> None:
        """A failed attempt is durable: wait until ``retry_at``, then make the next."""

    @abstractmethod
    def heartbeat_recorded(self, beat: Heartbeat) -> None:
        """A heartbeat is durable."""

    @abstractmethod
    def event_looked(self, workflow_id: str, key: str, value: bytes | None, error: BaseException | None) -> None:
        """What a look for an event has found: its value, or why it can't come, or neither."""

    @abstractmethod
    def offer(self, messages: Sequence[Message]) -> None:
        """Messages of this workflow's mailbox, in the order of the mailbox. Offering one again does no harm."""

    @abstractmethod
    def take_outcome(self, child_id: str, outcome: Outcome) -> bool:
        """A child ends, and is saved together with whatever is recorded of it in this very call. False: nothing is, and
        the outcome will come as a message."""

    @abstractmethod
    def acknowledge_send(self, place: int, outbox: Message | None = None, error: BaseException | None = None) -> None:
        """A message has been delivered; or, with ``outbox``, is to be recorded there for the relay; or failed for
        good."""

    @abstractmethod
    def child_started(self, child_id: str, since: int = 0) -> None:
        """A child exists; its outcome will come as a message, whose number is ``since`` or higher: one with a lower
        number is of a life of the child before it was resumed."""

    @abstractmethod
    def child_refused(self, child_id: str, error: BaseException) -> None:
        """A child can never be started; the code gets ``error`` at its call."""

    @abstractmethod
    def child_revived(self, child_id: str) -> None:
        """A child that an earlier end of the workflow cancelled goes on, or there is nothing to be done for it."""

    @abstractmethod
    def drop(self) -> None:
        """Forget the run without an outcome (parked, drained, lease lost): nothing more reaches the host."""

    def children_to_end(self) -> tuple[str, ...]:
        """Children that are to be cancelled when this workflow ends."""
        return ()

    def closer(self) -> str:
        """Under what name they are told."""
        return ""

    def settle(self) -> bool:
        """Before it is parked: record what replay has to know of that. Returns whether this is under way now."""
        return False

    @abstractmethod
    def waiting(self) -> Waiting | None:
        """What it waits for, or ``None`` if it can't be parked now: a step runs, or something is being recorded."""

    @abstractmethod
    def time_jumped(self) -> None:
        """The wall clock was set forward (in tests): what is due now is due."""
