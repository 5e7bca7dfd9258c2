"""Resuming workflows of any shard: what the client asks for, and what the children of a resumed workflow need."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import CLOSED_CHILD_LOOK_SECONDS, WRITE_DEADLINE_SECONDS
from sharded_wf.model.workflow import CANCEL_TOPIC, OUTCOME_TOPIC, Message, Outcome, Start
from sharded_wf.routing import slot_schema
from sharded_wf.store import leases, outcomes, repair
from sharded_wf.store.repair import Closed


async def resume(shards: ShardSet, ids: Collection[str]) -> set[str]:
    """Resume those among these workflows that ended badly; the IDs of these. Raises ``ShardUnavailable``; then some may
    have been resumed, and asking again is safe."""
    now = shards.clock.now_us()
    answers = await shards.transact_each(
        ids,
        lambda slot, there: [repair.resume(slot_schema(slot), there, now), leases.notify_if_idle([slot])],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    return {id_ for results in answers for id_ in outcomes.ids_of(results[0])}


async def revive_child(shards: ShardSet, start: Start, encode_outcome: Callable[[Outcome], bytes]) -> None:
    """A child that a resumed parent waits for once more. If it ended badly it is resumed; if it
    succeeded it tells its outcome again, because that was received, or lost, before. Raises ``ShardUnavailable``."""
    parent = start.parent_id
    assert parent is not None
    await revive_closed(shards, parent, start.id, start.again)
    await resume(shards, [start.id])
    answers = await shards.transact(
        start.id,
        lambda slot: [outcomes.read_outcomes(slot_schema(slot), [start.id])],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    now = shards.clock.now_us()
    told = [
        Message(parent, OUTCOME_TOPIC, start.id, 1, encode_outcome(outcome), now)
        for _, outcome in outcomes.outcomes_of(answers[0])
    ]
    if told:
        await shards.deliver(told, wait_seconds=math.inf)


async def revive_closed(shards: ShardSet, parent: str, child: str, closers: Sequence[str]) -> None:
    """Resume a child that was cancelled by an earlier end of its parent, which told it under one of these names; wait
    for that if it is still to come. One that ended otherwise, or goes on, is left alone. Done again it changes nothing.
    Raises ``ShardUnavailable``."""
    while True:
        state = await _closed_state(shards, parent, child, closers)
        if state is not Closed.ON_ITS_WAY:
            break
        await asyncio.sleep(CLOSED_CHILD_LOOK_SECONDS)
    if state is Closed.ENDED:
        # What it told its parent of that end is void. It has been delivered, and is removed before another can come.
        await shards.transact(
            parent,
            lambda slot: [repair.forget_outcome(slot_schema(slot), parent, child)],
            deadline=WRITE_DEADLINE_SECONDS,
        )
        await resume(shards, [child])


async def _closed_state(shards: ShardSet, parent: str, child: str, closers: Sequence[str]) -> Closed:
    # First the outbox: what is not there any more has been delivered.
    answers = await shards.transact(
        parent,
        lambda slot: [repair.read_unsent(slot_schema(slot), child, CANCEL_TOPIC, closers)],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    if len(answers[0]):
        return Closed.ON_ITS_WAY
    answers = await shards.transact(
        child,
        lambda slot: [
            repair.withdraw_cancels(slot_schema(slot), child, closers),
            repair.read_closed(slot_schema(slot), parent, child, closers),
        ],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    return repair.closed_of(answers[1])
