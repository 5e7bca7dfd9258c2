"""Resuming workflows of any shard: what the client asks for, and what the children of a resumed workflow need."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import WRITE_DEADLINE_SECONDS
from sharded_wf.model.workflow import OUTCOME_TOPIC, Message, Outcome, Start
from sharded_wf.routing import slot_schema
from sharded_wf.store import leases, outcomes, repair


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


async def revive_children(
    shards: ShardSet, starts: Iterable[Start], encode_outcome: Callable[[Outcome], bytes]
) -> None:
    """Children that a resumed parent waits for once more. One that ended badly is resumed; one that
    succeeded tells its outcome again, because that was received, or lost, before. Raises ``ShardUnavailable``."""
    parents = {start.id: start.parent_id for start in starts if start.again and start.parent_id is not None}
    if not parents:
        return
    await resume(shards, parents)
    answers = await shards.transact_each(
        parents,
        lambda slot, there: [outcomes.read_outcomes(slot_schema(slot), there)],
        deadline=WRITE_DEADLINE_SECONDS,
    )
    now = shards.clock.now_us()
    told = [
        Message(parents[id_], OUTCOME_TOPIC, id_, 1, encode_outcome(outcome), now)
        for results in answers
        for id_, outcome in outcomes.outcomes_of(results[0])
    ]
    if told:
        await shards.deliver(told, wait_seconds=math.inf)
