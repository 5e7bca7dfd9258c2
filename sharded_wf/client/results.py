"""Waiting for results: thousands of handles, one question a shard.

Whoever waits is entered once into the shard's ``waiter`` table, and flushes that end workflows notify it, with the
slots concerned. Then one statement a slot asks for all that is waited for there. The same question is asked anyway
every now and then, ever more rarely, so a notification that was missed, or can't be heard (PgBouncer), costs time and
nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

import psycopg

from sharded_wf.client.event_looks import look_for_events
from sharded_wf.clock import SECOND_US, Clock
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import WorkflowNotFound
from sharded_wf.limits import (
    RESULT_IDS_PER_LOOK_MAX,
    RESULT_LONG_LOOK_SECONDS,
    RESULT_LOOK_PAUSE_FACTOR,
    RESULT_LOOK_PAUSE_MAX_SECONDS,
    RESULT_POLL_FIRST_SECONDS,
    RESULT_POLL_MAX_SECONDS,
    WAITER_EXPIRES_SECONDS,
)
from sharded_wf.model.workflow import Outcome
from sharded_wf.postgres.failures import is_moved
from sharded_wf.postgres.listen import Listener
from sharded_wf.postgres.session import ConnectionLost, Statement
from sharded_wf.routing import slot_schema
from sharded_wf.store import leases, outcomes

K = TypeVar("K")
V = TypeVar("V")
logger = logging.getLogger("sharded_wf.results")


class ShardResults:
    """What one client waits for on one shard."""

    def __init__(self, shard: Shard, clock: Clock, shards: ShardSet) -> None:
        self._shard = shard
        self._shards = shards
        self._clock = clock
        self._link = shard.link("results")
        self._channel = f"sharded_wf_result_{uuid.uuid4().hex}"
        self._listener = Listener(shard.dsn, [self._channel], self._heard)
        self._waiting: dict[int, dict[str, list[asyncio.Future[Outcome]]]] = {}
        self._events: dict[int, dict[tuple[str, str], list[asyncio.Future[bytes]]]] = {}
        self._unseen: dict[int, set[str]] = {}
        self._look_at: set[int] = set()
        self._stir = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._registered_until = 0.0
        self._told_at: dict[int, float] = {}

    def wait_for_event(self, slot: int, workflow_id: str, key: str) -> asyncio.Future[bytes]:
        """The value of an event of a workflow, when it is set. Cancel the future to wait no longer."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._events.setdefault(slot, {}).setdefault((workflow_id, key), []).append(future)
        self._look_at.add(slot)
        self._go()
        return future

    def wait(self, slot: int, workflow_id: str, started_at: float | None) -> asyncio.Future[Outcome]:
        """The workflow's outcome, when it has one. Cancel the future to wait no longer. ``started_at``: the monotonic
        time just before it was started by us; None: whether it exists is not known."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(slot, {}).setdefault(workflow_id, []).append(future)
        if started_at is None:
            self._unseen.setdefault(slot, set()).add(workflow_id)
        if started_at is None or not self._would_be_told(slot, started_at):
            self._look_at.add(slot)
        self._go()
        return future

    def _go(self) -> None:
        self._stir.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_for_ever(), name=f"results {self._shard.name}")

    @property
    def slots(self) -> list[int]:
        """The slots whose results or events are waited for here."""
        return list(self._waiting.keys() | self._events.keys())

    def workflows(self, slot: int) -> set[str]:
        """The workflows of this slot of which something is waited for here."""
        return {*self._waiting.get(slot, ()), *(id_ for id_, _ in self._events.get(slot, ()))}

    def hand_over(self, slot: int, there: Callable[[str], tuple[int, ShardResults]]) -> None:
        """The slot is not here any more: ``there`` says of a workflow in which slot it is now, and who waits for what
        happens there."""
        self._look_at.discard(slot)
        unseen = self._unseen.pop(slot, set())
        for id_, futures in self._waiting.pop(slot, {}).items():
            new_slot, results = there(id_)
            results._waiting.setdefault(new_slot, {}).setdefault(id_, []).extend(futures)
            if id_ in unseen:
                results._unseen.setdefault(new_slot, set()).add(id_)
            results._look_soon(new_slot)
        for event, values in self._events.pop(slot, {}).items():
            new_slot, results = there(event[0])
            results._events.setdefault(new_slot, {}).setdefault(event, []).extend(values)
            results._look_soon(new_slot)

    def _look_soon(self, slot: int) -> None:
        self._look_at.add(slot)
        self._go()

    def _would_be_told(self, slot: int, started_at: float) -> bool:
        """Whether the end of a workflow that was started just now can only be ahead of us, with its notification: then
        looking at once finds nothing, and delays the look that will."""
        now = self._clock.monotonic()
        return (
            self._listener.works
            and now < self._registered_until - WAITER_EXPIRES_SECONDS / 4
            and now - started_at < RESULT_POLL_FIRST_SECONDS
            and self._told_at.get(slot, 0.0) < started_at
        )

    def _heard(self, channel: str, payload: str) -> None:
        if not channel or payload == "*":
            self._look_at.update(self._waiting, self._events)
            self._told_at.clear()
            self._registered_until = 0.0
        else:
            now = self._clock.monotonic()
            for slot in map(int, payload.split(",")):
                self._told_at[slot] = now
                if slot in self._waiting or slot in self._events:
                    self._look_at.add(slot)
        if self._look_at:
            self._stir.set()

    async def _register(self) -> None:
        """Enter our channel, again before the entry expires."""
        now = self._clock.monotonic()
        if self._listener.works and now > self._registered_until - WAITER_EXPIRES_SECONDS / 2:
            until = self._clock.now_us() + int(WAITER_EXPIRES_SECONDS * SECOND_US)
            await self._link.fetch(leases.wait_for_results(self._channel, until))
            self._registered_until = now + WAITER_EXPIRES_SECONDS

    async def _look_for_ever(self) -> None:
        pause = RESULT_POLL_FIRST_SECONDS
        self._listener.start()
        await self._listener.ready.wait()
        tidy_at = self._clock.monotonic() + RESULT_POLL_MAX_SECONDS
        while self._waiting or self._events:
            self._stir.clear()
            begun = self._clock.monotonic()
            if begun >= tidy_at:
                self._forget_cancelled()
                self._look_at.update(self._shards.away.intersection(self.slots))
                tidy_at = begun + RESULT_POLL_MAX_SECONDS
            slots, self._look_at = self._look_at, set()
            try:
                if not self._shards.away.isdisjoint(slots):
                    await self._shards.reload()  # the last look came while they were being moved: where to?
                await self._register()
                found = bool(slots) and await self._look(slots)
                if self._events:
                    found |= await look_for_events(self._link, self._events, slots - self._shards.away)
            except (ConnectionLost, psycopg.Error) as error:
                logger.info("shard %s: results are put off: %s", self._shard.name, error)
                if isinstance(error, psycopg.Error) and is_moved(error):
                    await self._shards.reload()  # which hands on what is waited for in slots that are elsewhere
                self._look_at |= slots
                await self._link.pause()
                continue
            pause = RESULT_POLL_FIRST_SECONDS if found else min(pause * 2, RESULT_POLL_MAX_SECONDS)
            took = self._clock.monotonic() - begun
            if took > RESULT_LONG_LOOK_SECONDS:
                # Much is waited for: asking for all of it at each notification would be all that the shard does.
                await asyncio.sleep(min(took * RESULT_LOOK_PAUSE_FACTOR, RESULT_LOOK_PAUSE_MAX_SECONDS))
            if self._look_at:
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._stir.wait()
            except TimeoutError:
                self._look_at.update(self._waiting, self._events)

    def _forget_cancelled(self) -> None:
        _tidy(self._waiting)
        _tidy(self._events)

    async def _look(self, slots: Iterable[int]) -> bool:
        here = [slot for slot in slots if slot in self._waiting and slot not in self._shards.away]
        asked = [(slot, list(self._waiting[slot])[:RESULT_IDS_PER_LOOK_MAX]) for slot in here]
        unseen = [(slot, sorted(self._unseen[slot])) for slot, _ in asked if slot in self._unseen]
        statements: list[Statement] = [outcomes.read_outcomes(slot_schema(slot), ids) for slot, ids in asked] + [
            outcomes.missing_workflows(slot_schema(slot), ids) for slot, ids in unseen
        ]
        if not statements:
            return False
        if len(statements) == 1:
            answers = [await self._link.fetch(statements[0])]
        else:
            answers = await self._link.transact(statements)
        for slot, ids in unseen:
            if slot in self._unseen:
                self._unseen[slot].difference_update(ids)
                if not self._unseen[slot]:
                    del self._unseen[slot]
        found = False
        for (slot, _), answer in zip(asked, answers, strict=False):
            for id_, outcome in outcomes.outcomes_of(answer):
                found = True
                for future in self._waiting.get(slot, {}).pop(id_, ()):
                    if not future.done():
                        future.set_result(outcome)
        for (slot, _), answer in zip(unseen, answers[len(asked) :], strict=True):
            for id_ in outcomes.ids_of(answer):
                for future in self._waiting.get(slot, {}).pop(id_, ()):
                    if not future.done():
                        future.set_exception(WorkflowNotFound(f"no workflow has the ID {id_!r}"))
        for slot, _ in asked:
            if slot in self._waiting and not self._waiting[slot]:
                del self._waiting[slot]
        return found

    async def close(self) -> None:
        """Wait for nothing any more. Closing twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._listener.stop()
        if self._registered_until:
            with contextlib.suppress(ConnectionLost, psycopg.Error):  # it expires
                await self._link.fetch(leases.stop_waiting(self._channel, self._clock.now_us()), deadline=2.0)
        self._link.close()


