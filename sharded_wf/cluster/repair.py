"""Resuming workflows of any shard: what the client asks for, and what the children of a resumed workflow need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import ShardUnavailable
from sharded_wf.limits import WRITE_DEADLINE_SECONDS
from sharded_wf.model.workflow import OUTCOME_TOPIC, Message, Outcome, Start
from sharded_wf.postgres.session import ConnectionLost, Result, Statement
from sharded_wf.store import leases, outcomes, repair


async def resume(shards: ShardSet, shard: Shard, by_slot: dict[int, list[str]]) -> set[str]:
    """Resume those among these workflows of one shard, given by slot, that ended badly; the IDs of these. Raises
    ``ShardUnavailable``; then some may have been resumed, and asking again is safe."""
    now = shards.clock.now_us()
    slots = sorted(by_slot)
    statements = [repair.resume(shard.schemas[slot], by_slot[slot], now) for slot in slots]
    answers = await _transact(shard, [*statements, leases.notify_if_idle(slots)])
    return {id_ for answer in answers[:-1] for id_ in outcomes.ids_of(answer)}


async def revive_children(
    shards: ShardSet, starts: Iterable[Start], encode_outcome: Callable[[Outcome], bytes]
) -> None:
    """Children, all of one shard, that a resumed parent waits for once more. One that ended badly is resumed; one that
    succeeded tells its outcome again, because that was received, or lost, before. Raises ``ShardUnavailable``."""
    by_slot: dict[int, list[str]] = {}
    parents: dict[str, str] = {}
    for start in starts:
        if start.again and start.parent_id is not None:
            by_slot.setdefault(shards.map.slot_of(start.id), []).append(start.id)
            parents[start.id] = start.parent_id
    if not by_slot:
        return
    shard = shards.shard_of_slot(next(iter(by_slot)))
    await resume(shards, shard, by_slot)
    answers = await _transact(
        shard, [outcomes.read_outcomes(shard.schemas[slot], ids) for slot, ids in by_slot.items()]
    )
    now = shards.clock.now_us()
    told = [
        Message(parents[id_], OUTCOME_TOPIC, id_, 1, encode_outcome(outcome), now)
        for answer in answers
        for id_, outcome in outcomes.outcomes_of(answer)
    ]
    if told:
        await shards.deliver(told, wait_seconds=None)


async def _transact(shard: Shard, statements: Sequence[Statement]) -> list[Result]:
    try:
        return await shard.reader.transact(statements, deadline=WRITE_DEADLINE_SECONDS)
    except ConnectionLost as error:
        raise ShardUnavailable(shard.name, str(error)) from None
