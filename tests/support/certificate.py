"""Judges the rows that the engine left behind, knowing what was acknowledged and which bodies of steps ran.

Nothing here is shared with the engine but the names of tables and columns: it reads every slot on every shard with
plain SQL, and says in words what contradicts the invariants. No violation, no words.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

PENDING, RUNNING, PARKED, SUCCEEDED, FAILED, CANCELLED, QUARANTINED = range(7)
STEP, MESSAGE, RESUME = 0, 2, 10
CLOCK_TOLERANCE = timedelta(milliseconds=5)
SETTLE_SECONDS = 30.0

Row = dict[str, Any]


@dataclass
class Rows:
    """Every row of a cluster, each with the ``slot`` (shard and schema) that holds it."""

    workflow: list[Row] = field(default_factory=list)
    step: list[Row] = field(default_factory=list)
    ready: list[Row] = field(default_factory=list)
    claim: list[Row] = field(default_factory=list)
    timer: list[Row] = field(default_factory=list)
    message: list[Row] = field(default_factory=list)
    wake: list[Row] = field(default_factory=list)
    outbox: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    attempt: list[Row] = field(default_factory=list)
    ledger: list[Row] = field(default_factory=list)


TABLES = ("workflow", "step", "ready", "claim", "timer", "message", "wake", "outbox", "failed", "attempt")


def slot_schemas(conn: psycopg.Connection[Any]) -> list[str]:
    """The schemas of the slots that this database holds; of a node of a Citus cluster, those that it serves."""
    citus = conn.execute("select to_regproc('wf_control.guard') is not null").fetchone() == (True,)
    rows = conn.execute(
        "select nspname from pg_namespace where nspname ~ '^wf_[0-9]{4,}$' order by 1"
        if not citus
        else "select 'wf_' || lpad(m.slot::text, 4, '0') from wf_control.shard_map m "
        "join wf_control.cluster c on c.shard = m.shard order by 1"
    ).fetchall()
    return [schema for (schema,) in rows]


def read_rows(shards: Sequence[str], ledger: str | None = None) -> Rows:
    """All rows of the shards with these connection strings, one snapshot a shard, and those of the ledger."""
    rows = Rows()
    for dsn in shards:
        with psycopg.connect(dsn) as conn:
            cursor = conn.cursor(row_factory=dict_row)
            cursor.execute("set transaction isolation level repeatable read")
            for schema in slot_schemas(conn):
                for table in TABLES:
                    query = sql.SQL("select * from {}").format(sql.Identifier(schema, table))
                    slot = f"{dsn} {schema}"
                    getattr(rows, table).extend({**row, "slot": slot} for row in cursor.execute(query))
    if ledger is not None:
        with psycopg.connect(ledger) as conn:
            rows.ledger = conn.cursor(row_factory=dict_row).execute("select * from ledger order by line").fetchall()
    return rows


def judge(
    rows: Rows, acknowledged: Collection[str] = (), *, finished: bool = True, zombies: Collection[int] = ()
) -> list[str]:
    """What is wrong, in words. ``acknowledged``: the IDs of starts that were acknowledged. ``finished``: every workflow
    has ended and the executors have settled, so nothing of the way there may be left. ``zombies``: processes that were
    frozen past their lease, whose bodies may run once more before they notice."""
    wrong = [
        *_outcomes(rows, acknowledged, finished=finished),
        *_steps(rows),
        *_ownership(rows),
        *_ledger(rows, zombies),
    ]
    return [*wrong, *_left_behind(rows)] if finished else wrong


def _outcomes(rows: Rows, acknowledged: Collection[str], *, finished: bool) -> Iterable[str]:
    """I1, I2: what was acknowledged is there, once, with one outcome."""
    count = Counter(row["id"] for row in rows.workflow)
    yield from (f"I1: the start of {id_} was acknowledged and is lost" for id_ in acknowledged if not count[id_])
    yield from (f"I2: {id_} is in {number} slots" for id_, number in count.items() if number > 1)
    badly = Counter(row["workflow_id"] for row in rows.failed)
    for row in rows.workflow:
        id_, status = row["id"], row["status"]
        ended = status >= SUCCEEDED
        if finished and not ended:
            yield f"I2: {id_} has no outcome, its status is {status}"
        outcomes = [name for name in ("output", "error") if row[name] is not None]
        wanted = ["output"] if status == SUCCEEDED else ["error"] if ended else []
        if outcomes != wanted and not (status == SUCCEEDED and not outcomes):
            yield f"I2: {id_} has status {status} and {outcomes}, not {wanted}"
        if ended != (row["completed_at"] is not None):
            yield f"I2: {id_} has status {status} and completed_at {row['completed_at']}"
        if badly[id_] != (1 if status > SUCCEEDED else 0):
            yield f"I2: {id_} has status {status} and {badly[id_]} rows in failed"


def _steps(rows: Rows) -> Iterable[str]:
    """I3: results are recorded in order, without gaps, for workflows that exist."""
    ordinals: dict[tuple[str, str], list[int]] = {}
    for row in rows.step:
        ordinals.setdefault((row["slot"], row["workflow_id"]), []).append(row["ordinal"])
        if row["output"] is not None and row["error"] is not None:
            yield f"I3: {row['workflow_id']} has a result and an error at place {row['place']}"
    home = {(row["slot"], row["id"]) for row in rows.workflow}
    for (slot, id_), found in ordinals.items():
        if (slot, id_) not in home:
            yield f"I3: {slot} holds steps of {id_}, and not {id_} itself"
        if sorted(found) != list(range(1, len(found) + 1)):
            yield f"I3: the ordinals of {id_} are {sorted(found)}"


def _ownership(rows: Rows) -> Iterable[str]:
    """I4: what runs is held by one claim; what is pending stands in the queue, once; nothing else does."""
    claims = {(row["slot"], row["id"]): row["workflow_ids"] for row in rows.claim}
    queued = Counter((row["slot"], row["id"]) for row in rows.ready)
    for row in rows.workflow:
        id_, status = row["id"], row["status"]
        if status == RUNNING and id_ not in claims.get((row["slot"], row["claim_id"]), ()):
            yield f"I4: {id_} runs under the claim {row['claim_id']}, which does not hold it"
        standing = queued.pop((row["slot"], id_), 0)
        if standing != (1 if status == PENDING else 0):
            yield f"I4: {id_} has status {status} and stands {standing} times in the queue"
    yield from (f"I4: {id_} stands in the queue of {slot} and does not exist" for slot, id_ in queued)


def _ledger(rows: Rows, zombies: Collection[int]) -> Iterable[str]:
    """I3: the body of a recorded step ran, and never after its result was recorded; all its runs had the same key."""
    lines: dict[tuple[str, str, int], list[Row]] = {}
    for line in rows.ledger:
        lines.setdefault((line["workflow"], line["step"], line["number"]), []).append(line)
    by_token = {line["token"]: line for line in rows.ledger}
    keys: dict[str, tuple[str, str, int]] = {}
    for call, runs in lines.items():
        for key in {line["key"] for line in runs}:
            if keys.setdefault(key, call) != call:
                yield f"I3: {call} and {keys[key]} have the same idempotency key"
        if len({line["key"] for line in runs}) > 1:
            yield f"I3: {call} was given different idempotency keys"
    recorded: set[tuple[str, str, int]] = set()
    origins = _origins(rows)
    for row in rows.step:
        if row["kind"] != STEP or not row["name"].endswith("note") or row["error"] is not None:
            continue
        counted = by_token.get(row["output"])
        if counted is not None and counted["workflow"] == origins.get(row["workflow_id"]):
            continue  # copied by a fork
        if counted is None or counted["workflow"] != row["workflow_id"] or counted["step"] != row["name"]:
            yield f"I3: {row['workflow_id']} place {row['place']}: no body of {row['name']} returned what is recorded"
            continue
        call = (counted["workflow"], counted["step"], counted["number"])
        if call in recorded:
            yield f"I3: {call} is recorded twice"
        recorded.add(call)
        for other in lines[call]:
            if other["at"] > row["completed_at"] + CLOCK_TOLERANCE and other["pid"] not in zombies:
                yield f"I3: {call} ran again, in process {other['pid']}, after its result was recorded"


def _origins(rows: Rows) -> Mapping[str, str]:
    """Which workflow each fork was made of."""
    marks = ((row["workflow_id"], row["output"]) for row in rows.step if row["kind"] == RESUME)
    return {id_: mark["forked_from"] for id_, mark in marks if mark and mark.get("forked_from")}


def _left_behind(rows: Rows) -> Iterable[str]:
    """I6 and order: when all has ended, nothing is under way."""
    yield from (f"a claim is left behind: {row['id']} with {row['workflow_ids']}" for row in rows.claim)
    yield from (f"a wake is left behind, for {row['workflow_id']}" for row in rows.wake)
    yield from (f"I6: a message is left in the outbox: {_named(row)}" for row in rows.outbox)
    now = datetime.now(UTC)
    yield from (
        f"a timer is left behind, of {row['workflow_id']}"
        for row in rows.timer
        if row["due_at"] < now - timedelta(seconds=5)
    )
    received = {
        (row["workflow_id"], row["name"], row["output"]["sender"], row["output"]["seq"])
        for row in rows.step
        if row["kind"] == MESSAGE
    }
    for row in rows.message:
        if (row["workflow_id"], row["topic"], row["sender"], row["seq"]) in received:
            yield f"I6: a message was received and is still there: {_named(row)}"


def _named(row: Row) -> str:
    return (
        f"{row['sender']} to {row.get('receiver') or row.get('workflow_id')} on {row['topic']!r}, number {row['seq']}"
    )


def runs_of_bodies(rows: Rows) -> Mapping[tuple[str, str, int], int]:
    """How often each body of a step ran: (workflow, step, number) -> runs."""
    return Counter((line["workflow"], line["step"], line["number"]) for line in rows.ledger)


def certify(
    shards: Sequence[str],
    acknowledged: Collection[str] = (),
    *,
    ledger: str | None = None,
    finished: bool = True,
    zombies: Collection[int] = (),
    timeout: float = SETTLE_SECONDS,
) -> Rows:
    """Fail with all that is wrong, if it does not come right within ``timeout`` seconds; the rows that were judged."""
    deadline = time.monotonic() + timeout
    while True:
        rows = read_rows(shards, ledger)
        wrong = judge(rows, acknowledged, finished=finished, zombies=zombies)
        if not wrong:
            return rows
        if time.monotonic() > deadline:
            shown = "\n  ".join(wrong[:30])
            raise AssertionError(f"{len(wrong)} violations:\n  {shown}")
        time.sleep(0.1)
