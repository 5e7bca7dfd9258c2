"""How many workflows an executor may hold in memory, over all of its shards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sharded_wf.limits import CONCURRENCY_DEFAULT_WORKFLOWS, ROOM_RECHECK_SECONDS


class Room:
    """Room for ``concurrency`` workflows, which the shards share; ``None``: as much for each shard as is good for its
    batches, and wherever it is needed."""

    def __init__(self, concurrency: int | None) -> None:
        self._concurrency = concurrency
        self.shares: list[Share] = []
        self.freed = asyncio.Event()

    def share(self, answers: Callable[[], bool]) -> Share:
        """One more shard that takes part. ``answers``: whether it did when it was last asked."""
        share = Share(self, answers)
        self.shares.append(share)
        return share

    @property
    def concurrency(self) -> int:
        """How many workflows in all."""
        fixed = self._concurrency
        return CONCURRENCY_DEFAULT_WORKFLOWS * len(self.shares) if fixed is None else fixed

    @property
    def is_short(self) -> bool:
        """Whether hardly any is left: then what only waits should be parked soon."""
        return sum(share.held for share in self.shares if share.answers()) >= self.concurrency * 0.9


class Share:
    """What one shard takes of the room."""

    def __init__(self, room: Room, answers: Callable[[], bool]) -> None:
        self._room = room
        self.answers = answers
        self.held = 0

    def room(self) -> int:
        """How many more workflows this shard may claim. What a shard holds that does not answer counts against that
        shard alone: it must not take the others' room."""
        elsewhere = sum(share.held for share in self._room.shares if share is not self and share.answers())
        return self._room.concurrency - self.held - elsewhere

    def took(self, count: int) -> None:
        """So many places are taken."""
        self.held += count

    def gave_back(self, count: int) -> None:
        """So many places are free again."""
        if count:
            self.held -= count
            self._room.freed.set()

    async def wait_for_room(self) -> None:
        """Wait until a workflow has left (or a shard has, with all that it holds; so look again after a while)."""
        self._room.freed.clear()
        try:
            async with asyncio.timeout(ROOM_RECHECK_SECONDS):
                await self._room.freed.wait()
        except TimeoutError:
            pass
