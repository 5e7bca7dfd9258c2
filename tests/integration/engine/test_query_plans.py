"""The plan of every hot statement, as a session of the engine has it that prepared it while the tables were empty.

A plan is made once and kept, so what is chosen on empty tables is what runs when they are full.
"""

from __future__ import annotations

import asyncio
import re

import psycopg
import pytest

from sharded_wf.postgres.queries import Query, load
from sharded_wf.postgres.session import Session, Statement
from sharded_wf.routing import CONTROL_SCHEMA
from sharded_wf.store import slots
from tests.support import citus
from tests.support.cluster import TestCluster

pytestmark = pytest.mark.skipif(bool(citus.COORDINATOR), reason="Citus shows no such plans")

ROWS = 100_000
FAMILIES = (
    "claims", "starts", "steps", "outcomes", "timers", "messages", "events", "leases", "requests", "retention",
    "repair", "attributes",
)  # fmt: skip
SLOT = "wf_0000"
FILL = f"""
    insert into {SLOT}.workflow (created_at, status, priority, id, name, capability, queue, claims, input)
        select now() + n * interval '1 ms', n % 3, 0, 'w' || n, 'engine/echo', 'engine', 'default', 1, '[]'
        from generate_series(1, {ROWS}) n;
    insert into {SLOT}.ready select 'engine', 'default', 0, now() + n * interval '1 ms', 'w' || n
        from generate_series(1, {ROWS}) n;
    insert into {SLOT}.claim select gen_random_uuid(), gen_random_uuid(), now(), array['w' || n]
        from generate_series(1, {ROWS}) n;
    insert into {SLOT}.step select 0, now(), now(), 1, 1, 0, 'w' || n, 'note', '1', null
        from generate_series(1, {ROWS}) n;
    insert into {SLOT}.attempt select 'w' || n, 1, 1, now(), now(), now(), '1' from generate_series(1, {ROWS}) n;
    insert into {SLOT}.attribute select 'w' || n, 'n', 0, 's' || n, now() from generate_series(1, {ROWS}) n;
    insert into {SLOT}.input select 'w' || n, '1' from generate_series(1, {ROWS}) n;
    insert into {SLOT}.message select 'w' || n, 'mail', 's', 1, now(), '1' from generate_series(1, {ROWS}) n;
    insert into {SLOT}.wake select 'w' || n, gen_random_uuid() from generate_series(1, {ROWS}) n;
    insert into {SLOT}.timer select now() + n * interval '1 ms', 'w' || n from generate_series(1, {ROWS}) n;
    insert into {SLOT}.outbox select 'r' || n, 'mail', 's', 1, now(), '1' from generate_series(1, {ROWS}) n;
    insert into {SLOT}.heartbeat select 'w' || n, 1, 1, now(), null, '1' from generate_series(1, {ROWS}) n;
    insert into {SLOT}.event select 'w' || n, 'k', now(), '1' from generate_series(1, {ROWS}) n;
    insert into {SLOT}.event_waiter select 'w' || n, 'k', 'v' || n from generate_series(1, {ROWS}) n;
    insert into {CONTROL_SCHEMA}.request (body) select '1' from generate_series(1, {ROWS});
    insert into {SLOT}.failed select now() + n * interval '1 ms', 'w' || n, 4 from generate_series(1, {ROWS}) n;
"""
INTENDED: dict[str, tuple[str, ...]] = {
    "claim": ("ready_pkey", "workflow_pkey", "input_pkey"),
    "read_claim": ("claim_pkey", "workflow_pkey"),
    "release_claims": ("claim_pkey",),
    "give_back": ("workflow_pkey",),
    "give_back_lease": ("workflow_pkey",),
    "adopt": ("claim_pkey", "workflow_pkey"),
    "continue_as_new": ("workflow_pkey",),
    "forget_run": ("step_pkey", "attempt_pkey", "message_pkey"),
    "take_over": ("workflow_pkey",),
    "reroute": ("workflow_pkey",),
    "read_orphans": ("claim_pkey", "workflow_pkey", "step_pkey"),
    "read_starts": ("workflow_pkey",),
    "read_steps": ("step_pkey",),
    "read_attempts": ("attempt_pkey", "heartbeat_pkey"),
    "succeed": ("workflow_pkey",),
    "fail": ("workflow_pkey",),
    "cancel_unclaimed": ("ready_pkey", "workflow_pkey"),
    "read_outcomes": ("workflow_pkey",),
    "missing_workflows": ("workflow_pkey",),
    "park": ("workflow_pkey",),
    "wake_arrived": ("wake_pkey", "workflow_pkey"),
    "fire_timers": ("timer_pkey", "workflow_pkey"),
    "deliver_messages": ("workflow_pkey",),
    "deliver_with_start": ("workflow_pkey",),
    "record_transaction": ("workflow_pkey",),
    "read_step": ("step_pkey",),
    "read_requests": ("request_pkey",),
    "clear_requests": ("request_pkey",),
    "refuse_requests": ("request_pkey",),
    "read_messages": ("message_pkey",),
    "consume_messages": ("message_pkey",),
    "clear_mailboxes": ("message_pkey",),
    "read_wakes": ("wake_pkey", "workflow_pkey"),
    "forget_wakes": ("wake_pkey",),
    "forget_idle_wakes": ("wake_pkey", "workflow_pkey", "message_pkey"),
    "wake_parked": ("workflow_pkey",),
    "save_attributes": ("workflow_pkey",),
    "set_attributes": ("workflow_pkey",),
    "remove_attributes": ("attribute_pkey",),
    "read_attributes": ("attribute_pkey",),
    "find_workflows": ("attribute_value", "workflow_pkey", "attribute_pkey"),
    "search_workflows": ("attribute_value", "workflow_pkey", "attribute_pkey"),
    "resume": ("workflow_pkey", "failed_pkey", "message_pkey", "step_pkey"),
    "page_failed": ("failed_pkey", "workflow_pkey"),
    "read_origin": ("workflow_pkey",),
    "read_outbox": ("outbox_pkey",),
    "clear_outbox": ("outbox_pkey",),
    "find_old": ("workflow_created", "outbox_pkey"),
    "find_unfinished_parents": ("workflow_pkey",),
    "read_old": ("workflow_", "input_pkey", "step_pkey", "attempt_pkey", "attribute_pkey"),
    "delete_old_inputs": ("workflow_", "input_pkey"),
    "delete_old": (
        "workflow_",
        "step_pkey",
        "attempt_pkey",
        "heartbeat_pkey",
        "event_pkey",
        "message_pkey",
        "attribute_pkey",
        "wake_pkey",
        "failed_pkey",
    ),
    "save_heartbeats": (),
    "set_events": (),
    "forget_answered": ("event_waiter_pkey", "event_pkey"),
    "look_for_events": ("workflow_pkey", "event_pkey"),
    "read_event_waiters": ("event_pkey", "event_waiter_pkey"),
    "read_missed_waiters": ("event_waiter_pkey", "workflow_pkey", "event_pkey"),
    "forget_event_waiters": ("event_waiter_pkey",),
    "peek": ("ready_pkey", "timer_pkey", "wake_pkey", "outbox_pkey"),
}
ON_CONTROL = {"request", "read_requests", "clear_requests", "refuse_requests"}
ASKED_BY_PEOPLE = ("read_owner", "write_owner", "read_refused", "count_requests")
"""Of a database that is no shard, or now and then."""
SORTS_A_BATCH = {
    # What these sort is one batch, given by its IDs; what is read of the tables comes by an index.
    "read_messages", "read_steps", "wake_parked", "fire_timers", "deliver_messages", "wake_arrived", "read_orphans",
    "read_attempts", "resume", "search_workflows", "find_unfinished_parents", "find_old", "read_old",
    "delete_old_inputs",
}  # fmt: skip
FIRST_ROWS_ONLY = {
    # A limit, or a loose scan, ends these at their first rows.
    ("peek", "ready_pkey"), ("peek", "timer_pkey"), ("peek", "wake_pkey"), ("peek", "outbox_pkey"),
    ("peek", "event_waiter_pkey"), ("peek", "request_pkey"), ("read_orphans", "claim_pkey"),
    ("read_outbox", "outbox_pkey"),
    ("find_old", "outbox_pkey"),
}  # fmt: skip
SCANNED = {"give_back_lease": {"claim"}}
"""One row a batch that is under way, and no index on its lease: read whole when an executor says goodbye."""
CHURNING = (
    r"Seq Scan on (workflow|ready|claim|step|attempt|input|message|wake|timer|outbox|failed|request|attribute"
    r"|heartbeat|event|event_waiter)\b"
)


