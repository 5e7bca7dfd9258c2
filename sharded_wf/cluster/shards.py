"""The set of shards as one process reaches them, and the way from a workflow ID to its shard.

Slots move, and are split, while processes run. Whoever meets a slot that is not where the map says (``SlotMoved``)
reads the map anew, looks up its workflow's slot anew, and asks again; so a move costs a caller a few milliseconds, and
a move that hangs makes callers of that slot wait, as if its shard were away. A shard that is new in ``shards.toml`` is
found in the same way: the file is read again when the map names a shard that this process does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import psycopg

from sharded_wf.clock import SYSTEM_CLOCK, Clock
from sharded_wf.cluster import citus
from sharded_wf.cluster.directory import NO_MEMBER, Directory, load_map
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shard_map import Placement, live_slots, merge
from sharded_wf.cluster.timelines import seen_by_this_process, spread
from sharded_wf.cluster.writer import SlotMoved
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import SchemaOutOfDate, ShardedWfError, ShardUnavailable
from sharded_wf.limits import (
    MAP_RELOAD_FIRST_SECONDS,
    MAP_RELOAD_MAX_SECONDS,
    READ_DEADLINE_SECONDS,
    WRITE_DEADLINE_SECONDS,
)
from sharded_wf.model.workflow import Message, Start
from sharded_wf.postgres.failures import is_of_schema, moved_slot
from sharded_wf.postgres.session import ConnectionLost, Result, Statement
from sharded_wf.postgres.timeline import Timeline, primary_of
from sharded_wf.routing import IdMaker, ShardMap
from sharded_wf.store.starts import Existing

logger = logging.getLogger("sharded_wf.shards")

T = TypeVar("T")
_ID: Callable[[Start], str] = attrgetter("id")
_RECEIVER: Callable[[Message], str] = attrgetter("receiver")


class SlotSplit(Exception):
    """Nothing was done: the slot was split. What was in it is in its halves, or in what these were split into."""


class ShardSet:
    """Every shard of the cluster, by name, and the shard map. Open it with ``ShardSet.open``, close it with
    ``close``."""

    def __init__(
        self, config: ClusterConfig, shard_map: ShardMap, members: Iterable[ShardConfig], clock: Clock
    ) -> None:
        self.config = config
        self.map = shard_map
        self.clock = clock
        self.cluster_id: uuid.UUID | None = None
        self.shards = {
            shard.name: Shard(shard.name, shard.dsn, shard_map.slots_of(shard.name), clock) for shard in members
        }
        self.away: frozenset[int] = frozenset()
        """Slots that are nowhere at this moment: they are being moved."""
        self.versions: dict[str, int] = {}
        """Of each shard's copy of the map, when we last read it."""
        self.on_change: list[Callable[[], None]] = []
        """Called when the map, the shards or the slots that are away have changed."""
        self.on_failover: list[Callable[[Shard], None]] = []
        """Called when another server has become a shard's primary."""
        self._subscriptions: dict[Shard, Callable[[], None]] = {}
        self._spreading: asyncio.Task[None] | None = None
        self._ids: IdMaker | None = None
        self._by_slot = {slot: self.shards.get(name) for slot, name in shard_map.placement.items()}
        self._reloading = asyncio.Lock()
        self._reload_begun = 0.0
        self._outdated: str | None = None
        self._left: list[Shard] = []
        self._placements: tuple[Placement, ...] = ()
        self._strangers: frozenset[str] = frozenset()
        self._unread: str | None = None

    @classmethod
    async def open(cls, config: ClusterConfig, clock: Clock = SYSTEM_CLOCK) -> ShardSet:
        """Read the shard map from the databases. Raises as ``load_map``; a shard that is away is tolerated as long as
        one answers."""
        config = await asyncio.to_thread(citus.resolve, config)
        directory = await asyncio.to_thread(load_map, config)
        opened = cls(config, directory.shard_map, directory.shards, clock)
        opened.cluster_id = directory.cluster_id
        opened._placements = directory.placements
        opened.versions.update(directory.versions)
        opened.away = directory.away(directory.shard_map)
        opened._follow_primaries()
        opened._note_strangers(())
        for name, reason in directory.unreachable.items():
            opened.shards[name].reader.note_away(reason)
        return opened

    async def close(self) -> None:
        """Close every connection. Closing twice is fine."""
        while self._subscriptions:
            self._subscriptions.popitem()[1]()
        if self._spreading is not None:
            await self._spreading
        await asyncio.gather(*(shard.close() for shard in (*self.shards.values(), *self._left)))

    # --- when slots move ----------------------------------------------------------------------------------------

    async def reload(self) -> None:
        """Read the map anew. Callers at the same time share one look, which begins after they asked. If no shard
        answers, everything stays as it is."""
        asked = self.clock.monotonic()
        async with self._reloading:
            if self._reload_begun >= asked:
                return
            self._reload_begun = self.clock.monotonic()
            self._outdated = None
            try:
                self._adopt(await asyncio.to_thread(self._load))
                self._follow_primaries()
                self._unread = None
            except ShardedWfError as error:
                self._outdated = str(error) if isinstance(error, SchemaOutOfDate) else None
                if str(error) != self._unread:  # once, however often it is tried
                    logger.info("the shard map could not be read anew: %s", error)
                self._unread = str(error)

    def _load(self) -> Directory:
        self.config = citus.refresh(self.config)
        directory = load_map(self.config, lenient=True)
        known = {shard.name for shard in self.config.shards}
        # Only a file can have changed since this process began: see `ClusterConfig.source`.
        if any(name not in known for name in directory.shard_map.shards) and Path(self.config.source).is_file():
            newer = ClusterConfig.from_file(self.config.source)
            if newer.name == self.config.name:
                self.config = newer
                directory = load_map(newer, lenient=True)
        return directory

    def _adopt(self, directory: Directory) -> None:
        # Slot by slot: the shards that answered this time may know less than we do.
        self._placements = merge((directory.placements, self._placements))
        self.versions.update(directory.versions)
        here, epoch = self.map, max(row.epoch for row in self._placements)
        newer = ShardMap(epoch, live_slots(self._placements, here.base), here.base)
        left = self.shards.keys() - {shard.name for shard in directory.shards}
        away = directory.away(newer)
        if (newer, away, {shard.name for shard in directory.shards}) == (here, self.away, set(self.shards)):
            return
        for config in directory.shards:
            if config.name not in self.shards:
                self.shards[config.name] = Shard(config.name, config.dsn, (), self.clock)
        for name in left:
            self._left.append(self.shards.pop(name))
        self._note_strangers(left)
        self.map, self.away = newer, away
        for shard in (*self.shards.values(), *self._left):
            shard.assign(newer.slots_of(shard.name))
        self._by_slot = {slot: self.shards.get(name) for slot, name in newer.placement.items()}
        for changed in self.on_change:
            changed()

    def _note_strangers(self, left: Collection[str]) -> None:
        """Say once of each shard that the configuration names that it is not, or no more, part of the cluster."""
        strangers = frozenset(shard.name for shard in self.config.shards) - self.shards.keys()
        for name in sorted(strangers - self._strangers):
            what = "not part of the cluster any more: delete its [[shard]]" if name in left else NO_MEMBER
            logger.warning("shard %s: %s from %s", name, what, self.config.source)
        self._strangers = strangers

    async def find_slot(self, slot: int, until: float, attempt: int) -> None:
        """After a slot was not where we looked for it: read the map anew, until the slot lies somewhere. ``until``: the
        monotonic time to give up (``ShardUnavailable``). Raises ``SchemaOutOfDate`` if the tables are not for this
        version any more."""
        pause = MAP_RELOAD_FIRST_SECONDS * 2 ** min(attempt, 10)
        if attempt:
            await asyncio.sleep(min(pause, MAP_RELOAD_MAX_SECONDS))
        while True:
            await self.reload()
            if self._outdated is not None:
                raise SchemaOutOfDate(self._outdated)
            if slot not in self.away:
                return
            if self.clock.monotonic() > until:
                raise ShardUnavailable(self.map.shard_of_slot(slot), f"slot {slot} is being moved")
            pause = min(pause * 2, MAP_RELOAD_MAX_SECONDS)
            await asyncio.sleep(pause)

    async def transact(
        self, workflow_id: str, statements: Callable[[int], Sequence[Statement]], *, deadline: float
    ) -> list[Result]:
        """One transaction on the slot of a workflow, made for the number of that slot, wherever it moves or is split
        meanwhile; ``deadline`` in seconds. Raises ``ShardUnavailable``; then it is unknown whether it was committed."""
        return (await self.transact_each([workflow_id], lambda slot, _: statements(slot), deadline=deadline))[0]

    async def transact_each(
        self, ids: Iterable[str], statements: Callable[[int, list[str]], Sequence[Statement]], *, deadline: float
    ) -> list[list[Result]]:
        """One transaction for each slot in which some of these workflows are, made for its number and these. As
        ``transact`` for the rest."""
        answers: list[list[Result]] = []
        left = list(ids)
        while left:
            by_slot: dict[int, list[str]] = {}
            for id_ in left:
                by_slot.setdefault(self.map.slot_of(id_), []).append(id_)
            left = []
            for slot, there in by_slot.items():
                try:
                    answers.append(await self.transact_slot(slot, statements(slot, there), deadline=deadline))
                except SlotSplit:
                    left += there
        return answers

    async def transact_slot(self, slot: int, statements: Sequence[Statement], *, deadline: float) -> list[Result]:
        """One transaction on a slot, wherever it moves meanwhile. Raises ``SlotSplit``; and as ``transact``."""
        until = self.clock.monotonic() + READ_DEADLINE_SECONDS
        attempt = 0
        while slot in self.map.placement:
            shard = self.shard_of_slot(slot)
            try:
                return await shard.reader.transact(statements, deadline=deadline)
            except ConnectionLost as error:
                raise ShardUnavailable(shard.name, str(error)) from None
            except psycopg.Error as error:
                if moved_slot(error) is None or self.clock.monotonic() > until:
                    await self._judge(error)
                    raise
            await self.find_slot(slot, until, attempt)
            attempt += 1
        raise SlotSplit(slot)

    async def _judge(self, error: BaseException | None) -> None:
        """An error that Postgres answered with: if it is because the tables are not for this version any more, say so
        (``SchemaOutOfDate``)."""
        if isinstance(error, psycopg.Error) and is_of_schema(error):
            await self.reload()
            if self._outdated is not None:
                raise SchemaOutOfDate(self._outdated)

    # --- when a shard gets another primary ----------------------------------------------------------------------

    def _follow_primaries(self) -> None:
        loop = asyncio.get_running_loop()
        for shard in self.shards.values() - self._subscriptions.keys():

            def tell(shard: Shard = shard) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._failed_over, shard)

            self._subscriptions[shard] = primary_of(shard.dsn).subscribe(tell)

    def _failed_over(self, shard: Shard) -> None:
        if shard not in self._subscriptions:
            return
        logger.warning("shard %s has another primary: %s", shard.name, primary_of(shard.dsn).known)
        for told in self.on_failover:
            told(shard)
        if self._spreading is None or self._spreading.done():
            self._spreading = asyncio.create_task(self._spread(), name="spread timelines")

    async def _spread(self) -> None:
        """Let the other shards know, for the processes that start later."""
        await asyncio.to_thread(spread, self.config.shards, seen_by_this_process(self.config))

    def heard_of(self, timelines: Mapping[str, Timeline]) -> None:
        """A shard has heard that the shards are on these timelines."""
        for name, timeline in timelines.items():
            if (shard := self.shards.get(name)) is not None:
                primary_of(shard.dsn).learn(timeline)

    # --- routing ------------------------------------------------------------------------------------------------

    def shard_of_slot(self, slot: int) -> Shard:
        """The shard that holds the slot; ``ShardUnavailable`` if this process's configuration does not name it."""
        shard = self._by_slot[slot]
        if shard is None:
            name = self.map.placement[slot]
            raise ShardUnavailable(name, f"it is not named in {self.config.source}")
        return shard

    def answers(self, workflow_id: str) -> bool:
        """Whether the shard of this workflow answered when it was last asked."""
        slot = self.map.slot_of(workflow_id)
        shard = self._by_slot[slot]
        return shard is not None and shard.writer.healthy and slot not in self.away

    def id_maker(self) -> Callable[[], str]:
        """Makes new workflow IDs, each in a slot of a shard that answers at this moment, if any does."""
        away = (shard.slots for shard in self.shards.values() if not shard.healthy)
        unhealthy = self.away.union(*away)
        known = self._ids
        if known is None or known.shard_map is not self.map or known.avoided != unhealthy:
            known = self._ids = IdMaker(self.clock, self.map, unhealthy)
        return known

    # --- writing ------------------------------------------------------------------------------------------------

    async def start(self, starts: Collection[Start], *, wait_seconds: float | None = None) -> dict[str, Existing]:
        """Start workflows, no ID twice: one transaction a shard. Returns those that existed before, by ID.

        Raises ``ShardUnavailable`` if a shard does not answer, or a slot is nowhere, within ``wait_seconds`` (as
        ``Writer.start``); the other shards' workflows are started then."""
        existing: dict[str, Existing] = {}

        async def write(shard: Shard, rows: Sequence[tuple[int, Start]], seconds: float | None) -> None:
            existing.update(await shard.writer.start(rows, wait_seconds=seconds))

        await self._write([(self.map.slot_of(start.id), start) for start in starts], _ID, write, wait_seconds)
        return existing

    async def start_with_message(
        self, start: Start, message: Message, *, wait_seconds: float | None = None
    ) -> dict[str, Existing]:
        """Start a workflow and deliver a message to it in one transaction; to one of the same name that exists, just
        the message. Raises as ``start``."""
        existing: dict[str, Existing] = {}

        async def write(shard: Shard, rows: Sequence[tuple[int, Start]], seconds: float | None) -> None:
            for slot, row in rows:
                existing.update(await shard.writer.start_with_message(slot, row, message, wait_seconds=seconds))

        await self._write([(self.map.slot_of(start.id), start)], _ID, write, wait_seconds)
        return existing

    async def deliver(self, messages: Sequence[Message], *, wait_seconds: float | None = None) -> set[str]:
        """Deliver messages. Returns the receivers that do not exist. Raises as ``start``."""
        unknown: set[str] = set()

        async def write(shard: Shard, rows: Sequence[tuple[int, Message]], seconds: float | None) -> None:
            unknown.update(await shard.writer.deliver(rows, wait_seconds=seconds))

        slot_of = self.map.slot_of
        rows = [(slot_of(message.receiver), message) for message in messages]
        await self._write(rows, _RECEIVER, write, wait_seconds)
        return unknown

    async def _write(
        self,
        rows: list[tuple[int, T]],
        id_of: Callable[[T], str],
        write: Callable[[Shard, Sequence[tuple[int, T]], float | None], Awaitable[None]],
        wait_seconds: float | None,
    ) -> None:
        """Write rows to the shards of their slots; those of slots that have moved or were split meanwhile, again where
        they belong now, which is known by the workflow ``id_of`` each."""
        until = self.clock.monotonic() + (WRITE_DEADLINE_SECONDS if wait_seconds is None else wait_seconds)
        attempt = 0
        while True:
            by_shard: dict[Shard, list[tuple[int, T]]] = {}
            for row in rows:
                by_shard.setdefault(self.shard_of_slot(row[0]), []).append(row)
            moved: dict[int, list[tuple[int, T]]] = {}
            if len(by_shard) == 1:
                ((shard, part),) = by_shard.items()
                try:
                    await write(shard, part, wait_seconds)
                    return
                except SlotMoved as error:
                    moved[error.slot] = part
                except ShardedWfError as error:
                    await self._judge(error.__cause__)
                    raise
            else:
                answers = await asyncio.gather(
                    *(write(shard, part, wait_seconds) for shard, part in by_shard.items()), return_exceptions=True
                )
                for answer, part in zip(answers, by_shard.values(), strict=True):
                    if isinstance(answer, SlotMoved):
                        moved.setdefault(answer.slot, []).extend(part)
                    elif isinstance(answer, BaseException):
                        await self._judge(answer.__cause__)
                        raise answer
            if not moved:
                return
            for slot in moved:
                await self.find_slot(slot, until, attempt)
            attempt += 1
            rows = [(self.map.slot_of(id_of(row)), row) for part in moved.values() for _, row in part]
            wait_seconds = max(until - self.clock.monotonic(), 0.0)
