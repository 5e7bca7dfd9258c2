"""The certificate: what the clients were told, and what bodies of steps said, against the rows that the engine left.

Nothing here is shared with the engine but the names of tables and columns. Checks within a slot run on its shard (see
``checks.py``); who was acknowledged and is not there, or is there twice, is found on the ledger's server, to which the
IDs are copied: a run of many millions takes disk, not memory.

It covers: every acknowledged start; every recorded result; every message; and, of the bodies of steps, those of the
units that are noted (see ``workloads.py``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg import sql

from sharded_wf.config import ClusterConfig, ShardConfig

from .checks import AT_REST, DUPLICATED, LOST, SLOT_CHECKS, UNSOUND, Check

SETTLE_SECONDS = 12.0
"""After the last outcome the executors still tidy up (claims, wakes, messages that were received)."""
SHOWN_MAX = 8
"""Of each kind of violation, on each shard; all are counted."""

Conn = psycopg.Connection[Any]


class Violation(msgspec.Struct, frozen=True):
    """``count`` cases of one kind; ``examples`` names some. ``kind``: lost, duplicated, misordered or unsound."""

    kind: str
    shard: str
    what: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}, {self.shard}: {self.what}: {self.count:,} times, such as {', '.join(self.examples)}"


class Certificate(msgspec.Struct, frozen=True):
    """What was judged, and what was found. ``drained``: all that was started has ended, so that nothing may be
    missing; otherwise only what has ended is judged, and ``unfinished`` counts the rest."""

    drained: bool
    acknowledged: int
    workflows: int
    finished: int
    unfinished: int
    steps: int
    messages: int
    bodies_noted: int
    retired: int
    """Acknowledged, and removed since by retention."""
    violations: tuple[Violation, ...]

    @property
    def holds(self) -> bool:
        return not self.violations

    def count(self, kind: str, shard: str | None = None) -> int:
        found = (one for one in self.violations if one.kind == kind and shard in (None, one.shard))
        return sum(one.count for one in found)


@dataclass(frozen=True)
class Expected:
    """What to judge by. ``steps_of``: recorded steps of a finished workflow, by name. ``retired_before``: starts that
    were acknowledged before may have been removed by retention."""

    steps_of: Mapping[str, int]
    drained: bool = True
    retired_before: datetime | None = None


def certify(
    config: ClusterConfig, ledger: str, expected: Expected, *, settle_seconds: float = SETTLE_SECONDS
) -> Certificate:
    """Judge. What executors tidy up late gets ``settle_seconds`` to come right; they must run still, or have ended in
    order."""
    deadline = time.monotonic() + settle_seconds
    while True:
        found = _judge_slots(config, expected)
        if not any(one.what in AT_REST for one in found.violations) or time.monotonic() > deadline:
            break
        time.sleep(0.25)
    with psycopg.connect(ledger, autocommit=True) as conn:
        _copy(config, conn)
        counts, against = _judge_ledger(conn, expected)
    return Certificate(
        expected.drained, counts["acknowledged"], found.workflows, found.finished, found.workflows - found.finished,
        found.steps, found.messages, counts["bodies"], counts["retired"], (*found.violations, *against),
    )  # fmt: skip


def slots_of(conn: Conn) -> list[str]:
    """The schemas of the slots of a shard; of a node of a Citus cluster, which sees all, those that it serves."""
    served = conn.execute("select to_regproc('wf_control.guard') is not null").fetchone() == (True,)
    rows = conn.execute(
        "select 'wf_' || lpad(m.slot::text, greatest(4, length(m.slot::text)), '0') from wf_control.shard_map m "
        "join wf_control.cluster c on c.shard = m.shard order by m.slot"
        if served
        else r"select nspname from pg_namespace where nspname ~ '^wf_[0-9]{4,}$' order by 1"
    ).fetchall()
    return [row[0] for row in rows]


# --- within the slots -----------------------------------------------------------------------------------------------


@dataclass
class _Slots:
    workflows: int = 0
    finished: int = 0
    steps: int = 0
    messages: int = 0
    violations: tuple[Violation, ...] = ()


def _judge_slots(config: ClusterConfig, expected: Expected) -> _Slots:
    found = _Slots()
    for shard in config.shards:
        with psycopg.connect(shard.dsn) as conn:
            conn.execute("set transaction isolation level repeatable read, read only")
            conn.execute("set local work_mem = '64MB'")
            counts: Counter[Check] = Counter()
            examples: dict[Check, list[str]] = {}
            for schema in slots_of(conn):
                _count_rows(conn, schema, found)
                for check in SLOT_CHECKS:
                    if check.only_drained and not expected.drained:
                        continue
                    for total, shown in _ask(conn, check, schema, expected):
                        counts[check] += total
                        examples.setdefault(check, []).extend(shown)
        found.violations += tuple(
            Violation(check.kind, shard.name, check.what, count, tuple(examples[check][:SHOWN_MAX]))
            for check, count in counts.items()
        )
    return found


def _count_rows(conn: Conn, schema: str, found: _Slots) -> None:
    row = conn.execute(
        sql.SQL(
            "select count(*), count(*) filter (where status >= 3), "
            "(select count(*) filter (where kind = 0) from {s}.step), "
            "(select count(*) filter (where kind = 2) from {s}.step) from {s}.workflow"
        ).format(s=sql.Identifier(schema))
    ).fetchone()
    assert row is not None
    found.workflows += row[0]
    found.finished += row[1]
    found.steps += row[2]
    found.messages += row[3]


def _ask(conn: Conn, check: Check, schema: str, expected: Expected) -> Iterable[tuple[int, list[str]]]:
    """How often a slot breaks it, with examples; nothing if it does not."""
    query = sql.SQL("with wrong (id) as ({}) select count(*), (array_agg(id))[:{}] from wrong").format(
        sql.SQL(check.query).format(s=sql.Identifier(schema)), sql.Literal(SHOWN_MAX)
    )
    names = list(expected.steps_of)
    counts = [expected.steps_of[name] for name in names]
    row = conn.execute(query, {"names": names, "counts": counts}).fetchone()
    assert row is not None
    if row[0]:
        yield row[0], [str(one) for one in row[1]]


# --- against the ledger ---------------------------------------------------------------------------------------------

_FOUND = """
create temporary table found (id text not null, ended boolean not null, shard text not null);
create temporary table recorded (
    workflow_id text not null, token text, completed_at timestamptz not null, shard text not null);
