"""Lists of workflows over all shards."""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

import psycopg

from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.limits import READ_DEADLINE_SECONDS
from sharded_wf.model.attributes import Where
from sharded_wf.model.status import Status
from sharded_wf.postgres.connect import look_seconds
from sharded_wf.postgres.failures import moved_slot, unavailable
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.store import attributes, workflows
from sharded_wf.store.workflows import Description


async def list_workflows(
    shards: ShardSet,
    where: Where | None,
    name: str | None,
    status: Status | None,
    queue: str | None,
    limit: int,
    before: Microseconds | Description | None,
    away: dict[str, str] | None,
) -> list[Description]:
    """As ``Client.list``."""
    if not isinstance(cast("object", status), Status | None):
        raise TypeError(f"status={status!r}: one of Status, for example Status.FAILED")
    until = shards.clock.monotonic() + READ_DEADLINE_SECONDS
    place = (shards.clock.now_us() + 60 * SECOND_US, "")
    if before is not None:
        place = (before.created_at, before.id) if isinstance(before, Description) else (before, "")

    async def of(shard: Shard) -> list[Description]:
        schemas = [shard.schemas[slot] for slot in shard.slots]
        if where is None:
            asked = [workflows.list_workflows(schema, place[0], name, status, queue, limit) for schema in schemas]
        else:
            asked = [attributes.find_workflows(schema, where, place, name, status, queue, limit) for schema in schemas]
        if not asked:
            return []
        try:
            await shard.reader.connect(within=look_seconds(shard.dsn))
            answers = await shard.reader.transact(asked, deadline=READ_DEADLINE_SECONDS)
        except ConnectionLost as error:
            if away is None:
                raise unavailable(shard.name, error) from None
            away[shard.name] = str(error)
            return []
        return [one for answer in answers for one in workflows.descriptions_of(answer)]

    parts: list[list[Description]] = []
    for attempt in itertools.count():
        try:
            parts = await asyncio.gather(*map(of, shards.shards.values()))
            break
        except psycopg.Error as error:
            # A slot has moved while we looked: it might be in two parts of the list, or in none.
            slot = moved_slot(error)
            if slot is None or shards.clock.monotonic() > until:
                raise
            await shards.find_slot(slot, until, attempt)
    found = list({one.id: one for part in parts for one in part}.values())
    found.sort(key=lambda one: (one.created_at, one.id), reverse=True)
    return found[:limit]
