"""A host with a dict instead of a database: what a run needs of the world, in memory.

It makes things durable in the next turn of the loop, keeps what it made durable, and can crash: from then on nothing
that was asked for is done. Children run on the same host. Time is virtual where a test asks for it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context as VariableContext
from typing import Any, TypeVar

from sharded_wf.errors import EventNeverSet, WorkflowNotFound
from sharded_wf.model.history import (
    EMPTY_HISTORY,
    Entry,
    EntryKind,
    FailedAttempt,
    Heartbeat,
    History,
    read_cancellation,
)
from sharded_wf.model.notices import notice_of
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, EVENT_TOPIC, OUTCOME_TOPIC, Event, Message, Outcome, Start
from sharded_wf.serialization import decode_error, encode_outcome
from sharded_wf.workflow.app import App
from sharded_wf.workflow.attempts import Attempts
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.host import Run
from sharded_wf.workflow.stage import Stage
from sharded_wf.workflow.transactions import TransactionCommand

T = TypeVar("T")
START_US = 1_700_000_000_000_000


class _ImpatientSelector(selectors.DefaultSelector):
    """Waits for nothing: tells its loop how long it would have waited."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.skipped += timeout
        elif not ready and timeout is None:
            return super().select(0.01)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer when nothing else is to be done. Not for code that uses threads."""

    def __init__(self) -> None:
        self.impatient = _ImpatientSelector()
        super().__init__(self.impatient)

    def time(self) -> float:
        return super().time() + self.impatient.skipped


class LoopClock:
    """Wall time that follows the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._first = loop.time()

    def now_us(self) -> int:
        return START_US + round((self._loop.time() - self._first) * 1_000_000)

    def monotonic(self) -> float:
        return self._loop.time()


class Stored:
    """What is durable of one workflow."""

    def __init__(self, start: Start, started_at: int) -> None:
        self.start = start
        self.started_at = started_at
        self.entries: list[Entry] = []
        self.attempts: list[FailedAttempt] = []
        self.heartbeats: dict[int, Heartbeat] = {}
        self.mailbox: list[Message] = []
        self.events: dict[str, Event] = {}
        self.awaited_by: set[tuple[str, str]] = set()
        self.outcome: Outcome | None = None
        self.taken_up = 0

    @property
    def ended(self) -> Outcome:
        """The outcome, which there must be."""
        assert self.outcome is not None
        return self.outcome

    def history(self) -> History:
        return History(tuple(self.entries), tuple(self.attempts), tuple(self.heartbeats.values()))


