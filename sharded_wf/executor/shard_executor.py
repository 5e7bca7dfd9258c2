"""The part of an executor that serves one shard: its lease, its claims, its runs and its flushes.

Nothing here waits for another shard. When the lease is lost, every run is dropped on the spot (whoever took over goes
on from the rows) and a new lease is taken, which is a new incarnation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import psycopg

from sharded_wf.cluster.shard import Shard
from sharded_wf.errors import LeaseLost
from sharded_wf.executor.claiming import Claiming
from sharded_wf.executor.flusher import Flusher
from sharded_wf.executor.held import Claim, Hold, UnknownRun
from sharded_wf.executor.host import ShardHost
from sharded_wf.executor.intake import Intake
from sharded_wf.executor.lookups import Lookups, Resumed
from sharded_wf.executor.ops import LEAVING, Op, OpKind, Told
from sharded_wf.executor.watch import Watch
from sharded_wf.limits import PARK_SWEEP_SECONDS
from sharded_wf.maintenance.relay import Relay
from sharded_wf.maintenance.retention import RetentionLoop
from sharded_wf.maintenance.vacuum import Vacuum
from sharded_wf.model.history import EMPTY_HISTORY, FailedAttempt, Heartbeat, History
from sharded_wf.model.workflow import Event, Message
from sharded_wf.postgres import binary
from sharded_wf.postgres.listen import Listener
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.store import claims, leases
from sharded_wf.workflow.host import Run

if TYPE_CHECKING:
    from sharded_wf.executor.executor import Executor

logger = logging.getLogger("sharded_wf.executor")


def _tell_aside(run: Run, aside: FailedAttempt | Heartbeat | Event) -> None:
    if isinstance(aside, FailedAttempt):
        run.attempt_recorded(aside)
    elif isinstance(aside, Heartbeat):
        run.heartbeat_recorded(aside)


class ShardExecutor:
    """Serves one shard until it is told to drain."""

    def __init__(self, executor: Executor, shard: Shard) -> None:
        self._executor = executor
        self.shard = shard
        self._clock = shard.clock
        self._loop = asyncio.get_running_loop()
        self.held: dict[str, Hold] = {}
        self._lease_id: bytes | None = None
        self._lost = asyncio.Event()
        self._draining = asyncio.Event()
        self._claims = shard.link("claims")
        self._reads = shard.link("reads")
        self._watches = shard.link("watch")
        self._flushes = shard.link("flushes")
        self._relays = shard.link("relay")
        self._intake = Intake(executor.capabilities, executor.queues, isolated=executor.isolated)
        self.flusher = Flusher(self._flushes, self._clock, self._is_here, self._saved)
        self.lookups = Lookups(
            self._reads, self._clock, shard.schemas, self.held, self._resume, self._offer, self._woken
        )
        self._listener = Listener(shard.dsn, [leases.READY_CHANNEL, leases.WAKE_CHANNEL], self._heard)
        self.relay = Relay(self._relays, executor.shards, shard.schemas, self._clock, executor.arrived)
        self._share = executor.room.share(lambda: self.answers)
        self._claiming = Claiming(
            self._claims, self._clock, shard.schemas, self._intake, self._share, self._take, self._exhausted
        )
        self._watch = Watch(
            self._watches, self._listener, self._clock, shard.schemas, self._intake, self._claiming.work,
            self.lookups.wakes, self.relay.sweep, self.relay.awaited, executor.isolation.wanted,
        )  # fmt: skip
        self._vacuum = Vacuum(shard.dsn, shard.schemas)
        self._host = ShardHost(executor, self)

    @property
    def answers(self) -> bool:
        """Whether the shard answered when it was last asked."""
        return self._flushes.healthy and self._claims.healthy

    # --- life ---------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Take a lease and work under it, again and again, until drained. Never raises for what a shard does."""
        self._listener.start()
        try:
            while not self._draining.is_set():
                lease_id = await self._take_lease()
                if lease_id is None:
                    break
                await self._work_under(lease_id)
        finally:
            await self._listener.stop()
            for link in (self._claims, self._reads, self._watches, self._flushes, self._relays):
                link.close()

    async def _take_lease(self) -> bytes | None:
        while not self._draining.is_set():
            lease_id = binary.new_uuid()
            try:
                await self._flushes.fetch(
                    leases.take_lease(
                        lease_id, f"{socket.gethostname()}:{os.getpid()}", self._executor.capabilities,
                        self._executor.queues, self._executor.version, self._clock.now_us(),
                        isolated=self._executor.isolated,
                    )
                )  # fmt: skip
            except (ConnectionLost, psycopg.Error) as error:
                # If it was written after all, nobody beats for it, and the next observer removes it.
                logger.info("shard %s: no lease yet: %s", self.shard.name, error)
                await self._flushes.pause()
                continue
            self._lease_id = lease_id
            self._lost.clear()
            self._executor.keeper.keep(
                lease_id, self.shard.name, self.shard.dsn, self.shard.schemas,
                self._lost_elsewhere, self._recovered_elsewhere,
            )  # fmt: skip
            return lease_id
        return None

    async def _work_under(self, lease_id: bytes) -> None:
        tasks = [
            asyncio.create_task(work, name=f"{self.shard.name} {name}")
            for name, work in (
                ("flusher", self.flusher.run(lease_id)),
                ("claims", self._claiming.run(lease_id)),
                ("lookups", self.lookups.run()),
                ("watch", self._watch.run(lease_id)),
                ("relay", self.relay.run()),
                ("vacuum", self._vacuum.run()),
                ("parking", self._park_for_ever()),
                ("lost", self._wait_lost()),
                ("drained", self._drain()),
            )
        ]
        aside = self._begin_retention()
        drained = False
        blameless = True
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if task is tasks[-1] and error is None:
                    drained = True
                elif isinstance(error, LeaseLost):
                    logger.warning("shard %s: the lease is lost: %s", self.shard.name, error)
                elif error is not None:
                    blameless = False  # it may be a workflow's doing: to be counted, so that it does not go on for ever
                    logger.error("shard %s: %s failed; starting anew", self.shard.name, task.get_name(), exc_info=error)
        finally:
            for task in (*tasks, *aside):
                task.cancel()
            await asyncio.gather(*tasks, *aside, return_exceptions=True)
            self._executor.keeper.release(lease_id)
            self._drop_everything()
            self._lease_id = None
        # Drained or not, nothing is held under this lease any more.
        await self._leave(lease_id, wait=not drained, blameless=blameless)

    def _begin_retention(self) -> list[asyncio.Task[None]]:
        """Beside the work: if it ends, or fails, the work goes on."""
        if self._executor.retention is None:
            return []
        loop = RetentionLoop(self.shard, self._executor.shards, self._executor.retention, self._clock)
        return [asyncio.create_task(loop.run(), name=f"{self.shard.name} retention")]

    async def _wait_lost(self) -> None:
        await self._lost.wait()
        raise LeaseLost("another executor took it over")

    async def _leave(self, lease_id: bytes, *, wait: bool, blameless: bool) -> None:
        """Give the lease up. An unfinished flush of ours is waited for by this, or fenced. What the claims still name
        is given back, unless a workflow may be to blame for this: then observers recover it as after a death."""
        schemas = self.shard.schemas
        while True:
            statements = leases.leave(lease_id)
            if blameless:
                now = self._clock.now_us()
                statements += [claims.give_back_lease(schema, lease_id, now) for _, schema in sorted(schemas.items())]
                statements.append(leases.notify_if_idle(sorted(schemas)))
            try:
                await self._flushes.transact(statements)
                return
            except (ConnectionLost, psycopg.Error) as error:
                logger.info("shard %s: leaving is put off: %s", self.shard.name, error)
                if not wait or self._draining.is_set():
                    return  # observers will find it dead
                await self._flushes.pause()

    def _drop_everything(self) -> None:
        self.flusher.discard()
        self.lookups.discard()
        self._intake.forget()
        held = list(self.held.values())
        self.held.clear()
        self._share.gave_back(len(held))
        for hold in held:
            hold.leaving = True
            run = getattr(hold, "run", None)
            if run is not None:
                self._loop.call_soon(run.drop)

    # --- running ------------------------------------------------------------------------------------------------

    def _exhausted(self, missed: bool) -> None:
        self._watch.exhausted(missed=missed)

    def _take(self, claim: Claim, came: list[claims.Claimed]) -> None:
        """Hold what was claimed: new workflows start at once, those that ran before when their history is read."""
        fresh: list[tuple[claims.Claimed, Hold]] = []
        for claimed in came:
            hold = Hold(claim, claimed.parent_id)
            if claimed.id in self.held:
                self._share.gave_back(1)  # it left with a flush of which we have yet to hear, and is back
            self.held[claimed.id] = hold
            if claimed.claims > 1:
                self.lookups.history(claimed, hold)
            else:
                fresh.append((claimed, hold))
        self._vacuum.churned(claim.slot, "ready", len(came))
        if fresh:
            self._loop.call_soon(self._start, fresh)

    def _start(self, fresh: list[tuple[claims.Claimed, Hold]]) -> None:
        with self._host.stage:
            for claimed, hold in fresh:
                self._run(claimed, hold, EMPTY_HISTORY)

    def _resume(self, resumed: list[Resumed]) -> None:
        for claimed, hold, history, mail in resumed:
            if self._run(claimed, hold, history) and mail and not hold.leaving:
                hold.mailed = True
                hold.run.offer(mail)

    def _run(self, claimed: claims.Claimed, hold: Hold, history: History) -> bool:
        if self.held.get(claimed.id) is not hold:
            return False  # dropped meanwhile: the lease is gone
        definition = self._executor.app.workflows.get(claimed.name)
        if definition is None:
            hold.leaving = True
            hold.run = cast(Run, UnknownRun(claimed.id))
            self.flusher.add(Op(OpKind.REROUTE, hold))
            return False
        run = definition.new_run(self._host, claimed.id, claimed.input, history, claimed.started_at, claimed.claims)
        run.claim = hold
        hold.run = run
        if claimed.deadline is not None or definition.run_seconds is not None:
            deadline = definition.deadline(claimed.started_at, claimed.deadline)
            if deadline is not None and not run.limit(deadline):
                run.expire()
                return False
        run.start()
        return True

    # --- saved --------------------------------------------------------------------------------------------------

    def _is_here(self, workflow_id: str) -> tuple[int, bool]:
        slot = self._executor.shards.map.slot_of(workflow_id)
        return slot, slot in self.shard.schemas

    def _saved(self, ops: list[Op], told: Told) -> None:
        """A flush was committed. Runs are stepped from a plain callback, never inside the flusher's task; but the
        claims are counted here: the next flush may be made before that callback, and must know which are empty."""
        churned = self._vacuum.churned
        for op in ops:
            claim = op.hold.claim
            if op.kind in LEAVING:
                claim.held -= 1
                if not claim.held:
                    churned(claim.slot, "claim", 1)
                if op.due_at is not None:
                    churned(claim.slot, "timer", 1)
            elif op.consumed is not None:
                churned(claim.slot, "message", 1)
                churned(claim.slot, "wake", 1)
        for slot, _ in told.outgoing:
            churned(slot, "outbox", 1)
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
                    finished += kind is OpKind.FINISH
                    # It may have been claimed anew, or everything been dropped, between the commit and this callback.
                    if self.held.get(hold.run.id) is hold:
                        del self.held[hold.run.id]
                        left += 1
                    if kind is OpKind.PARK:
                        hold.run.drop()
                        if op.due_at is not None:
                            self._watch.timer_set(hold.claim.slot, op.due_at)
                    hold.run.claim = None  # nobody asks any more; the two hold each other, which is work for the GC
        self._executor.finished += finished
        self._share.gave_back(left)
        if told.outgoing:
            self.relay.add(told.outgoing)
        if told.delivered:
            self._executor.arrived([message for _, message in told.delivered])

    # --- messages and wakes -------------------------------------------------------------------------------------

    def _heard(self, channel: str, payload: str) -> None:
        self._watch.heard(channel, payload)

    def _woken(self, slots: Iterable[int]) -> None:
        self._watch.ready(slots)

    def _lost_elsewhere(self) -> None:
        self._loop.call_soon_threadsafe(self._lost.set)

    def _recovered_elsewhere(self, count: int) -> None:
        self._executor.taken_over += count
        self._loop.call_soon_threadsafe(self._watch.heard, "", "")

    def _offer(self, mailboxes: dict[str, list[Message]]) -> set[str]:
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

    # --- parking and draining -----------------------------------------------------------------------------------

    async def _park_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PARK_SWEEP_SECONDS)
            if self.held:
                self.park_waiting(self._executor.park_after_now())

    def park_waiting(self, after_seconds: float) -> None:
        """Park every run that has only waited for this long."""
        now, wall = self._clock.monotonic(), self._clock.now_us()
        horizon = wall + int(after_seconds * 1_000_000)
        for hold in list(self.held.values()):
            if hold.leaving or not hasattr(hold, "run"):
                continue
            waiting = hold.run.waiting()
            if waiting is None or now - waiting.since < after_seconds:
                continue
            if waiting.deadline_us is not None and waiting.deadline_us < horizon:
                continue  # it will go on before parking has paid off
            hold.leaving = True
            self.flusher.add(Op(OpKind.PARK, hold, due_at=waiting.deadline_us))

    def drain(self) -> None:
        """Claim nothing more, let what runs come to an end, give back the rest. Draining twice is fine."""
        self._draining.set()

    async def _drain(self) -> None:
        await self._draining.wait()
        await self._claiming.stop()
        deadline = self._clock.monotonic() + self._executor.drain_seconds
        while self.held and self._clock.monotonic() < deadline:
            self.park_waiting(0.0)
            await asyncio.sleep(0.05)
        for hold in list(self.held.values()):
            if not hold.leaving and hasattr(hold, "run"):
                hold.leaving = True
                self._loop.call_soon(hold.run.drop)
                self.flusher.add(Op(OpKind.GIVE_BACK, hold))
        await self.flusher.wait_quiet()
