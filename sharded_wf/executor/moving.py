"""Slots that come and go while an executor runs.

Which slots it serves follows from the shard map, from what it is asked to give back, and from what it finds: a slot
whose tables are not there any more has moved, or was split. Being asked is a courtesy, so that running steps can come
to their end: when the slot goes, whatever is still held of it has been given back by whoever moved it, and dropping it
here is all that is left.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import psycopg

from sharded_wf.clock import Clock
from sharded_wf.executor.ops import Op, OpKind
from sharded_wf.limits import MOVE_STALE_SECONDS, MOVES_POLL_SECONDS, MOVES_POLL_TOLD_SECONDS, SLOT_DRAIN_SECONDS
from sharded_wf.postgres.failures import is_moved, moved_slot
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.routing import slot_schema
from sharded_wf.store.moves import moves_of, watch_moves

if TYPE_CHECKING:
    from sharded_wf.cluster.shards import ShardSet
    from sharded_wf.executor.shard_executor import ShardExecutor

logger = logging.getLogger("sharded_wf.moving")

_SWEEP_SECONDS = 0.02


class Moving:
    """The slots that one executor serves on one shard. ``schemas`` are these slots; others see it change."""

    def __init__(self, part: ShardExecutor, shards: ShardSet, link: Link, clock: Clock) -> None:
        self._part = part
        self._shards = shards
        self._link = link
        self._clock = clock
        self.schemas: dict[int, str] = {}
        self._leaving: dict[int, float] = {}  # slot -> when what runs there is given back
        self._gone: set[int] = set()
        self._stir = asyncio.Event()
        self._reload: asyncio.Task[None] | None = None
        for slot in part.shard.slots:
            if slot not in shards.away:
                self.schemas[slot] = slot_schema(slot)

    def look(self) -> None:
        """Something is said to have changed."""
        self._stir.set()

    def follow_map(self) -> None:
        """The map was read anew: serve what it says."""
        self._gone.clear()
        wanted = set(self._part.shard.slots) - self._shards.away - self._leaving.keys()
        came = wanted - self.schemas.keys()
        for slot in self.schemas.keys() - wanted - self._leaving.keys():
            self._drop(slot)
        for slot in came:
            self.schemas[slot] = slot_schema(slot)
        if came:
            logger.info("shard %s: serves slots %s from now on", self._part.shard.name, sorted(came))
            for slot in came:
                self._part.intake.serve_slot(slot)
            self._part.watch.slots_changed()

    def moved(self, error: Exception) -> int | None:
        """An error that a statement met: if it says that a slot is not here any more, what is held of it is dropped,
        and the map read anew. Returns the slot."""
        if not isinstance(error, psycopg.Error) or not is_moved(error):
            return None
        slot = moved_slot(error)
        if slot is not None:
            if slot not in self._gone:
                self._gone.add(slot)
                logger.info("shard %s: slot %d is not here any more", self._part.shard.name, slot)
            self._drop(slot)  # again, perhaps: the answer to a claim may have come after the first time
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._shards.reload(), name="reload map")
        return slot

    def _drop(self, slot: int) -> None:
        """Forget what is held of a slot that is elsewhere. It was given back by whoever moved it."""
        self._leaving.pop(slot, None)
        if slot in self.schemas:
            self._leave(slot)
        self._part.runs.drop_slot(slot)

    def _leave(self, slot: int) -> None:
        """Claim there no more."""
        del self.schemas[slot]
        self._part.intake.leave_slot(slot)
        self._part.watch.slots_changed()

    async def run(self) -> None:
        """Watch for ever, until cancelled."""
        while True:
            try:
                version, leaving, timelines = moves_of(await self._link.fetch(watch_moves(MOVE_STALE_SECONDS)))
                self._shards.heard_of(timelines)
            except (ConnectionLost, psycopg.Error) as error:
                self.moved(error)
                await self._link.pause()
                continue
            if version != self._shards.versions.get(self._part.shard.name):
                await self._shards.reload()
            self._request(leaving)
            await self._give_back()
            told = self._part.listener.works
            seconds = MOVES_POLL_TOLD_SECONDS if told else MOVES_POLL_SECONDS
            if self._holds_leaving():
                seconds = _SWEEP_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await self._stir.wait()
            except TimeoutError:
                pass
            self._stir.clear()

    def _request(self, leaving: frozenset[int]) -> None:
        """These slots are to be given back; those that were to be, and are not among them, are served again."""
        now = self._clock.monotonic()
        for slot in leaving & self.schemas.keys():
            logger.info("shard %s: gives slot %d back, it is to be moved", self._part.shard.name, slot)
            self._leaving[slot] = now + SLOT_DRAIN_SECONDS
            self._leave(slot)
        stays = self._leaving.keys() - leaving
        for slot in stays:
            del self._leaving[slot]
        if stays:
            self.follow_map()

    def _holds_leaving(self) -> bool:
        return bool(self._leaving) and any(hold.claim.slot in self._leaving for hold in self._part.held.values())

    async def _give_back(self) -> None:
        """Park what only waits; give back the rest when its time is over."""
        now = self._clock.monotonic()
        for hold in list(self._part.held.values()):
            due = self._leaving.get(hold.claim.slot)
            if due is None or hold.leaving or not hasattr(hold, "run"):
                continue
            if self._part.transactions.is_committing(hold):
                continue  # it ends soon, and its row must be of a workflow that is still held
            waiting = hold.run.waiting()
            if waiting is not None:
                hold.leaving = True
                self._part.flusher.add(Op(OpKind.PARK, hold, due_at=waiting.deadline_us))
            elif now >= due:
                hold.leaving = True
                asyncio.get_running_loop().call_soon(hold.run.drop)
                self._part.flusher.add(Op(OpKind.GIVE_BACK, hold))
