"""The workflows that an executor holds on one shard: from the claim to the flush that they leave with."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from sharded_wf.executor.held import Claim, Hold, UnknownRun, is_paused
from sharded_wf.executor.host import ShardHost
from sharded_wf.executor.ops import FINISH, PARK, Aside, Op, OpKind, Told
from sharded_wf.limits import (
    PARK_SWEEP_SECONDS,
    PARK_SWEEP_UNDER_PRESSURE_SECONDS,
    PARK_UNDER_PRESSURE_SECONDS,
    PARK_UNDER_PRESSURE_SHARE,
)
from sharded_wf.model.history import EMPTY_HISTORY, FailedAttempt, Heartbeat, History
from sharded_wf.model.workflow import Message
from sharded_wf.store import claims
from sharded_wf.workflow.host import Run, Waiting

logger = logging.getLogger("sharded_wf.executor")

if TYPE_CHECKING:
    from sharded_wf.executor.executor import Executor
    from sharded_wf.executor.lookups import Resumed
    from sharded_wf.executor.shard_executor import ShardExecutor


class Runs:
    """Holds them in ``held``, by ID; the ``part`` of the executor has what they need. ``begin`` comes first."""

    def __init__(self, executor: Executor, part: ShardExecutor) -> None:
        self._executor = executor
        self._part = part
        self._clock = part.shard.clock
        self._loop = asyncio.get_running_loop()
        self._here = part.moving.schemas
        self._share = part.share
        self.held: dict[str, Hold] = {}
        self._unknown: set[str] = set()
        """Names of workflows that the app does not have; each is logged once."""

    def begin(self) -> None:
        """All of ``part`` is made."""
        part = self._part
        self._host = ShardHost(self._executor, part)
        self._flusher, self._lookups, self._watch, self._relay = part.flusher, part.lookups, part.watch, part.relay
        self._vacuum = part.vacuum

    def take(self, claim: Claim, came: list[claims.Claimed]) -> None:
        """Hold what was claimed: new workflows start at once, those that ran before when their history is read."""
        fresh: list[tuple[claims.Claimed, Hold]] = []
        for claimed in came:
            hold = Hold(claim, claimed.parent_id)
            if claimed.id in self.held:
                self._share.gave_back(1)  # it left with a flush of which we have yet to hear, and is back
            self.held[claimed.id] = hold
            if claimed.claims > 1:
                self._lookups.history(claimed, hold)
            else:
                fresh.append((claimed, hold))
        self._vacuum.churned(claim.slot, "ready", len(came))
        if fresh:
            self._loop.call_soon(self._start, fresh)

    def _start(self, fresh: list[tuple[claims.Claimed, Hold]]) -> None:
        with self._host.stage:
            for claimed, hold in fresh:
                self._run(claimed, hold, EMPTY_HISTORY)

    def resume(self, resumed: list[Resumed]) -> None:
        """Run those whose history has been read."""
        for claimed, hold, history, mail in resumed:
            if mail and self.held.get(claimed.id) is hold and is_paused(history, mail):
                # Parked again, before any of its code has run, unless its time is over.
                definition = self._executor.app.workflows.get(claimed.name)
                deadline = claimed.deadline
                if definition is not None:
                    deadline = definition.deadline(history, claimed.started_at, deadline)
                if deadline is None or deadline > self._clock.now_us():
                    hold.leaving = True
                    hold.run = cast(Run, UnknownRun(claimed.id))
                    self._flusher.add(Op(OpKind.PARK, hold, due_at=deadline))
                    continue
            hold.mailed = bool(mail)  # before it runs: with all of its history it may end at once
            if self._run(claimed, hold, history) and mail and not hold.leaving:
                hold.run.offer(mail)

    def _run(self, claimed: claims.Claimed, hold: Hold, history: History) -> bool:
        if self.held.get(claimed.id) is not hold:
            return False  # dropped meanwhile: the lease is gone
        definition = self._executor.app.find_workflow(claimed.name)
        if definition is None:
            if claimed.name not in self._unknown:
                self._unknown.add(claimed.name)
                logger.warning("there is no workflow %r in this app: left to executors that have it", claimed.name)
            hold.leaving = True
            hold.run = cast(Run, UnknownRun(claimed.id))
            self._flusher.add(Op(OpKind.REROUTE, hold))
            return False
        run = definition.new_run(self._host, claimed.id, claimed.input, history, claimed.started_at, claimed.claims)
        run.claim = hold
        hold.run = run
        if claimed.deadline is not None or definition.run_seconds is not None:
            deadline = definition.deadline(history, claimed.started_at, claimed.deadline)
            if deadline is not None and not run.limit(deadline):
                run.expire()
                return False
        run.start()
        return True

    # --- saved --------------------------------------------------------------------------------------------------

    def is_here(self, workflow_id: str) -> tuple[int, bool]:
        """The slot of a workflow, and whether this part of the executor serves it."""
        slot = self._executor.shards.map.slot_of(workflow_id)
        return slot, slot in self._here

    def saved(self, ops: list[Op], told: Told) -> None:
        """A flush was committed. Runs are stepped from a plain callback, never inside the flusher's task; but the
        claims are counted here: the next flush may be made before that callback, and must know which are empty."""
        for claim, count in told.left.items():
            claim.held -= count
        for (slot, table), rows in told.churned.items():
            self._vacuum.churned(slot, table, rows)
        self._loop.call_soon(self._go_on, ops, told)

    def _go_on(self, ops: list[Op], told: Told) -> None:
        left = finished = 0
        with self._host.stage:
            for op in ops:
                kind, hold = op.kind, op.hold
                if op.entry is not None:
                    if not hold.leaving:
                        hold.run.deliver(op.entry)
                elif op.aside is not None:
                    if not hold.leaving:
                        _tell_aside(hold.run, op.aside)
                else:
                    finished += kind is FINISH
                    # It may have been claimed anew, or everything been dropped, between the commit and this callback.
                    if self.held.get(hold.run.id) is hold:
                        del self.held[hold.run.id]
                        left += 1
                    if kind is PARK:
                        hold.run.drop()
                        if op.due_at is not None:
                            self._watch.timer_set(hold.claim.slot, op.due_at)
                    hold.run.claim = None  # nobody asks any more; the two hold each other, which is work for the GC
        self._executor.finished += finished
        self._share.gave_back(left)
        if told.outgoing:
            self._relay.add(told.outgoing)
        if told.delivered:
            self._executor.arrived([message for _, message in told.delivered])

    def offer(self, mailboxes: dict[str, list[Message]]) -> set[str]:
        """Hand out mail; returns who took it. Those who are on their way out did not."""
        took: set[str] = set()
        for id_, mail in mailboxes.items():
            hold = self.held.get(id_)
            if hold is None or hold.leaving:
                continue
            took.add(id_)
            if hasattr(hold, "run"):  # else its history is still to be read, and its mail with it
                hold.mailed = True
                hold.run.offer(mail)
        return took

    def offer_if_held(self, message: Message) -> bool:
        """Hand a message that is already in its receiver's mailbox to the receiver, if it is in memory here."""
        hold = self.held.get(message.receiver)
        if hold is None or hold.leaving or not hasattr(hold, "run"):
            return False
        hold.mailed = True
        hold.run.offer([message])
        return True

    # --- leaving ------------------------------------------------------------------------------------------------

    async def park_for_ever(self) -> None:
        """Park what waits for longer than it should in memory, until cancelled."""
        room, after_seconds = self._executor.room, self._executor.park_after
        while True:
            await asyncio.sleep(PARK_SWEEP_UNDER_PRESSURE_SECONDS if room.is_short else PARK_SWEEP_SECONDS)
            if self.held:
                self.park_waiting(after_seconds)
                if room.is_short:
                    self._make_room(min(PARK_UNDER_PRESSURE_SECONDS, after_seconds))

    def park_waiting(self, after_seconds: float) -> None:
        """Park every run that has only waited for this long."""
        for hold, waiting in self._waiting(after_seconds):
            self._park(hold, waiting)

    def _make_room(self, after_seconds: float) -> None:
        """Places are short: of those that have only waited for this long, park what is too many, the longest first."""
        waiting = self._waiting(after_seconds)
        surplus = len(waiting) - int(len(self.held) * PARK_UNDER_PRESSURE_SHARE)
        if surplus > 0:
            waiting.sort(key=lambda one: one[1].since)
            for hold, what in waiting[:surplus]:
                self._park(hold, what)

    def _waiting(self, after_seconds: float) -> list[tuple[Hold, Waiting]]:
        now, wall = self._clock.monotonic(), self._clock.now_us()
        horizon = wall + int(after_seconds * 1_000_000)
        found: list[tuple[Hold, Waiting]] = []
        for hold in self.held.values():
            if hold.leaving or hold.looks or not hasattr(hold, "run"):
                continue
            waiting = hold.run.waiting()
            if waiting is None or now - waiting.since < after_seconds:
                continue
            if waiting.deadline_us is not None and waiting.deadline_us < horizon:
                continue  # it will go on before parking has paid off
            found.append((hold, waiting))
        return found

    def _park(self, hold: Hold, waiting: Waiting) -> None:
        if not hold.run.settle():  # else it is parked when that is saved
            hold.leaving = True
            self._flusher.add(Op(OpKind.PARK, hold, due_at=waiting.deadline_us))

    def drop_everything(self) -> None:
        """The lease is gone: whoever takes over goes on from the rows."""
        part = self._part
        part.transactions.discard()
        part.flusher.discard()
        part.lookups.discard()
        part.intake.forget()
        held = list(self.held.values())
        self.held.clear()
        self._share.gave_back(len(held))
        for hold in held:
            hold.leaving = True
            run = getattr(hold, "run", None)
            if run is not None:
                self._loop.call_soon(run.drop)

    def drop_slot(self, slot: int) -> None:
        """The slot is elsewhere. What was held of it was given back by whoever moved it."""
        self._flusher.forget_slot(slot)
        dropped = [(id_, hold) for id_, hold in self.held.items() if hold.claim.slot == slot]
        for id_, hold in dropped:
            del self.held[id_]
            hold.leaving = True
            run = getattr(hold, "run", None)
            if run is not None:
                self._loop.call_soon(run.drop)
        self._share.gave_back(len(dropped))


def _tell_aside(run: Run, aside: Aside) -> None:
    if isinstance(aside, FailedAttempt):
        run.attempt_recorded(aside)
    elif isinstance(aside, Heartbeat):
        run.heartbeat_recorded(aside)
