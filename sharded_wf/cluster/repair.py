"""Resuming workflows of any shard: what the client asks for, and what the children of a resumed workflow need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import WRITE_DEADLINE_SECONDS
from sharded_wf.model.workflow import OUTCOME_TOPIC, Message, Outcome, Start
from sharded_wf.postgres.session import Result
from sharded_wf.routing import slot_schema
from sharded_wf.store import leases, outcomes, repair


async def resume(shards: ShardSet, slot: int, ids: Sequence[str]) -> set[str]:
    """Resume those among these workflows of one slot that ended badly; the IDs of these. Raises ``ShardUnavailable``;
    then some may have been resumed, and asking again is safe."""
    statements = [repair.resume(slot_schema(slot), ids, shards.clock.now_us()), leases.notify_if_idle([slot])]
    answers = await shards.transact(slot, statements, deadline=WRITE_DEADLINE_SECONDS)
    return set(outcomes.ids_of(answers[0]))


async def revive_children(
    shards: ShardSet, starts: Iterable[Start], encode_outcome: Callable[[Outcome], bytes]
) -> None:
    """Children that a resumed parent waits for once more. One that ended badly is resumed; one that
    succeeded tells its outcome again, because that was received, or lost, before. Raises ``ShardUnavailable``."""
    by_slot: dict[int, list[str]] = {}
    parents: dict[str, str] = {}
    for start in starts:
        if start.again and start.parent_id is not None:
            by_slot.setdefault(shards.map.slot_of(start.id), []).append(start.id)
            parents[start.id] = start.parent_id
    if not by_slot:
        return
    answers: list[Result] = []
    for slot, ids in by_slot.items():
        await resume(shards, slot, ids)
        read = [outcomes.read_outcomes(slot_schema(slot), ids)]
        answers += await shards.transact(slot, read, deadline=WRITE_DEADLINE_SECONDS)
    now = shards.clock.now_us()
    told = [
        Message(parents[id_], OUTCOME_TOPIC, id_, 1, encode_outcome(outcome), now)
        for answer in answers
        for id_, outcome in outcomes.outcomes_of(answer)
    ]
    if told:
        await shards.deliver(told, wait_seconds=math.inf)