"""

_ACKNOWLEDGED: LiteralString = "(select unnest(ids) as id, at from acknowledged) a"

_LEDGER_CHECKS: tuple[tuple[str, str, LiteralString], ...] = (
    (
        LOST,
        "a start was acknowledged, and there is no such workflow",
        (
            f"select 'the cluster', a.id::text from {_ACKNOWLEDGED} left join found f on f.id = a.id::text "
            "where f.id is null and (%(retired)s::timestamptz is null or a.at >= %(retired)s)"
        ),
    ),
    (
        DUPLICATED,
        "one workflow is in more than one slot",
        ("select min(shard), id from found group by id having count(*) > 1"),
    ),
    (
        UNSOUND,
        "a result is recorded, and no body of the step returned it",
        (
            "select r.shard, r.workflow_id from recorded r left join body b "
            "on b.token = r.token and b.workflow_id = r.workflow_id where b.token is null"
        ),
    ),
    (
        DUPLICATED,
        "one call of a step has two recorded results",
        (
            "select min(r.shard), r.workflow_id from recorded r join body b using (token) "
            "group by r.workflow_id, b.number having count(*) > 1"
        ),
    ),
    (
        DUPLICATED,
        "the body of a step ran again after its result was recorded",
        (
            "select r.shard, r.workflow_id from recorded r join body b using (token) join body again "
            "on again.workflow_id = b.workflow_id and again.number = b.number and again.token <> b.token "
            "where again.at > r.completed_at + interval '5 ms'"
        ),
    ),
    (
        LOST,
        "the body of a step ran, its workflow has ended, and no run of it is recorded",
        (
            "select f.shard, b.workflow_id from body b join found f on f.id = b.workflow_id and f.ended "
            "where not exists (select from body other join recorded r using (token) "
            "where other.workflow_id = b.workflow_id and other.number = b.number)"
        ),
    ),
)


def _copy(config: ClusterConfig, ledger: Conn) -> None:
    """Bring the IDs of all workflows, and the recorded results of noted steps, to the ledger's server."""
    ledger.execute("set work_mem = '128MB'")
    ledger.execute(_FOUND)
    for shard in config.shards:
        with psycopg.connect(shard.dsn) as conn:
            for schema in slots_of(conn):
                slot = sql.Identifier(schema)
                name = sql.Literal(shard.name)
                _pipe(
                    conn, ledger, "found",
                    sql.SQL("select id, status >= 3, {n}::text from {s}.workflow").format(n=name, s=slot),
                )  # fmt: skip
                _pipe(
                    conn, ledger, "recorded",
                    sql.SQL(
                        "select workflow_id, output #>> '{{}}', completed_at, {n}::text from {s}.step "
                        "where kind = 0 and name = 'noted'"
                    ).format(n=name, s=slot),
                )  # fmt: skip
    ledger.execute("analyze found; analyze recorded; analyze body; analyze acknowledged")


