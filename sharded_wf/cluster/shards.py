"""The set of shards as one process reaches them, and the way from a workflow ID to its shard."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from sharded_wf.clock import SYSTEM_CLOCK, Clock
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.shard import Shard
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ShardUnavailable
from sharded_wf.limits import WRITE_DEADLINE_SECONDS
from sharded_wf.model.workflow import Message, Start
from sharded_wf.routing import ShardMap, new_id, new_id_avoiding
from sharded_wf.store.starts import Existing


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
        self._by_slot = [self.shards.get(name) for name in shard_map.placement]

    @classmethod
    async def open(cls, config: ClusterConfig, clock: Clock = SYSTEM_CLOCK) -> ShardSet:
        """Read the shard map from the databases. Raises as ``load_map``; a shard that is away is tolerated as long as
        one answers."""
        directory = await asyncio.to_thread(load_map, config)
        opened = cls(config, directory.shard_map, directory.shards, clock)
        opened.cluster_id = directory.cluster_id
        return opened

    async def close(self) -> None:
        """Close every connection. Closing twice is fine."""
        await asyncio.gather(*(shard.close() for shard in self.shards.values()))

    def shard_of_slot(self, slot: int) -> Shard:
        """The shard that holds the slot; ``ShardUnavailable`` if this process's configuration does not name it."""
        shard = self._by_slot[slot]
        if shard is None:
            name = self.map.placement[slot]
            raise ShardUnavailable(name, f"it is not named in {self.config.source}")
        return shard

    def answers(self, workflow_id: str) -> bool:
        """Whether the shard of this workflow answered when it was last asked."""
        shard = self._by_slot[self.map.slot_of(workflow_id)]
        return shard is not None and shard.writer.healthy

    def id_maker(self) -> Callable[[], str]:
        """Makes new workflow IDs, each in a slot of a shard that answers at this moment, if any does."""
        unhealthy = {slot for shard in self.shards.values() if not shard.healthy for slot in shard.slots}
        if unhealthy:
            return partial(new_id_avoiding, self.clock, self.map, unhealthy)
        return partial(new_id, self.clock)

    async def start(
        self, starts: Iterable[Start], *, wait_seconds: float | None = WRITE_DEADLINE_SECONDS
    ) -> dict[str, Existing]:
        """Start workflows, no ID twice: one transaction a shard. Returns those that existed before, by ID.

        Raises ``ShardUnavailable`` if a shard does not answer within ``wait_seconds`` (None: waits for ever); the other
        shards' workflows are started then.
        """
        slot_of = self.map.slot_of
        by_shard: dict[Shard, list[tuple[int, Start]]] = {}
        for start in starts:
            slot = slot_of(start.id)
            by_shard.setdefault(self.shard_of_slot(slot), []).append((slot, start))
        if len(by_shard) == 1:
            ((shard, rows),) = by_shard.items()
            return await shard.writer.start(rows, wait_seconds=wait_seconds)
        answers = await asyncio.gather(
            *(shard.writer.start(rows, wait_seconds=wait_seconds) for shard, rows in by_shard.items()),
            return_exceptions=True,
        )
        existing: dict[str, Existing] = {}
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            existing |= answer
        return existing

    async def start_with_message(
        self, start: Start, message: Message, *, wait_seconds: float | None = WRITE_DEADLINE_SECONDS
    ) -> dict[str, Existing]:
        """Start a workflow and deliver a message to it in one transaction; to one of the same name that exists, just
        the message. Raises as ``start``."""
        slot = self.map.slot_of(start.id)
        writer = self.shard_of_slot(slot).writer
        return await writer.start_with_message(slot, start, message, wait_seconds=wait_seconds)

    async def deliver(
        self, messages: Sequence[Message], *, wait_seconds: float | None = WRITE_DEADLINE_SECONDS
    ) -> set[str]:
        """Deliver messages. Returns the receivers that do not exist. Raises as ``start``."""
        by_shard: dict[Shard, list[tuple[int, Message]]] = {}
        for message in messages:
            slot = self.map.slot_of(message.receiver)
            by_shard.setdefault(self.shard_of_slot(slot), []).append((slot, message))
        answers = await asyncio.gather(
            *(shard.writer.deliver(rows, wait_seconds=wait_seconds) for shard, rows in by_shard.items()),
            return_exceptions=True,
        )
        unknown: set[str] = set()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            unknown |= answer
        return unknown