def queries() -> dict[str, str]:
    """The text of every hot statement on the first slot, by name."""
    found = {name: query.on(SLOT) for family in FAMILIES for name, query in load(family).items()}
    del found["peek_requests"]  # a part of `peek`
    found["watch_moves"] = load("moves")["watch_moves"].on(SLOT)
    found |= {name: query.on(CONTROL_SCHEMA) for name, query in load("requests").items() if name in ON_CONTROL}
    for name in ASKED_BY_PEOPLE:
        del found[name]
    found = {name: text for name, text in found.items() if not text.startswith("vacuum")}
    found["peek"] = slots.peek({0: SLOT}).query.on("")
    return found


def whole_index_scans(plan: str) -> list[str]:
    """Indexes that a plan reads from end to end: scans without a condition."""
    lines = plan.splitlines()
    found = []
    for at, line in enumerate(lines):
        scan = re.search(r"Index (?:Only )?Scan (?:Backward )?using (\w+)", line)
        if scan and not (at + 1 < len(lines) and "Index Cond" in lines[at + 1]):
            found.append(scan[1])
    return found


async def plans_of(session: Session, names: list[str]) -> dict[str, str]:
    plans: dict[str, str] = {}
    for name in names:
        types = await session.fetch(
            Statement(
                Query("t", "select unnest(parameter_types)::text from pg_prepared_statements where name = $1"),
                "",
                (name.encode(),),
            )
        )
        nulls = ", ".join("null" for _ in range(len(types)))
        explain = f'explain (costs off) execute "{name}"' + (f"({nulls})" if nulls else "")
        rows = (await session.fetch(Statement(Query(f"explain {name} {len(plans)}", explain), ""))).rows()
        plans[name] = "\n".join((line or b"").decode() for (line,) in rows)
    return plans


