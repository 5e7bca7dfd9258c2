"""The part of an executor that serves one shard: its lease, its claims, its runs and its flushes.

Nothing here waits for another shard. When the lease is lost, every run is dropped on the spot (whoever took over goes
on from the rows) and a new lease is taken, which is a new incarnation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

import psycopg

from sharded_wf.cluster.shard import Shard
from sharded_wf.errors import LeaseLost
from sharded_wf.executor.claiming import Claiming
from sharded_wf.executor.flusher import Flusher
from sharded_wf.executor.health import ShardHealth
from sharded_wf.executor.held import Hold
from sharded_wf.executor.intake import Intake
from sharded_wf.executor.lookups import Lookups
from sharded_wf.executor.moving import Moving
from sharded_wf.executor.ops import Op, OpKind
from sharded_wf.executor.runs import Runs
from sharded_wf.executor.transactions import Transactions
from sharded_wf.executor.watch import Watch
from sharded_wf.limits import LEASE_SECONDS, SCHEMA_RETRY_SECONDS
from sharded_wf.maintenance.relay import Relay
from sharded_wf.maintenance.requests import Carrier
from sharded_wf.maintenance.retention import RetentionLoop
from sharded_wf.maintenance.vacuum import Vacuum
from sharded_wf.postgres import binary
from sharded_wf.postgres.failures import is_no_shard
from sharded_wf.postgres.listen import Listener
from sharded_wf.postgres.migrate import newest_known, too_new_message
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.store import claims, leases
from sharded_wf.store.moves import MOVES_CHANNEL

if TYPE_CHECKING:
    from sharded_wf.executor.executor import Executor

logger = logging.getLogger("sharded_wf.executor")


class ShardExecutor:
    """Serves one shard until it is told to drain."""

    def __init__(self, executor: Executor, shard: Shard) -> None:
        self._executor = executor
        self.shard = shard
        self._clock = shard.clock
        self._loop = asyncio.get_running_loop()
        self.held: dict[str, Hold] = {}
        self._lease_id: bytes | None = None
        self._refused: str | None = None
        self._lost = asyncio.Event()
        self._draining = asyncio.Event()
        self._claims = shard.link("claims")
        self._reads = shard.link("reads")
        self._watches = shard.link("watch")
        self._flushes = shard.link("flushes")
        self._relays = shard.link("relay")
        self.intake = Intake(executor.capabilities, executor.queues, isolated=executor.isolated)
        self.moving = Moving(self, executor.shards, self._watches, self._clock)
        here, moved = self.moving.schemas, self.moving.moved
        self.share = executor.room.share(lambda: self.answers)
        self.runs = Runs(executor, self)
        runs = self.runs
        self.held = runs.held
        self.flusher = Flusher(self._flushes, self._clock, runs.is_here, runs.saved, moved)
        self.transactions = Transactions(shard, self.flusher, self._lost.set, moved)
        self.lookups = Lookups(self._reads, self._clock, here, moved, runs.held, runs.resume, runs.offer, self._woken)
        self.listener = Listener(shard.dsn, [leases.READY_CHANNEL, leases.WAKE_CHANNEL, MOVES_CHANNEL], self._heard)
        self.relay = Relay(self._relays, executor.shards, here, self._clock, executor.arrived)
        self._carrier = Carrier(shard.link("outbox"), executor.shards)
        self._claiming = Claiming(
            self._claims, self._clock, here, moved, self.intake, self.share, runs.take, self._exhausted,
            executor.app.capability, self.intake.lanes_of(executor.app.upgraded),
        )  # fmt: skip
        self.watch = Watch(
            shard.name, self._watches, self.listener, self._clock, here, moved, self.intake, self._claiming.work,
            self.lookups.wakes, self.relay.sweep, self.relay.awaited, executor.isolation.wanted, self._carrier.look,
        )  # fmt: skip
        self.vacuum = Vacuum(shard.dsn, here)
        runs.begin()

    @property
    def answers(self) -> bool:
        """Whether the shard answered when it was last asked, the heartbeat included, which is asked all the time."""
        return self._flushes.healthy and self._claims.healthy and self._silent_seconds() < LEASE_SECONDS

    def _silent_seconds(self) -> float:
        return 0.0 if self._lease_id is None else self._executor.keeper.silent_seconds(self._lease_id)

    def health(self) -> ShardHealth:
        """How it fares here."""
        silent, failure = self._silent_seconds(), self._flushes.failure or self._claims.failure
        problem: str | None = None
        if failure is not None:
            problem = str(failure)
        elif silent >= LEASE_SECONDS:
            problem = f"no answer for {silent:.0f} s"
        elif self._lease_id is None:
            problem = self._refused or "no lease yet"
        affected = set(self.shard.slots) if problem else set(self.shard.slots) & self._executor.shards.away
        return ShardHealth(self.shard.name, self.shard.slots, tuple(sorted(affected)), len(self.held), problem)

    # --- life ---------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Take a lease and work under it, again and again, until drained. Never raises for what a shard does."""
        self.listener.start()
        try:
            while not self._draining.is_set():
                lease_id = await self._take_lease()
                if lease_id is None:
                    break
                await self._work_under(lease_id)
        finally:
            await self.listener.stop()
            for closed in (self._claims, self._reads, self._watches, self._flushes, self._relays, self._carrier,
                           self.transactions):  # fmt: skip
                closed.close()

    async def _take_lease(self) -> bytes | None:
        known = newest_known()
        said: str | None = None
        while not self._draining.is_set():
            lease_id = binary.new_uuid()
            try:
                await self._flushes.fetch(
                    leases.take_lease(
                        lease_id, f"{socket.gethostname()}:{os.getpid()}", self._executor.capabilities,
                        self._executor.queues, self._executor.version, self._clock.now_us(),
                        known=known, isolated=self._executor.isolated,
                    )
                )  # fmt: skip
                # With the lease in its place: whoever migrates sees it, or we see what was migrated.
                newer = leases.too_new_of(await self._flushes.transact(leases.too_new(known)))
            except (ConnectionLost, psycopg.Error) as error:
                # If it was written after all, nobody beats for it, and the next observer removes it.
                reason = " ".join(str(error).split())
                self.moving.moved(error)  # it may be that it is no shard any more
                if reason != said and not is_no_shard(error):  # once, however long the shard is away
                    logger.info("shard %s: no lease yet: %s", self.shard.name, reason)
                said = reason
                await self._flushes.pause()
                continue
            if newer is not None:
                await self._refuse(lease_id, too_new_message(newer))
                continue
            self._refused = None
            self._lease_id = lease_id
            self._lost.clear()
            self._executor.keeper.keep(
                lease_id, self.shard.name, self.shard.dsn, self.moving.schemas,
                self._lost_elsewhere, self._recovered_elsewhere,
            )  # fmt: skip
            return lease_id
        return None

    async def _refuse(self, lease_id: bytes, why: str) -> None:
        """The shard was migrated past what this code can work with. It is not served; the others are, as long as they
        can be."""
        if self._refused != why:
            logger.error("shard %s: not served any more: %s", self.shard.name, why)
        self._refused = why
        with contextlib.suppress(ConnectionLost, psycopg.Error):  # observers will find it dead
            await self._flushes.transact(leases.leave(lease_id))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCHEMA_RETRY_SECONDS):
                await self._draining.wait()

    async def _work_under(self, lease_id: bytes) -> None:
        self.transactions.begin_lease(lease_id)
        tasks = [
            asyncio.create_task(work, name=f"{self.shard.name} {name}")
            for name, work in (
                ("flusher", self.flusher.run(lease_id)),
                ("claims", self._claiming.run(lease_id)),
                ("lookups", self.lookups.run()),
                ("watch", self.watch.run(lease_id)),
                ("relay", self.relay.run()),
                ("outbox", self._carrier.run()),
                ("vacuum", self.vacuum.run()),
                ("parking", self.runs.park_for_ever()),
                ("lost", self._wait_lost()),
                ("moving", self.moving.run()),
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
            self.runs.drop_everything()
            self._lease_id = None
        # Drained or not, nothing is held under this lease any more.
        await self._leave(lease_id, wait=not drained, blameless=blameless)

    def _begin_retention(self) -> list[asyncio.Task[None]]:
        """Beside the work: if it ends, or fails, the work goes on."""
        if (policy := self._executor.retention) is None:
            return []
        loop = RetentionLoop(self.shard, self._executor.shards, self.moving, policy, self._clock)
        return [asyncio.create_task(loop.run(), name=f"{self.shard.name} retention")]

    def give_up_lease(self) -> None:
        """Drop everything, and begin anew from the rows."""
        self._lost.set()

    async def _wait_lost(self) -> None:
        await self._lost.wait()
        raise LeaseLost("it was taken over, or given up")

    async def _leave(self, lease_id: bytes, *, wait: bool, blameless: bool) -> None:
        """Give the lease up. An unfinished flush of ours is waited for by this, or fenced. What the claims still name
        is given back, unless a workflow may be to blame for this: then observers recover it as after a death."""
        while True:
            schemas = dict(self.moving.schemas)
            statements = leases.leave(lease_id)
            if blameless:
                now = self._clock.now_us()
                statements += [claims.give_back_lease(schema, lease_id, now) for _, schema in sorted(schemas.items())]
                statements.append(leases.notify_if_idle(sorted(schemas)))
            try:
                await self._flushes.transact(statements)
                return
            except (ConnectionLost, psycopg.Error) as error:
                if is_no_shard(error):
                    return  # all leases are gone with it
                logger.info("shard %s: leaving is put off: %s", self.shard.name, error)
                if self.moving.moved(error) is not None:
                    continue
                if not wait or self._draining.is_set():
                    return  # observers will find it dead
                await self._flushes.pause()

    # --- what happens on the shard ------------------------------------------------------------------------------

    def _exhausted(self, missed: bool) -> None:
        self.watch.exhausted(missed=missed)

    def _heard(self, channel: str, payload: str) -> None:
        if channel in ("", MOVES_CHANNEL):
            self.moving.look()
            if channel:
                return
        self.watch.heard(channel, payload)

    def _woken(self, slots: Iterable[int]) -> None:
        self.watch.ready(slots)

    def _lost_elsewhere(self) -> None:
        self._loop.call_soon_threadsafe(self._lost.set)

    def _recovered_elsewhere(self, count: int) -> None:
        self._executor.taken_over += count
        self._loop.call_soon_threadsafe(self.watch.heard, "", "")

    # --- draining -----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Claim nothing more, let what runs come to an end, give back the rest. Draining twice is fine."""
        self._draining.set()

    async def _drain(self) -> None:
        await self._draining.wait()
        await self._claiming.stop()
        deadline = self._clock.monotonic() + self._executor.drain_seconds
        while self.held and self._clock.monotonic() < deadline:
            self.runs.park_waiting(0.0)
            await asyncio.sleep(0.05)
        await self.transactions.settle()
        for hold in list(self.held.values()):
            if not hold.leaving and hasattr(hold, "run"):
                hold.leaving = True
                self._executor.given_back += 1
                self._loop.call_soon(hold.run.drop)
                self.flusher.add(Op(OpKind.GIVE_BACK, hold))
        await self.flusher.wait_quiet()
