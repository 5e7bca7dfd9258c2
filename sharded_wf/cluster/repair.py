"""Resuming workflows of any shard: what the client asks for, and what the children of a resumed workflow need."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

from sharded_wf.clock import Microseconds
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import CLOSED_CHILD_LOOK_SECONDS, WRITE_DEADLINE_SECONDS
from sharded_wf.model.workflow import CANCEL_TOPIC, OUTCOME_TOPIC, REVIVED_TOPIC, Message, Outcome, Start
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


async def revive_child(shards: ShardSet, start: Start, encode_outcome: Callable[[Outcome], bytes]) -> int:
    """A child that a resumed parent waits for once more. If it ended badly it is resumed; if it
    succeeded it tells its outcome again, because that was received, or lost, before. The number from which on its
    outcomes count. Raises ``ShardUnavailable``.

    The parent notes that number beside its mail. So it is done once for each resume of the parent: how the child ends
    after that is for the parent to hear.
    """
    parent = start.parent_id
    assert parent is not None
    noted = await shards.transact(
        parent,
        lambda slot: [repair.read_revived(slot_schema(slot), parent, start.id, len(start.again))],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    for (number,) in noted[0].rows():
        return int(number or b"0")
    await revive_closed(shards, parent, start.id, start.again)
    await resume(shards, [start.id])
    answers = await shards.transact(
        start.id, lambda slot: [repair.read_life(slot_schema(slot), start.id)], deadline=WRITE_DEADLINE_SECONDS
    )
    life, now = repair.life_of(answers[0]), shards.clock.now_us()
    told = [_note(start, life.number, now)]
    if life.outcome is not None:
        told.append(Message(parent, OUTCOME_TOPIC, start.id, life.number, encode_outcome(life.outcome), now))
    await shards.deliver(told, wait_seconds=math.inf)
    return life.number


async def note_new(shards: ShardSet, starts: Sequence[Start]) -> None:
    """Children that resumed parents have only now started: any outcome of theirs counts, and whoever takes a parent
    over is not to resume them."""
    now = shards.clock.now_us()
    await shards.deliver([_note(start, 1, now) for start in starts], wait_seconds=math.inf)


def _note(start: Start, number: int, now: Microseconds) -> Message:
    assert start.parent_id is not None
    return Message(start.parent_id, REVIVED_TOPIC, start.id, len(start.again), b"%d" % number, now)


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
            repair.read_closed(slot_schema(slot), child, closers),
        ],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    return repair.closed_of(answers[1])
