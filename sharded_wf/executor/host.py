"""The executor as its runs see it: one host for each shard."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import Executor as Threads
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING

from sharded_wf.executor.held import Hold
from sharded_wf.executor.ops import FINISH, RECORD, Op, OpKind, Renewal
from sharded_wf.model.history import Entry, FailedAttempt, Heartbeat
from sharded_wf.model.workflow import Event, Message, Outcome, Start
from sharded_wf.workflow.attempts import Attempts
from sharded_wf.workflow.host import Run
from sharded_wf.workflow.stage import Stage

if TYPE_CHECKING:
    from sharded_wf.executor.executor import Executor
    from sharded_wf.executor.flusher import Flusher
    from sharded_wf.executor.shard_executor import ShardExecutor
    from sharded_wf.workflow.transactions import TransactionCommand


class HeldBack(list[Op]):
    """What a run wants saved while it commits a transaction."""

    __slots__ = ()
    add = list.append


class ShardHost:
    """Turns what runs ask for into ops and errands. A run that is leaving is not listened to any more."""

    def __init__(self, executor: Executor, shard_executor: ShardExecutor) -> None:
        self.clock = shard_executor.shard.clock
        self.loop = executor.loop
        self.stage = Stage(executor.loop)
        self.attempts = Attempts(executor.loop)
        self.threads: Threads = executor.new_threads()
        self._executor = executor
        self._shard_executor = shard_executor
        self._saving: Flusher | HeldBack = shard_executor.flusher
        self.state = executor.state

    def record(self, run: Run, entry: Entry, consumed: Message | None = None, outbox: Message | None = None) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._saving.add(Op(RECORD, hold, entry, consumed, outbox))

    def record_attempt(self, run: Run, attempt: FailedAttempt) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._saving.add(Op(OpKind.ASIDE, hold, aside=attempt))

    def record_heartbeat(self, run: Run, beat: Heartbeat) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._saving.add(Op(OpKind.ASIDE, hold, aside=beat))

    def set_event(self, run: Run, event: Event) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._saving.add(Op(OpKind.ASIDE, hold, aside=event))

    def look_for_event(self, run: Run, workflow_id: str, key: str) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._executor.courier.look_for_event(hold, workflow_id, key)

    def transact(self, run: Run, transaction: TransactionCommand, variables: VariableContext) -> asyncio.Task[None]:
        return self._shard_executor.transactions.begin(run.claim, transaction, variables)

    def holding_back(self) -> tuple[ShardHost, list[Op]]:
        """This host for one run that commits a transaction: what the run wants saved goes into the list instead."""
        twin, held_back = copy.copy(self), HeldBack()
        twin._saving = held_back
        return twin, held_back

    def start_child(self, run: Run, start: Start) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._executor.courier.start_child(hold, start)

    def revive_child(self, run: Run, child_id: str, closers: tuple[str, ...]) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._executor.courier.revive_child(hold, child_id, closers)

    def send(self, run: Run, place: int, message: Message) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._executor.courier.send(hold, place, message)

    def expect_messages(self, run: Run) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            self._shard_executor.lookups.expect(hold)

    def finish(self, run: Run, outcome: Outcome) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            hold.leaving = True
            heir = None if hold.parent_id is None else self._heir(hold.parent_id, run.id, outcome)
            self._saving.add(Op(FINISH, hold, outcome=outcome, heir=heir))

    def _heir(self, parent_id: str, child_id: str, outcome: Outcome) -> Hold | None:
        """The parent, if it is held here and has just recorded the outcome: with the same flush, and no message."""
        flusher = self._shard_executor.flusher
        parent = self._shard_executor.held.get(parent_id)
        if self._saving is not flusher or parent is None or parent.leaving or not hasattr(parent, "run"):
            return None
        if parent.run.host is not self:  # it commits a transaction, and what it records is held back
            return None
        return parent if parent.run.take_outcome(child_id, outcome) else None

    def continue_as_new(
        self, run: Run, entry: Entry, capability: str, queue: str, cancels: tuple[str, ...] = ()
    ) -> None:
        hold: Hold = run.claim
        if not hold.leaving:
            hold.leaving = True
            self._saving.add(Op(OpKind.CONTINUE, hold, renewal=Renewal(entry, capability, queue, cancels)))
