"""Retention: old workflows go, a page at a time. The pace leaves the server to the load, unless tables grow by that.

No index knows when a workflow ended, because that changes. So each slot's history is walked in the order of creation,
once for each age that is configured, always an age (and a little) behind the present. What such a walk comes by before
it has ended, or whose parent needs it, it leaves behind; a full walk from the beginning, now and then, finds it.

One executor of a shard does this, and another one when it stops (``hold_retention``). Where it stands it keeps in
memory: whoever takes over walks from the beginning.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import psycopg

from sharded_wf.clock import SECOND_US, Clock, Microseconds
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import (
    RETENTION_BATCH_BEHIND_MAX_ROWS,
    RETENTION_BATCH_MAX_ROWS,
    RETENTION_BEHIND_SECONDS,
    RETENTION_HOLD_SECONDS,
    RETENTION_IDLE_SECONDS,
    RETENTION_LAG_MAX_SECONDS,
    RETENTION_LAG_PART,
    RETENTION_PAUSE_FACTOR,
    RETENTION_PAUSE_FACTOR_BEHIND,
    RETENTION_REWALK_SECONDS,
    RETENTION_REWALK_SHARE,
    RETENTION_VACUUM_AFTER_ROWS,
    RETENTION_VACUUM_PART,
)
from sharded_wf.maintenance.export import Export
from sharded_wf.maintenance.sweep import Sweep, cutoffs_at
from sharded_wf.postgres import binary
from sharded_wf.postgres.connect import open_async
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.retention import Retention
from sharded_wf.store import retention as rows

logger = logging.getLogger("sharded_wf.retention")


def lag_of(age: float) -> float:
    """How far behind an age its walk stays, in seconds."""
    return min(age * RETENTION_LAG_PART, RETENTION_LAG_MAX_SECONDS)


@dataclass(slots=True)
class Walk:
    """One walk over one slot. ``full``: it begins again at the beginning, with pauses that its cost decides."""

    slot: int
    age: float
    full: bool = False
    place: rows.Place = rows.START
    due: float = 0.0
    took: float = 0.0
    is_behind: bool = False

    def before(self, now: Microseconds) -> Microseconds:
        """What was created before this moment it may look at."""
        return max(rows.START[0], now - int((self.age + lag_of(self.age)) * SECOND_US))

    def advance(self, end: rows.Place, more: bool, now: float, took: float) -> None:
        """It looked at a page that ended there, at monotonic time ``now``."""
        self.place = end
        self.took += took
        if more:
            return
        if self.full:
            self.place = rows.START
            self.due = now + max(RETENTION_REWALK_SECONDS, self.took / RETENTION_REWALK_SHARE)
        else:
            self.due = now + min(max(self.age / 100, RETENTION_IDLE_SECONDS), 60.0)
        self.took = 0.0


class Slots(Protocol):
    """The slots that are here: they come and go."""

    @property
    def schemas(self) -> Mapping[int, str]:
        """Their schemas at this moment; always the same object."""
        ...

    def moved(self, error: Exception) -> int | None:
        """Told of errors: if one says that a slot is not here any more, it leaves ``schemas``."""
        ...


class RetentionLoop:
    """The retention of one shard, by one executor."""

    def __init__(self, shard: Shard, shards: ShardSet, slots: Slots, retention: Retention, clock: Clock) -> None:
        self._shard = shard
        self._clock = clock
        self._retention = retention
        self._link = shard.link("retention")
        self._export = None if retention.export is None else Export(retention.export, shard.name, clock)
        self._slots = slots
        self._sweep = Sweep(self._link, shards, slots.schemas, self._export)
        self._holder = binary.new_uuid()
        self._held_until = 0.0
        self._dead_rows: Counter[int] = Counter()
        self.deleted = 0

    def _follow(self, walks: list[Walk]) -> list[Walk]:
        """The walks over the slots that are here: those of slots that left have gone, those of slots that came begin at
        the beginning."""
        here = self._slots.schemas
        walked = {walk.slot for walk in walks}
        if walked == set(here):
            return walks
        ages = self._retention.distinct_ages()
        now = self._clock.monotonic()
        came = [slot for slot in here if slot not in walked]
        left = [walk for walk in walks if walk.slot in here]
        left += [Walk(slot, age) for age in ages for slot in came]
        return left + [Walk(slot, ages[-1], True, due=now + RETENTION_REWALK_SECONDS) for slot in came]

    async def run(self) -> None:
        """Remove what grows old, for ever, until cancelled. Whatever else ends it is a mistake of ours, and logged."""
        try:
            await self._run()
        except Exception:
            logger.exception("shard %s: retention has ended", self._shard.name)
            raise

    async def _run(self) -> None:
        walks: list[Walk] = []
        try:
            while self._retention.distinct_ages():
                try:
                    if not await self._hold():
                        walks = []
                        await asyncio.sleep(RETENTION_HOLD_SECONDS / 3)
                        continue
                    walks = self._follow(walks)
                    if not await self._round(walks):
                        await asyncio.sleep(RETENTION_IDLE_SECONDS)
                except (ConnectionLost, psycopg.Error, OSError) as error:
                    if self._slots.moved(error) is not None:
                        continue
                    logger.warning("shard %s: retention is put off: %s", self._shard.name, error)
                    self._held_until = 0.0
                    await asyncio.sleep(RETENTION_IDLE_SECONDS)
                    await self._link.pause()
        finally:
            self._link.close()
            if self._export is not None:
                self._export.close()

    async def _hold(self) -> bool:
        """Whether it is us who do this now. (Whoever held it and died is waited for.)"""
        now = self._clock.monotonic()
        if now >= self._held_until:
            answer = await self._link.fetch(rows.hold(self._holder, RETENTION_HOLD_SECONDS))
            self._held_until = now + RETENTION_HOLD_SECONDS / 3 if answer.count else 0.0
        return self._held_until > 0

    async def _round(self, walks: list[Walk]) -> bool:
        """A page of each walk that is due. Returns whether there was a full one."""
        busy = False
        for walk in walks:
            begun = self._clock.monotonic()
            if begun < walk.due:
                continue
            if not await self._hold():
                return False
            if walk.slot not in self._slots.schemas:
                continue
            now = self._clock.now_us()
            cutoffs = cutoffs_at(self._retention, now)
            before = walk.before(now)
            limit = RETENTION_BATCH_BEHIND_MAX_ROWS if walk.is_behind else RETENTION_BATCH_MAX_ROWS
            page = await self._sweep.page(walk.slot, walk.place, before, cutoffs, limit=limit)
            ended = self._clock.monotonic()
            walk.advance(page.end, page.full, ended, ended - begun)
            self.deleted += page.deleted
            self._dead_rows[walk.slot] += page.deleted
            busy |= page.full
            walk.is_behind = page.full and not walk.full and before - page.end[0] > RETENTION_BEHIND_SECONDS * SECOND_US
            factor = RETENTION_PAUSE_FACTOR_BEHIND if walk.is_behind else RETENTION_PAUSE_FACTOR
            await asyncio.sleep((ended - begun) * factor)
            if self._dead_rows[walk.slot] >= RETENTION_VACUUM_AFTER_ROWS:
                await self._vacuum(walk.slot)
        return busy

    async def _vacuum(self, slot: int) -> None:
        schema = self._slots.schemas.get(slot)
        if schema is None:
            del self._dead_rows[slot]
            return
        left = binary.read_int((await self._link.fetch(rows.estimate_rows(schema))).value() or b"")
        if self._dead_rows[slot] < left * RETENTION_VACUUM_PART:
            return
        conn, _ = await open_async(self._shard.dsn, "sharded_wf retention vacuum")
        try:
            for command in rows.vacuums(schema):
                await conn.execute(command.encode())
        finally:
            conn.pgconn.finish()
        del self._dead_rows[slot]
