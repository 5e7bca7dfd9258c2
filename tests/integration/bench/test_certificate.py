"""The judge is judged: every kind of violation is planted into the tables of a sound run, and must be found as what it
is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from bench import checks
from bench.certificate import Expected, certify
from bench.cluster import LEDGER_TABLES
from bench.workloads import LEDGER_VARIABLE, app, noted_steps, ping, pong
from sharded_wf import ClusterConfig, ShardConfig
from sharded_wf.cluster.initialize import init_cluster

STEPS = 3
EXPECTED = Expected({noted_steps.name: STEPS})
GHOST = "01900000-0000-7000-8000-000000000000"
Conn = psycopg.Connection[Any]


class Ground:
    """Two shards with a slot each, the ledger beside them, and a copy of every table to go back to."""

    def __init__(self, config: ClusterConfig, ledger: str) -> None:
        self.config = config
        self.ledger_dsn = ledger
        shards = [psycopg.connect(shard.dsn, autocommit=True) for shard in config.shards]
        self.ledger: Conn = psycopg.connect(ledger, autocommit=True)
        self.slots = {"wf_0000": shards[0], "wf_0001": shards[1]}
        self._connections = [*shards, self.ledger]
        self._tables: list[tuple[Conn, str]] = [(self.ledger, "acknowledged"), (self.ledger, "body")]
        for schema, conn in self.slots.items():
            named = conn.execute("select tablename from pg_tables where schemaname = %s", (schema,))
            self._tables += [(conn, f"{schema}.{name}") for (name,) in named.fetchall()]
        for conn, table in self._tables:
            conn.execute(f"create table {self._kept(table)} as table {table}".encode())
        self.home = {
            id_: schema
            for schema, conn in self.slots.items()
            for (id_,) in conn.execute(f"select id from {schema}.workflow".encode()).fetchall()
        }

    @staticmethod
    def _kept(table: str) -> str:
        return "public.kept_" + table.replace(".", "_")

    def restore(self) -> None:
        for conn, table in self._tables:
            conn.execute(f"truncate {table}; insert into {table} table {self._kept(table)}".encode())

    def on(self, id_: str, query: str, **parameters: object) -> None:
        """Run a statement in the slot of a workflow, which must hit a row."""
        schema = self.home[id_]
        cursor = self.slots[schema].execute(
            query.replace("{s}", schema).encode(), {"id": id_, "ghost": GHOST, **parameters}
        )
        assert cursor.rowcount >= 1, query

    def in_ledger(self, query: str, **parameters: object) -> None:
        assert self.ledger.execute(query.encode(), {"ghost": GHOST, **parameters}).rowcount >= 1, query

    def close(self) -> None:
        for conn in self._connections:
            conn.close()


@pytest.fixture
def ground(databases: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch) -> Any:
    ledger, *dsns = databases(3)
    config = ClusterConfig("bench", tuple(ShardConfig(f"pg{n}", dsn) for n, dsn in enumerate(dsns, 1)))
    init_cluster(config, 2)
    with psycopg.connect(ledger, autocommit=True) as conn:
        conn.execute(LEDGER_TABLES)
    monkeypatch.setenv(LEDGER_VARIABLE, ledger)

    async def run() -> list[str]:
        async with app.connect(config) as client, app.executor(config):
            ids = [f"01900000-0000-7000-8000-{number:012x}" for number in range(1, 5)]
            one, other, *chains = ids
            handles = [await client.start(noted_steps.bind(STEPS), id=id_) for id_ in chains]
            handles.append(await client.start(ping.bind(other, 3), id=one))
            handles.append(await client.start(pong.bind(one, 3), id=other))
            for handle in handles:
                assert await handle.result(20) == {"ok": True}
        return ids

    ids = asyncio.run(run())
    with psycopg.connect(ledger, autocommit=True) as conn:
        conn.execute("insert into acknowledged (client, ids) values (0, %s::uuid[])", (ids,))
    made = Ground(config, ledger)
    yield made
    made.close()


PING, CHAIN = (f"01900000-0000-7000-8000-{number:012x}" for number in (1, 3))


def _remove(ground: Ground) -> None:
    ground.on(CHAIN, "delete from {s}.step where workflow_id = %(id)s")
    ground.on(CHAIN, "delete from {s}.workflow where id = %(id)s")


def _in_two_slots(ground: Ground) -> None:
    here = ground.home[CHAIN]
    there = next(schema for schema in ground.slots if schema != here)
    for table, key in (("workflow", "id"), ("step", "workflow_id")):
        query = f"select coalesce(json_agg(t), '[]') from {here}.{table} t where {key} = %s"
        row = ground.slots[here].execute(query.encode(), (CHAIN,)).fetchone()
        assert row is not None
        ground.slots[there].execute(
            f"insert into {there}.{table} select * from json_populate_recordset(null::{there}.{table}, %s)".encode(),
            (json.dumps(row[0]),),
        )


def _slot(query: str, id_: str = CHAIN) -> Callable[[Ground], None]:
    return lambda ground: ground.on(id_, query)


def _ledger(query: str) -> Callable[[Ground], None]:
    return lambda ground: ground.in_ledger(query, id=CHAIN)


STEP = "update {s}.step set %s where workflow_id = %%(id)s and ordinal = 1"
WORKFLOW = "update {s}.workflow set %s where id = %%(id)s"
PLANTED: list[tuple[str, str, Callable[[Ground], None]]] = [
    (checks.LOST, "there is no such workflow", _remove),
    (
        checks.LOST,
        "there is no such workflow",
        _ledger("insert into acknowledged (client, ids) values (1, array[%(ghost)s::uuid])"),
    ),
    (checks.LOST, "a workflow has no outcome", _slot(WORKFLOW % "status = 1, output = null, completed_at = null")),
    (checks.LOST, "its outcome is not there", _slot(WORKFLOW % "output = null")),
    (checks.DUPLICATED, "a workflow has two outcomes", _slot(WORKFLOW % "error = '{{}}'::json".replace("{{}}", "{}"))),
    (checks.DUPLICATED, "in more than one slot", _in_two_slots),
    (checks.UNSOUND, "saw what must not be", _slot(WORKFLOW % """output = '{"ok":false}'""")),
    (checks.LOST, "a recorded step has no result", _slot(STEP % "output = null")),
    (checks.DUPLICATED, "a recorded step has two results", _slot(STEP % "error = '1'")),
    (checks.LOST, "has gaps", _slot("delete from {s}.step where workflow_id = %(id)s and ordinal = 1")),
    (
        checks.LOST,
        "fewer recorded steps",
        _slot(f"delete from {{s}}.step where workflow_id = %(id)s and ordinal = {STEPS}"),
    ),
    (
        checks.DUPLICATED,
        "more recorded steps",
        _slot(
            "insert into {s}.step select fingerprint, started_at, completed_at, 99, 4, kind, workflow_id, name, output "
            "from {s}.step where workflow_id = %(id)s and ordinal = 1"
        ),
    ),
    (
        checks.DUPLICATED,
        "two recorded results",
        _slot(
            "update {s}.step set output = (select output from {s}.step where workflow_id = %(id)s and ordinal = 2) "
            "where workflow_id = %(id)s and ordinal = 1"
        ),
    ),
    (checks.UNSOUND, "a workflow that is not there", _slot(STEP % "workflow_id = %(ghost)s")),
    (
        checks.MISORDERED,
        "in another order",
        _slot(
            "update {s}.step s set output = o.output from {s}.step o where s.workflow_id = %(id)s and s.kind = 2 "
            "and o.workflow_id = %(id)s and o.kind = 2 and o.ordinal <> s.ordinal",
            PING,
        ),
    ),
    (
        checks.UNSOUND,
        "is there still",
        _slot(
            "insert into {s}.message select workflow_id, name, output ->> 'sender', (output ->> 'seq')::int, now(), "
            "'1' from {s}.step where workflow_id = %(id)s and kind = 2 limit 1",
            PING,
        ),
    ),
    (
        checks.LOST,
        "a message was never received",
        _slot("insert into {s}.message values (%(id)s, 'ping', 'nobody', 9, now(), '1')"),
    ),
    (
        checks.LOST,
        "did not leave the outbox",
        _slot("insert into {s}.outbox values (%(id)s, 'ping', 'nobody', 9, now(), '1')"),
    ),
    (
        checks.UNSOUND,
        "a claim is left",
        _slot("insert into {s}.claim values (gen_random_uuid(), gen_random_uuid(), now(), array[%(id)s])"),
    ),
    (checks.UNSOUND, "a wake is left", _slot("insert into {s}.wake values (%(id)s, gen_random_uuid())")),
    (checks.UNSOUND, "a timer is left", _slot("insert into {s}.timer values (now() - interval '1 s', %(id)s)")),
    (
        checks.UNSOUND,
        "stands in the queue",
        _slot("insert into {s}.ready values ('bench', 'default', 0, now(), %(id)s)"),
    ),
    (checks.UNSOUND, "no body of the step returned it", _slot(STEP % """output = '"another"'""")),
    (
        checks.DUPLICATED,
        "ran again after its result was recorded",
        _ledger(
            "insert into body select workflow_id, number, 'again', now() + interval '1 h', 1 from body "
            "where workflow_id = %(id)s and number = 0"
        ),
    ),
    (
        checks.LOST,
        "no run of it is recorded",
        _ledger("insert into body values (%(id)s, 77, 'unheard', now(), 1)"),
    ),
]


def test_a_sound_run_passes_and_every_planted_violation_is_found(ground: Ground) -> None:
    sound = certify(ground.config, ground.ledger_dsn, EXPECTED)
    assert [str(one) for one in sound.violations] == []
    assert (sound.acknowledged, sound.finished, sound.steps, sound.messages, sound.bodies_noted) == (4, 4, 6, 6, 6)
    for kind, words, plant in PLANTED:
        plant(ground)
        found = certify(ground.config, ground.ledger_dsn, EXPECTED, settle_seconds=0)
        assert any(one.kind == kind and words in one.what for one in found.violations), (words, found.violations)
        assert found.count(kind) >= 1
        ground.restore()
    assert certify(ground.config, ground.ledger_dsn, EXPECTED, settle_seconds=0).holds


def test_what_retention_removed_is_not_lost(ground: Ground) -> None:
    _remove(ground)
    ground.in_ledger("delete from body where workflow_id = %(id)s", id=CHAIN)
    ground.in_ledger("update acknowledged set at = now() - interval '1 h'")
    row = ground.ledger.execute("select now() - interval '30 min', now() - interval '2 h'").fetchone()
    assert row is not None
    retired = certify(ground.config, ground.ledger_dsn, Expected(EXPECTED.steps_of, True, row[0]), settle_seconds=0)
    assert (retired.holds, retired.retired) == (True, 1)
    kept = certify(ground.config, ground.ledger_dsn, Expected(EXPECTED.steps_of, True, row[1]), settle_seconds=0)
    assert kept.count(checks.LOST) == 1


def test_what_has_not_ended_is_not_lost_before_the_drain(ground: Ground) -> None:
    ground.on(CHAIN, WORKFLOW % "status = 1, output = null, completed_at = null")
    early = Expected(EXPECTED.steps_of, drained=False)
    found = certify(ground.config, ground.ledger_dsn, early, settle_seconds=0)
    assert (found.holds, found.unfinished) == (True, 1)