class MemoryHost:
    """Implements ``Host``. ``crash_after`` entries have become durable, it is dead."""

    def __init__(self, app: App, *, state: object = None, crash_after: int | None = None) -> None:
        self.app = app
        self.loop = asyncio.get_running_loop()
        self.clock: Any = LoopClock(self.loop)
        self.stage = Stage(asyncio.get_running_loop())
        self.attempts = Attempts(asyncio.get_running_loop())
        self.threads: Executor = ThreadPoolExecutor(4)
        self.state = state
        self.crash_after = crash_after
        self.crashed = asyncio.Event()
        self.turn = asyncio.Event()
        self.stored: dict[str, Stored] = {}
        self.runs: dict[str, Run] = {}
        self.finished: dict[str, asyncio.Event] = {}
        self.on_record: Callable[[Run, Entry], None] | None = None
        self.sent: list[Message] = []
        self.beats = 0
        self.crash_after_beats: int | None = None

    def dead(self) -> bool:
        return self.crashed.is_set()

    def close(self) -> None:
        for run in list(self.runs.values()):
            run.drop()
        self.threads.shutdown(wait=True)

    # What tests do

    def begin(
        self,
        bound: Bound[Any],
        workflow_id: str = "w",
        history: History = EMPTY_HISTORY,
        started_at: int | None = None,
    ) -> Run:
        began = self.clock.now_us() if started_at is None else started_at
        deadline = None if bound.timeout_seconds is None else began + round(bound.timeout_seconds * 1_000_000)
        start = Start(workflow_id, bound.name, bound.capability, bound.queue, 0, bound.input, deadline=deadline)
        stored = Stored(start, self.clock.now_us() if started_at is None else started_at)
        stored.entries = list(history.entries)
        stored.attempts = list(history.attempts)
        stored.heartbeats = {beat.place: beat for beat in history.heartbeats}
        self.stored[workflow_id] = stored
        return self.take_up(workflow_id)

    def take_up(self, workflow_id: str) -> Run:
        stored = self.stored[workflow_id]
        stored.taken_up += 1
        definition = self.app.find_workflow(stored.start.name)
        assert definition is not None
        run = definition.new_run(
            self, workflow_id, stored.start.input, stored.history(), stored.started_at, stored.taken_up
        )
        self.runs[workflow_id] = run
        self.finished.setdefault(workflow_id, asyncio.Event())
        deadline = definition.deadline(stored.history(), stored.started_at, stored.start.deadline)
        in_time = deadline is None or run.limit(deadline)
        self.loop.call_soon(run.start if in_time else run.expire)
        return run

    def inherit(self, dead: MemoryHost) -> None:
        """Take over all that another host made durable; its unfinished workflows run on here."""
        self.stored = dead.stored
        for workflow_id, stored in self.stored.items():
            if stored.outcome is None:
                self.take_up(workflow_id)
                self.loop.call_soon(self._offer, workflow_id)
            else:
                self.finished.setdefault(workflow_id, asyncio.Event()).set()

    async def outcome(self, workflow_id: str = "w") -> Outcome:
        await asyncio.wait_for(self.finished[workflow_id].wait(), 1e9)
        outcome = self.stored[workflow_id].outcome
        assert outcome is not None
        return outcome

    async def result(self, bound: Bound[T], workflow_id: str = "w") -> T:
        if workflow_id not in self.stored:
            self.begin(bound, workflow_id)
        outcome = await self.outcome(workflow_id)
        if outcome.status is Status.SUCCEEDED:
            assert outcome.output is not None
            return bound.result.decode(outcome.output)
        assert outcome.error is not None
        raise decode_error(outcome.error)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is durable, or waits: looked at whenever a little time has passed."""
        while not condition():
            self.turn.clear()
            self.loop.call_later(0.001, self.turn.set)
            await self.turn.wait()

    def post(self, message: Message) -> None:
        """A message arrives in somebody's mailbox."""
        stored = self.stored[message.receiver]
        stored.mailbox.append(message)
        self._offer(message.receiver)

    def _offer(self, workflow_id: str) -> None:
        run = self.runs.get(workflow_id)
        if run is not None and not self.dead():
            run.offer(list(self.stored[workflow_id].mailbox))

    def _later(self, function: Callable[..., None], *args: Any) -> None:
        def call() -> None:
            if not self.dead():
                function(*args)

        self.loop.call_soon(call)

    # Host

    def record(self, run: Run, entry: Entry, consumed: Message | None = None, outbox: Message | None = None) -> None:
        assert self.runs.get(run.id) is run, "a dropped run recorded something"
        self._later(self._record, run, entry, consumed)

    def _record(self, run: Run, entry: Entry, consumed: Message | None) -> None:
        if self.runs.get(run.id) is not run:
            return
        stored = self.stored[run.id]
        assert entry.place not in {e.place for e in stored.entries}, "recorded twice"
        assert entry.ordinal == len(stored.entries) + 1
        assert (entry.output is None) != (entry.error is None)
        stored.entries.append(entry)
        if consumed is not None:
            stored.mailbox.remove(consumed)
        if entry.kind is EntryKind.CANCEL:
            said = read_cancellation(entry.output)
            self._cancel(said.told_as, said.told)
        if self.on_record is not None:
            self.on_record(run, entry)
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.crashed.set()
                return
        run.deliver(entry)

    def record_attempt(self, run: Run, attempt: FailedAttempt) -> None:
        def record() -> None:
            self.stored[run.id].attempts.append(attempt)
            run.attempt_recorded(attempt)

        self._later(record)

    def record_heartbeat(self, run: Run, beat: Heartbeat) -> None:
        def record() -> None:
            if self.runs.get(run.id) is not run:
                return
            self.stored[run.id].heartbeats[beat.place] = beat
            self.beats += 1
            if self.crash_after_beats is not None and self.beats >= self.crash_after_beats:
                self.crashed.set()
                return
            run.heartbeat_recorded(beat)

        self._later(record)

    def set_event(self, run: Run, event: Event) -> None:
        self._later(self._set_event, run.id, event)

    def _set_event(self, workflow_id: str, event: Event) -> None:
        stored = self.stored[workflow_id]
        stored.events[event.key] = event
        for key, waiter in sorted(stored.awaited_by):
            if key == event.key:
                stored.awaited_by.discard((key, waiter))
                sender = notice_of(workflow_id, key, event.set_at)
                self.post(Message(waiter, EVENT_TOPIC, sender, 1, b"null", self.clock.now_us()))

    def look_for_event(self, run: Run, workflow_id: str, key: str) -> None:
        def look() -> None:
            stored = self.stored.get(workflow_id)
            event = None if stored is None else stored.events.get(key)
            error: Exception | None = None
            if stored is None:
                error = WorkflowNotFound(workflow_id)
            elif event is None and stored.outcome is not None:
                error = EventNeverSet(key)
            elif event is None:
                stored.awaited_by.add((key, run.id))
            run.event_looked(workflow_id, key, None if event is None else event.value, error)

        self._later(look)

    def transact(self, run: Run, transaction: TransactionCommand, variables: VariableContext) -> Any:
        raise NotImplementedError("there is no database here")

    def start_child(self, run: Run, start: Start) -> None:
        def begin() -> None:
            if self.app.find_workflow(start.name) is None:
                run.child_refused(start.id, LookupError(start.name))
                return
            if start.id not in self.stored and start.stillborn is not None:
                self.stored[start.id] = Stored(start, self.clock.now_us())
                self.stored[start.id].outcome = Outcome(Status.CANCELLED, None, start.stillborn[0])
            elif start.id not in self.stored:
                self.stored[start.id] = Stored(start, self.clock.now_us())
                self.take_up(start.id)
            run.child_started(start.id)

        self._later(begin)

    def revive_child(self, run: Run, child_id: str, closers: tuple[str, ...]) -> None:
        self._later(run.child_revived, child_id)  # nothing is resumed here

    def send(self, run: Run, place: int, message: Message) -> None:
        def deliver() -> None:
            self.sent.append(message)
            self._tell(message)
            run.acknowledge_send(place)

        self._later(deliver)

    def expect_messages(self, run: Run) -> None:
        self._later(self._offer, run.id)

    def continue_as_new(
        self, run: Run, entry: Entry, capability: str, queue: str, cancels: tuple[str, ...] = ()
    ) -> None:
        self._later(self._continue, run, entry, cancels)

    def _cancel(self, sender: str, children: Iterable[str]) -> None:
        for child_id in children:
            self._tell(Message(child_id, CANCEL_TOPIC, sender, 1, b"null", self.clock.now_us()))

    def _continue(self, run: Run, entry: Entry, cancels: tuple[str, ...]) -> None:
        self._cancel(run.id, cancels)
        stored = self.stored[run.id]
        stored.entries = [entry]
        stored.attempts = []
        stored.mailbox = [message for message in stored.mailbox if message.topic != OUTCOME_TOPIC]
        stored.started_at = entry.completed_at
        if self.on_record is not None:
            self.on_record(run, entry)
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.crashed.set()
                return
        self.take_up(run.id)
        self._offer(run.id)

    def finish(self, run: Run, outcome: Outcome) -> None:
        self._later(self._finish, run, outcome)

    def _finish(self, run: Run, outcome: Outcome) -> None:
        stored = self.stored[run.id]
        assert stored.outcome is None, "finished twice"
        stored.outcome = outcome
        self.finished[run.id].set()
        self._cancel(outcome.cancels_as, outcome.cancels)
        parent = stored.start.parent_id
        if parent is not None:
            payload = encode_outcome(outcome)
            self._tell(Message(parent, OUTCOME_TOPIC, run.id, 1, payload, self.clock.now_us()))

    def _tell(self, message: Message) -> None:
        """Deliver what was not delivered, to one that exists and has not ended."""
        stored = self.stored.get(message.receiver)
        if stored is None:
            return
        key = (message.topic, message.sender, message.seq)
        if stored.outcome is None and key not in {(m.topic, m.sender, m.seq) for m in stored.mailbox}:
            self.post(message)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def run_workflow(app: App, bound: Bound[T], *, state: object = None) -> T:
    """Run a workflow to its result, in virtual time."""

    async def main() -> T:
        host = MemoryHost(app, state=state)
        try:
            return await host.result(bound)
        finally:
            host.close()

    return run_virtual(main())