@pytest.fixture(scope="module")
def known() -> list[str]:
    return sorted(queries())


@pytest.mark.sampled
def test_every_hot_statement_keeps_its_plan_as_the_tables_fill(cluster: TestCluster, known: list[str]) -> None:
    texts = queries()

    async def go() -> tuple[dict[str, str], dict[str, str]]:
        session = await Session.connect(cluster.direct[0], purpose="plans")
        try:
            for name in known:
                await session.fetch(Statement(Query(f"prepare {name}", f'prepare "{name}" as {texts[name]}'), ""))
            await plans_of(session, known)  # plans are made, and kept, while all is empty
            with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
                conn.execute(FILL.encode())
                full = await plans_of(session, known)
                for table in ("workflow", "ready", "claim", "step", "message", "wake", "timer", "outbox"):
                    conn.execute(f"analyze {SLOT}.{table}".encode())
            return full, await plans_of(session, known)
        finally:
            session.close()

    wrong: list[str] = []
    for when, plans in zip(("kept", "made anew with statistics"), asyncio.run(go()), strict=True):
        for name, plan in plans.items():
            complaints = [f"does not use {index}" for index in INTENDED.get(name, ()) if index not in plan]
            scanned = set(re.findall(CHURNING, plan)) - SCANNED.get(name, set())
            complaints += [f"scans {table}" for table in sorted(scanned)]
            complaints += [f"has a {bad}" for bad in ("Hash Join", "Merge Join") if bad in plan]
            complaints += [
                f"reads all of {index}" for index in whole_index_scans(plan) if (name, index) not in FIRST_ROWS_ONLY
            ]
            if re.search(r"\bSort\b", plan) and name not in SORTS_A_BATCH:
                complaints.append("sorts")
            if complaints:
                wrong.append(f"{name} ({when}): {', '.join(complaints)}\n{plan}")
    assert not wrong, "\n\n".join(wrong)


def test_the_list_of_intended_indexes_is_current(known: list[str]) -> None:
    assert set(INTENDED) <= set(known)


def test_a_scan_would_be_seen(cluster: TestCluster) -> None:
    """The test above must be able to fail."""
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        rows = conn.execute(f"explain (costs off) select * from {SLOT}.workflow where name = 'x'".encode()).fetchall()
    assert re.search(CHURNING, "\n".join(row[0] for row in rows))
