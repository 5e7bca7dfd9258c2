"""Telling workflows of the events that they wait for, and of those that will never come.

A message without content: whoever gets it looks for itself. Telling twice is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from sharded_wf.clock import SECOND_US, Clock, Microseconds
from sharded_wf.limits import MISSED_WAITS_EVERY_SECONDS, MISSED_WAITS_PER_LOOK_MAX
from sharded_wf.model.notices import notice_of
from sharded_wf.model.workflow import EVENT_TOPIC, Message
from sharded_wf.postgres.link import Link
from sharded_wf.routing import slot_schema
from sharded_wf.store import events
from sharded_wf.store.events import NOBODY, Awaited, Wait

Deliver = Callable[[list[Message]], Awaitable[set[str]]]
"""Delivers messages; returns the receivers that it could not reach."""


class Announcements:
    """Who waits for events of one shard's workflows."""

    def __init__(self, link: Link, schemas: Mapping[int, str], clock: Clock, deliver: Deliver) -> None:
        self._link = link
        self._schemas = schemas
        self._clock = clock
        self._deliver = deliver
        self._cursors: dict[int, Wait] = {}
        self._looked_at = float("-inf")

    async def announce(self, notices: list[tuple[int, Message]]) -> list[tuple[int, Message]]:
        """Tell those who wait for the events of these notices. Returns the notices that are done with."""
        notices = [(slot, notice) for slot, notice in notices if slot in self._schemas]  # others go out where they are
        by_slot: dict[int, list[Message]] = {}
        for slot, notice in notices:
            by_slot.setdefault(slot, []).append(notice)
        if not by_slot:
            return []
        answers = await self._link.transact(
            [
                events.read_waiters(slot_schema(slot), sorted({(one.receiver, one.sender) for one in of_slot}))
                for slot, of_slot in by_slot.items()
            ]
        )
        awaited = {slot: events.awaited_of(answer) for slot, answer in zip(by_slot, answers, strict=True)}
        missed = await self._tell(awaited)
        missing = {(wait.workflow_id, wait.key) for wait in missed}
        return [(slot, one) for slot, one in notices if (one.receiver, one.sender) not in missing]

    async def _tell(self, awaited: Mapping[int, list[Awaited]]) -> set[Wait]:
        """Tell them, and forget that they wait; returns those that could not be reached."""
        messages = [self._message(one) for of_slot in awaited.values() for one in of_slot]
        if not messages:
            return set()
        away = await self._deliver(messages)
        waits = {
            slot: [one.wait for one in of_slot if one.wait.waiter not in away]
            for slot, of_slot in awaited.items()
            if slot in self._schemas
        }
        told = [events.forget(slot_schema(slot), of_slot) for slot, of_slot in sorted(waits.items()) if of_slot]
        if told:
            await self._link.transact(told)
        return {one.wait for of_slot in awaited.values() for one in of_slot if one.wait.waiter in away}

    def _message(self, one: Awaited) -> Message:
        sender = notice_of(one.wait.workflow_id, one.wait.key, one.set_at)
        return Message(one.wait.waiter, EVENT_TOPIC, sender, 1, b"null", self._clock.now_us())

    async def tell_missed(self, slots: list[int]) -> None:
        """Tell those who wait for events of workflows that have ended without them, and those who were not told of an
        event; not more often than is worth it."""
        now = self._clock.monotonic()
        if now - self._looked_at < MISSED_WAITS_EVERY_SECONDS:
            return
        self._looked_at = now
        answers = await self._link.transact(
            [
                events.read_missed(slot_schema(slot), self._cursors.get(slot, NOBODY), MISSED_WAITS_PER_LOOK_MAX)
                for slot in slots
            ]
        )
        moment: Microseconds = self._clock.now_us() // SECOND_US
        missed: dict[int, list[Awaited]] = {}
        for slot, answer in zip(slots, answers, strict=True):
            seen = events.missed_of(answer)
            if len(seen) < MISSED_WAITS_PER_LOOK_MAX:
                self._cursors.pop(slot, None)
            else:
                self._cursors[slot] = seen[-1][0]
            missed[slot] = [Awaited(wait, moment) for wait, is_missed in seen if is_missed]
        await self._tell(missed)


async def deliver_by_shard(
    messages: list[Message],
    shard_of: Callable[[str], str],
    deliver: Callable[[list[Message]], Awaitable[bool]],
) -> set[str]:
    """Deliver, each shard's messages for themselves; returns the receivers on shards that are away."""
    by_shard: dict[str, list[Message]] = {}
    for message in messages:
        by_shard.setdefault(shard_of(message.receiver), []).append(message)
    went = await asyncio.gather(*(deliver(rows) for rows in by_shard.values()))
    return {one.receiver for rows, ok in zip(by_shard.values(), went, strict=True) if not ok for one in rows}
