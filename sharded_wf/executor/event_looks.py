"""Looking for events of other workflows, on behalf of those that wait for them."""

from __future__ import annotations

import logging

import psycopg

from sharded_wf.cluster.shard import Shard
from sharded_wf.errors import EventNeverSet, ShardedWfError, WorkflowNotFound
from sharded_wf.executor.held import Hold
from sharded_wf.postgres.failures import is_moved, is_transient
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.routing import slot_schema
from sharded_wf.store import events
from sharded_wf.store.events import Found, Wait

logger = logging.getLogger("sharded_wf.events")

Row = tuple[Hold, str, str]
"""A held workflow, and the workflow and the key of the event that it waits for."""


async def look_on(shard: Shard, by_slot: dict[int, list[Row]]) -> dict[tuple[str, str], Found]:
    """Look for these events, of one shard; who waits in vain will be told. Tries for as long as the shard is away: the
    workflows can only wait as well. Raises ``ShardedWfError`` if Postgres refuses one of the rows, ``psycopg.Error`` if
    a slot has moved."""
    first, then = [], []
    for slot, rows in sorted(by_slot.items()):
        schema = slot_schema(slot)
        waits = sorted({Wait(target, key, hold.run.id) for hold, target, key in rows})
        first.append(events.await_events(schema, waits))
        then.append(events.look(schema, sorted({(wait.workflow_id, wait.key) for wait in waits}), waits))
    while True:
        try:
            await shard.reader.transact(first)
            # A transaction of its own: see the head of sql/queries/events.sql.
            answers = await shard.reader.transact([statement for pair in then for statement in pair])
            return {(one.workflow_id, one.key): one for answer in answers[1::2] for one in events.found_of(answer)}
        except ConnectionLost as error:
            logger.info("shard %s: a look for events is put off: %s", shard.name, error)
        except psycopg.Error as error:
            if is_moved(error):
                raise
            if not is_transient(error):
                raise ShardedWfError(f"shard {shard.name!r} refused the row: {error}") from None
        await shard.reader.pause()


def answer_look(hold: Hold, target: str, key: str, found: Found | None, refused: ShardedWfError | None) -> None:
    """Tell a workflow what was found."""
    if hold.leaving:
        return
    value = None if found is None else found.value
    error: ShardedWfError | None = refused
    if error is None and value is None and found is not None:
        if found.status is None:
            error = WorkflowNotFound(f"no workflow {target!r} that could set event {key!r}; start it first")
        elif found.status.is_final:
            error = EventNeverSet(f"workflow {target!r} {found.status.label} without setting event {key!r}")
    hold.run.event_looked(target, key, value, error)
