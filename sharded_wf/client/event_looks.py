"""Looking for the events that a client waits for on one shard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sharded_wf.errors import EventNeverSet, WorkflowNotFound
from sharded_wf.limits import RESULT_IDS_PER_LOOK_MAX
from sharded_wf.postgres.link import Link
from sharded_wf.routing import slot_schema
from sharded_wf.store import events

Waiting = dict[int, dict[tuple[str, str], list[asyncio.Future[bytes]]]]
"""Who waits: by slot, then by workflow and key."""


async def look_for_events(link: Link, waiting: Waiting, slots: Iterable[int]) -> bool:
    """Look once in these slots, and answer those who wait. Whether anybody was answered."""
    asked = [(slot, list(waiting[slot])[:RESULT_IDS_PER_LOOK_MAX]) for slot in slots if slot in waiting]
    if not asked:
        return False
    answers = await link.transact([one for slot, pairs in asked for one in events.look(slot_schema(slot), pairs)])
    answered = False
    for (slot, _), answer in zip(asked, answers, strict=True):
        for found in events.found_of(answer):
            error: Exception | None = None
            if found.value is None:
                if found.status is None:
                    error = WorkflowNotFound(f"no workflow has the ID {found.workflow_id!r}")
                elif found.status.is_final:
                    error = EventNeverSet(
                        f"workflow {found.workflow_id!r} {found.status.label} without setting event {found.key!r}"
                    )
                else:
                    continue
            answered = True
            for future in waiting.get(slot, {}).pop((found.workflow_id, found.key), ()):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(found.value or b"null")
        if slot in waiting and not waiting[slot]:
            del waiting[slot]
    return answered
