"""The relay: carries messages from a shard's outboxes to the slots of their receivers.

A flush that sends to another shard leaves the message in the outbox with its own commit, and the executor that flushed
relays it at once. Whatever stays behind (the executor died, the receiver's shard was away) is found by a sweep that
every executor makes. Delivering twice is harmless, so nobody needs to lock anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

import psycopg

from sharded_wf.clock import SECOND_US, Clock
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import ShardedWfError
from sharded_wf.limits import RELAY_AFTER_SECONDS, RELAY_BATCH_MAX_ROWS, SEND_DIRECT_SECONDS
from sharded_wf.maintenance.announce import Announcements, deliver_by_shard
from sharded_wf.model.workflow import EVENT_TOPIC, Message
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.routing import slot_schema
from sharded_wf.store import messages

logger = logging.getLogger("sharded_wf.relay")


class Relay:
    """The relay of one shard's outboxes."""

    def __init__(
        self,
        link: Link,
        shards: ShardSet,
        schemas: Mapping[int, str],
        clock: Clock,
        delivered: Callable[[list[Message]], None],
    ) -> None:
        self._link = link
        self._shards = shards
        self._schemas = schemas
        self._clock = clock
        self._delivered = delivered
        self._fresh: list[tuple[int, Message]] = []
        self._sweeping: set[int] = set()
        self._cursors: dict[int, str] = {}
        self._wanted = asyncio.Event()
        self._awaited: set[int] = set()
        self._announcements = Announcements(link, schemas, clock, self._deliver_notices)

    def add(self, outgoing: Iterable[tuple[int, Message]]) -> None:
        """Relay these, each given with the slot whose outbox holds it."""
        self._fresh += outgoing
        self._wanted.set()

    def sweep(self, slots: Iterable[int]) -> None:
        """These slots have something in their outbox: relay what has waited for long."""
        self._sweeping.update(slots)
        if self._sweeping:
            self._wanted.set()

    def awaited(self, slots: Iterable[int]) -> None:
        """Somebody waits for events of workflows in these slots."""
        self._awaited.update(slots)
        if self._awaited:
            self._wanted.set()

    async def run(self) -> None:
        """Relay for ever, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            fresh, self._fresh = self._fresh, []
            sweeping, self._sweeping = self._sweeping & self._schemas.keys(), set()
            awaited, self._awaited = self._awaited & self._schemas.keys(), set()
            try:
                if sweeping:
                    fresh += await self._left_behind(sorted(sweeping))
                notices = [row for row in fresh if row[1].topic == EVENT_TOPIC]
                await self._relay([row for row in fresh if row[1].topic != EVENT_TOPIC])
                if notices:
                    await self._announce(notices)
                if awaited:
                    await self._announcements.tell_missed(sorted(awaited))
            except (ConnectionLost, psycopg.Error) as error:
                logger.info("relaying is put off: %s", error)
                await self._link.pause()

    async def _left_behind(self, slots: list[int]) -> list[tuple[int, Message]]:
        until = self._clock.now_us() - int(RELAY_AFTER_SECONDS * SECOND_US)
        answers = await self._link.transact(
            [
                messages.read_outbox(slot_schema(slot), until, RELAY_BATCH_MAX_ROWS, self._cursors.get(slot, ""))
                for slot in slots
            ]
        )
        found: list[tuple[int, Message]] = []
        for slot, answer in zip(slots, answers, strict=True):
            left = messages.messages_of(answer)
            found += [(slot, message) for message in left]
            if len(left) < RELAY_BATCH_MAX_ROWS:
                self._cursors.pop(slot, None)
            else:
                self._cursors[slot] = left[-1].receiver
        return found

    async def _relay(self, outgoing: list[tuple[int, Message]]) -> None:
        by_shard: dict[str, list[tuple[int, Message]]] = {}
        for slot, message in outgoing:
            by_shard.setdefault(self._shards.map.shard_of(message.receiver), []).append((slot, message))
        arrived = await asyncio.gather(*(self._deliver(rows) for rows in by_shard.values()))
        done: dict[int, list[Message]] = {}
        for slot, message in (row for rows in arrived for row in rows):
            done.setdefault(slot, []).append(message)
        if done:
            self._delivered([message for rows in done.values() for message in rows])
            # The outbox of a slot that has left is swept where it is now; delivering again is harmless.
            cleared = [
                messages.clear_outbox(slot_schema(slot), rows)
                for slot, rows in sorted(done.items())
                if slot in self._schemas
            ]
            if cleared:
                await self._link.transact(cleared)

    async def _announce(self, notices: list[tuple[int, Message]]) -> None:
        done: dict[int, list[Message]] = {}
        for slot, notice in await self._announcements.announce(notices):
            done.setdefault(slot, []).append(notice)
        if done:
            await self._link.transact(
                [messages.clear_outbox(slot_schema(slot), rows) for slot, rows in sorted(done.items())]
            )

    async def _deliver_notices(self, told: list[Message]) -> set[str]:
        async def deliver(rows: list[Message]) -> bool:
            delivered = await self._deliver([(0, message) for message in rows])
            if delivered:
                self._delivered(rows)
            return bool(delivered)

        return await deliver_by_shard(told, self._shards.map.shard_of, deliver)

    async def _deliver(self, rows: list[tuple[int, Message]]) -> list[tuple[int, Message]]:
        if not self._shards.answers(rows[0][1].receiver):
            return []
        try:
            unknown = await self._shards.deliver([message for _, message in rows], wait_seconds=SEND_DIRECT_SECONDS)
        except ShardedWfError:
            return []  # the sweep comes back to them
        for id_ in sorted(unknown):
            logger.warning("a message to workflow %r, which does not exist, is dropped", id_)
        return rows