class Results:
    """What one client waits for, by shard."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._of: dict[str, ShardResults] = {}

    def at(self, slot: int) -> ShardResults:
        """Where to wait for what happens in a slot."""
        return self._of_shard(self._shards.shard_of_slot(slot))

    def _of_shard(self, shard: Shard) -> ShardResults:
        results = self._of.get(shard.name)
        if results is None:
            results = self._of[shard.name] = ShardResults(shard, self._shards.clock, self._shards)
        return results

    def follow_moves(self) -> None:
        """Slots have moved, or were split: who waits for something of theirs waits where they are now."""
        shard_map, shards = self._shards.map, self._shards.shards

        def there(id_: str) -> tuple[int, ShardResults]:
            slot = shard_map.slot_of(id_)
            return slot, self._of_shard(shards[shard_map.placement[slot]])

        for name, here in list(self._of.items()):
            for slot in here.slots:
                gone = shard_map.placement.get(slot) != name
                if gone and all(shard_map.shard_of(id_) in shards for id_ in here.workflows(slot)):
                    here.hand_over(slot, there)

    async def close(self) -> None:
        """Wait for nothing any more. Closing twice is fine."""
        await asyncio.gather(*(results.close() for results in self._of.values()))


def _tidy(waiting: dict[int, dict[K, list[asyncio.Future[V]]]]) -> None:
    """Without those who wait no longer."""
    for slot, by_key in list(waiting.items()):
        for key, futures in list(by_key.items()):
            futures[:] = [future for future in futures if not future.done()]
            if not futures:
                del by_key[key]
        if not by_key:
            del waiting[slot]