def _pipe(source: Conn, target: Conn, table: str, query: sql.Composed) -> None:
    with (
        source.cursor().copy(sql.SQL("copy ({}) to stdout (format binary)").format(query)) as read,
        target.cursor().copy(sql.SQL("copy {} from stdin (format binary)").format(sql.Identifier(table))) as written,
    ):
        for block in read:
            written.write(block)


def _judge_ledger(conn: Conn, expected: Expected) -> tuple[dict[str, int], list[Violation]]:
    parameters = {"retired": expected.retired_before}
    row = conn.execute(
        "select coalesce(sum(cardinality(ids)), 0), (select count(*) from body) from acknowledged"
    ).fetchone()
    assert row is not None
    counts = {"acknowledged": int(row[0]), "bodies": int(row[1]), "retired": 0}
    if expected.retired_before is not None:
        retired = conn.execute(
            f"select count(*) from {_ACKNOWLEDGED} left join found f on f.id = a.id::text "
            "where f.id is null and a.at < %(retired)s",
            parameters,
        ).fetchone()
        assert retired is not None
        counts["retired"] = retired[0]
    violations: list[Violation] = []
    for kind, what, query in _LEDGER_CHECKS:
        grouped = sql.SQL(
            "select shard, count(*), (array_agg(id))[:{}] from ({}) wrong (shard, id) group by shard"
        ).format(sql.Literal(SHOWN_MAX), sql.SQL(query))
        for shard, count, shown in conn.execute(grouped, parameters):
            violations.append(Violation(kind, shard, what, count, tuple(shown)))
    return counts, violations


def unfinished(shards: Sequence[ShardConfig]) -> int:
    """How many workflows have not ended."""
    return _count(shards, "select count(*) from {}.workflow where status < 3")


def untidied(shards: Sequence[ShardConfig]) -> int:
    """How many announcements of messages nobody has looked at yet: executors that are told to end leave them."""
    return _count(shards, "select count(*) from {}.wake")


def _count(shards: Sequence[ShardConfig], query: LiteralString) -> int:
    total = 0
    for shard in shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            for schema in slots_of(conn):
                row = conn.execute(sql.SQL(query).format(sql.Identifier(schema))).fetchone()
                assert row is not None
                total += row[0]
    return total
