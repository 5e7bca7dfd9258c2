"""Taking over what a dead executor held.

Two steps, in this order and never in one statement: the lease is deleted and that is committed; then the claims whose
lease is gone are read and their workflows put back. The deletion waits for the dead executor's last flush or claim,
which holds the lease's row, or beats it; so when the claims are read, nothing can be added to them.

The second step needs no memory of the first: whoever sees claims without a lease may put them back, at any time, and
two that do so at once do no harm. A takeover that itself dies halfway is finished by the next observer.

A workflow that took its executor down must not do so for ever. One that recorded nothing between its claim and its
executor's death has one more death on its count; any progress clears it. From ``SUSPECT_AFTER_DEATHS`` on it waits in a
lane from which only isolated executors take, one workflow at a time; if that dies too, the workflow is quarantined.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import psycopg

from sharded_wf.clock import Clock
from sharded_wf.errors import WorkflowQuarantined
from sharded_wf.limits import SUSPECT_AFTER_DEATHS, TAKEOVER_LOCK_TIMEOUT_SECONDS
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import OUTCOME_TOPIC, Message, Outcome
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost, Result, Statement
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.serialization.outcomes import encode_outcome
from sharded_wf.store import claims, leases, messages, outcomes

logger = logging.getLogger("sharded_wf.takeover")


async def end_lease(taker: Link, helper: Link, lease_id: bytes, seen_beat: int) -> bool:
    """Take a dead executor's lease away. ``helper`` ends the backends that hold its row for too long (a frozen process
    can hold it where no timeout of the server fires). Returns whether it was us who took it."""
    attempt = asyncio.ensure_future(
        taker.transact([leases.end_lease(lease_id, seen_beat), leases.forget_all_flushes(lease_id)])
    )
    while True:
        done, _ = await asyncio.wait({attempt}, timeout=TAKEOVER_LOCK_TIMEOUT_SECONDS)
        if done:
            return attempt.result()[0].count == 1
        await helper.fetch(leases.end_lease_holders())


async def recover_orphans(link: Link, schemas: Mapping[int, str], clock: Clock) -> int:
    """Put back, or quarantine, all that claims without a lease hold in these slots. Returns how many workflows."""
    recovered = 0
    open_slots = dict(schemas)
    while open_slots:
        slots = sorted(open_slots)
        answers = await link.transact([claims.read_orphans(open_slots[slot]) for slot in slots])
        for slot, answer in zip(slots, answers, strict=True):
            if not len(answer):
                del open_slots[slot]
                continue
            recovered += await _recover_slot(link, open_slots[slot], answer, clock)
    if recovered:
        await link.fetch(leases.notify_if_idle(sorted(schemas)))
    return recovered


async def _recover_slot(link: Link, schema: str, answer: Result, clock: Clock) -> int:
    orphans = claims.orphans_of(answer)
    now = clock.now_us()
    back: list[claims.Orphan] = []
    dead: list[claims.Orphan] = []
    for orphan in orphans:
        if orphan.id is not None:
            (dead if orphan.deaths >= SUSPECT_AFTER_DEATHS and not orphan.progressed else back).append(orphan)
    statements: list[Statement] = []
    if back:
        deaths = [0 if orphan.progressed else orphan.deaths + 1 for orphan in back]
        statements.append(claims.take_over(schema, [o.id or "" for o in back], [o.claim_id for o in back], deaths, now))
    if dead:
        statements += _quarantine(schema, dead, now)
    statements.append(claims.release_claims(schema, sorted({orphan.claim_id for orphan in orphans})))
    await link.transact(statements)
    return len(back) + len(dead)


def _quarantine(schema: str, dead: list[claims.Orphan], now: int) -> list[Statement]:
    message = f"it took its executor down {SUSPECT_AFTER_DEATHS + 1} times, the last time alone"
    error = encode_error(WorkflowQuarantined("WorkflowQuarantined", message))
    for orphan in dead:
        logger.error("workflow %s is quarantined: it took its executor down again, running alone", orphan.id)
    statements = [
        outcomes.fail(
            schema,
            [o.id or "" for o in dead],
            [error] * len(dead),
            [o.claim_id for o in dead],
            [Status.QUARANTINED] * len(dead),
            now,
        )
    ]
    outcome = encode_outcome(Outcome(Status.QUARANTINED, None, error))
    told = [
        Message(o.parent_id, OUTCOME_TOPIC, o.id or "", o.claims, outcome, now) for o in dead if o.parent_id is not None
    ]
    if told:
        statements.append(messages.fill_outbox(schema, told))
    return statements


TAKEOVER_FAILURES = (ConnectionLost, psycopg.Error)
"""What may go wrong on the way, all of it harmless: the next observation tries again."""
