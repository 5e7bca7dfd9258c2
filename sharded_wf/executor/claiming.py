"""Claiming: from the queues of one shard into memory, as long as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import psycopg

from sharded_wf.clock import Clock
from sharded_wf.errors import LeaseLost
from sharded_wf.executor.held import Claim
from sharded_wf.executor.intake import Intake, Pick
from sharded_wf.limits import CLAIM_DEADLINE_SECONDS, CLAIM_GATHER_SECONDS
from sharded_wf.postgres import binary
from sharded_wf.postgres.failures import is_transient
from sharded_wf.postgres.gathering import Gathering
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost, Result
from sharded_wf.routing import slot_schema
from sharded_wf.store import claims, leases


class Capacity(Protocol):
    """How much more may be claimed."""

    def room(self) -> int:
        """How many workflows, at this moment."""
        ...

    def took(self, count: int) -> None:
        """So many places are taken, at first for a claim that is under way: others must not count on them."""
        ...

    def gave_back(self, count: int) -> None:
        """So many of them were not needed."""
        ...

    async def wait_for_room(self) -> None:
        """Until that may have changed."""
        ...


class Claiming:
    """The claims of one executor on one shard. ``took(claim, workflows)`` is called for each batch that came. What
    comes from a lane whose capability is in ``adopted`` is of ``capability`` from then on."""

    def __init__(
        self,
        link: Link,
        clock: Clock,
        schemas: Mapping[int, str],
        moved: Callable[[Exception], object],
        intake: Intake,
        capacity: Capacity,
        took: Callable[[Claim, list[claims.Claimed]], None],
        exhausted: Callable[[bool], None],
        capability: str,
        adopted: Collection[str],
    ) -> None:
        self._link = link
        self._clock = clock
        self._schemas = schemas
        self._moved = moved
        self._intake = intake
        self._capacity = capacity
        self._took = took
        self._exhausted = exhausted
        self._capability = capability
        self._adopted = adopted
        self._stopping = False
        self._gathering = Gathering(clock, CLAIM_GATHER_SECONDS)
        self._work = asyncio.Event()
        self._stopped = asyncio.Event()

    def work(self) -> None:
        """Some lane is believed to have work."""
        self._work.set()

    async def stop(self) -> None:
        """Claim nothing more; returns when the claim under way has come to its end. Stopping twice is fine."""
        self._stopping = True
        self._work.set()
        await self._stopped.wait()

    async def run(self, lease_id: bytes) -> None:
        """Claim under this lease until stopped or cancelled. Raises ``LeaseLost``."""
        self._stopped.clear()
        try:
            while not self._stopping:
                room = self._capacity.room()
                if room <= 0:
                    await self._capacity.wait_for_room()
                elif not self._intake.has_work:
                    self._work.clear()
                    await self._work.wait()
                elif await self._gathering.waited():
                    continue  # what there is to claim, and room for, may have changed
                elif picks := self._intake.picks(room, self._clock.monotonic()):
                    wanted = sum(pick.limit for pick in picks)
                    self._capacity.took(wanted)
                    came = 0
                    try:
                        begun = self._clock.monotonic()
                        came = await self._claim(lease_id, picks)
                        self._gathering.note(begun, came)
                    finally:
                        self._capacity.gave_back(wanted - came)
        finally:
            self._stopped.set()
        await asyncio.Event().wait()  # when to end all of this is not for this task to say

    async def _claim(self, lease_id: bytes, picks: list[Pick]) -> int:
        """One claiming transaction; returns how many workflows came."""
        now = self._clock.now_us()
        claim_ids = [binary.new_uuid() for _ in picks]
        statements = [leases.fence(lease_id)]
        for pick, claim_id in zip(picks, claim_ids, strict=True):
            schema = slot_schema(pick.slot)
            statements.append(claims.claim(schema, pick.lane, pick.mark, pick.limit, claim_id, lease_id, now))
        if self._adopted:
            statements += [
                claims.adopt(slot_schema(pick.slot), claim_id, self._capability)
                for pick, claim_id in zip(picks, claim_ids, strict=True)
                if pick.lane.capability in self._adopted
            ]
        try:
            done = await self._link.transact(statements, deadline=CLAIM_DEADLINE_SECONDS)
            answers: list[Result | None] = [*done[1 : len(picks) + 1]]
        except ConnectionLost as error:
            if not error.commit_unknown:
                self._intake.failed(picks)
                await self._link.pause()
                return 0
            answers = await self._read_claims(picks, claim_ids)
        except psycopg.Error as error:
            if error.sqlstate == leases.LEASE_LOST_SQLSTATE:
                raise LeaseLost(str(error)) from None
            self._moved(error)
            self._intake.failed(picks)
            if not is_transient(error):
                raise
            await self._link.pause()
            return 0
        total = 0
        for pick, claim_id, answer in zip(picks, claim_ids, answers, strict=True):
            came = [] if answer is None else claims.claimed_of(answer)
            self._intake.came(pick, len(came), max([one.enqueued_at for one in came], default=None))
            total += len(came)
            if came:
                self._took(Claim(claim_id, pick.slot, slot_schema(pick.slot), len(came)), came)
        if not self._intake.has_work:
            self._exhausted(total == 0)
        return total

    async def _read_claims(self, picks: list[Pick], claim_ids: list[bytes]) -> list[Result | None]:
        """After an answer that was lost: end the old backend, then read what the claims hold, if they exist."""
        if self._link.pooled:
            # Nobody can say which backend was ours. Under a new lease everything is read anew.
            raise LeaseLost("given up after a lost answer")
        token = self._link.token
        while True:
            try:
                await self._link.wait_backend_gone(token)
                # A slot that has left took its claims with it, given back.
                asked = [at for at, pick in enumerate(picks) if pick.slot in self._schemas]
                found: list[Result | None] = [None] * len(picks)
                statements = [claims.read_claim(slot_schema(picks[at].slot), claim_ids[at]) for at in asked]
                for at, answer in zip(asked, await self._link.transact(statements), strict=True):
                    found[at] = answer
                return found
            except (ConnectionLost, psycopg.Error) as error:
                self._moved(error)
                await self._link.pause()
