"""How the fleet fares: every shard has its line, whatever state it is in, and the counts are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import psycopg
import pytest

from sharded_wf.cluster import fleet
from sharded_wf.cluster.fleet import Count, FleetStatus, Stranded, fleet_status
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.cluster.migration import migrate_fleet
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterMismatch, ShardUnavailable
from sharded_wf.postgres import migrate
from sharded_wf.postgres.queries import Migration, load_migrations

NOWHERE = "host=127.0.0.1 port=1"
READY = "insert into {slot}.ready select '{capability}', '{queue}', 0, now(), 'w' || i from generate_series(1, {n}) i"
WORKFLOWS = (
    "insert into {slot}.workflow (created_at, status, priority, id, name, capability, queue, claim_id) "
    "select now(), {status}, 0, '{status}-' || i, 'shop/x', 'shop', 'default', {claim} from generate_series(1, {n}) i"
)
LEASE = (
    "insert into wf_control.lease (id, executor, capabilities, queues, version, started_at, beat_at) "
    "select gen_random_uuid(), '{name}', '{capabilities}', {queues}, '1', now() - interval '1 hour', "
    "now() - interval '{age}'"
)
CLAIM = "00000000-0000-7000-8000-00000000000{n}"


@pytest.fixture
def config(databases: Callable[[int], list[str]]) -> ClusterConfig:
    made = ClusterConfig("shop", tuple(ShardConfig(f"pg{number}", dsn) for number, dsn in enumerate(databases(2), 1)))
    init_cluster(made, slots=4)
    return made


def execute(shard: ShardConfig, *statements: str) -> None:
    with psycopg.connect(shard.dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def ready(slot: str, capability: str, queue: str, n: int) -> str:
    return READY.format(slot=slot, capability=capability, queue=queue, n=n)


def workflows(slot: str, status: int, n: int, claim: str = "null") -> str:
    return WORKFLOWS.format(slot=slot, status=status, n=n, claim=claim)


def lease(name: str, capabilities: str, queues: str = "null", age: str = "1 second") -> str:
    return LEASE.format(name=name, capabilities=capabilities, queues=queues, age=age)


def test_an_idle_fleet(config: ClusterConfig) -> None:
    status = fleet_status(config)
    assert status.healthy
    assert (status.name, status.epoch, status.slots, status.problem) == ("shop", 1, 4, None)
    one, two = status.shards
    assert (one.slots, two.slots) == ((0, 2), (1, 3))
    assert one.reachable
    assert one.server_version
    assert (one.backlog, one.running, one.parked) == (Count(0), 0, Count(0))
    assert (one.executors, one.stranded, one.pending_migrations) == ((), (), 0)


def test_it_counts_what_there_is(config: ClusterConfig) -> None:
    claim = CLAIM.format(n=1)
    execute(
        config.shards[0],
        ready("wf_0000", "shop", "default", 30),
        ready("wf_0002", "~shop", "default", 5),
        ready("wf_0002", "shop", "vip", 7),
        workflows("wf_0000", 1, 3, f"'{claim}'"),
        workflows("wf_0000", 2, 4),
        workflows("wf_0002", 2, 2),
        workflows("wf_0002", 3, 9),
        # Two of the three that were claimed have not ended; one is held by another claim, and one never was.
        f"insert into wf_0000.claim values ('{claim}', gen_random_uuid(), now(), '{{1-1,1-2,1-3,2-1,gone}}')",
        "update wf_0000.workflow set status = 3 where id = '1-3'",
        f"update wf_0000.workflow set claim_id = '{CLAIM.format(n=2)}' where id = '1-2'",
    )
    one, two = fleet_status(config).shards
    assert one.backlog == Count(42)
    assert one.running == 1
    assert one.parked == Count(6)
    assert two.backlog == Count(0)


def test_beyond_its_bounds_it_says_so(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "STATUS_COUNT_MAX_ROWS", 10)
    monkeypatch.setattr(fleet, "STATUS_EXACT_MAX_ROWS", 10)
    execute(
        config.shards[0],
        ready("wf_0000", "shop", "default", 30),
        workflows("wf_0000", 2, 100),
        workflows("wf_0000", 3, 300),
    )
    assert fleet_status(config).shards[0].parked == Count(0, exact=False)
    execute(config.shards[0], "analyze wf_0000.workflow")
    one = fleet_status(config).shards[0]
    assert one.backlog == Count(10, exact=False)
    assert one.parked == Count(100, exact=False)


def test_work_that_nobody_can_run_is_named(config: ClusterConfig) -> None:
    execute(
        config.shards[0],
        ready("wf_0000", "shop", "default", 3),
        ready("wf_0002", "shop", "default", 4),
        ready("wf_0000", "shop", "vip", 5),
        ready("wf_0000", "bank", "default", 6),
        ready("wf_0000", "bank", "slow", 7),
        ready("wf_0000", "!gone", "default", 8),
        lease("a:1", "{shop,other}", "'{default}'"),
        lease("b:1", "{bank}"),
        lease("c:1", "{gone}", age="1 hour"),
    )
    one = fleet_status(config).shards[0]
    assert one.stranded == (Stranded("gone", "default", Count(8)), Stranded("shop", "vip", Count(5)))
    assert [(executor.executor, executor.live) for executor in one.executors] == [
        ("a:1", True),
        ("b:1", True),
        ("c:1", False),
    ]
    assert one.executors[0].queues == ("default",)
    assert 3590 < one.executors[2].beat_age_seconds < 3700


def test_each_shard_has_its_line_whatever_its_state(
    config: ClusterConfig, databases: Callable[[int], list[str]]
) -> None:
    empty, other = databases(2)
    init_cluster(ClusterConfig("bank", (ShardConfig("pg5", other),)), slots=1)
    shards = (*config.shards, ShardConfig("pg3", NOWHERE), ShardConfig("pg4", empty), ShardConfig("pg5", other))
    status = fleet_status(ClusterConfig("shop", shards))
    assert not status.healthy
    problems = {shard.name: (shard.reachable, shard.problem or "") for shard in status.shards}
    assert problems["pg1"] == problems["pg2"] == (True, "")
    assert not problems["pg3"][0]
    assert "Connection refused" in problems["pg3"][1]
    assert problems["pg4"] == (True, "not part of the cluster yet: run sharded-wf shards init")
    assert "belongs to the cluster 'bank'" in problems["pg5"][1]
    wrong = fleet_status(ClusterConfig("shop", (config.shards[0], ShardConfig("pg2", empty)))).shards[1]
    assert wrong.problem is not None
    assert wrong.problem.startswith("empty, and should hold slots: the wrong database (correct the DSN)")
    assert wrong.affected


def test_no_cluster_at_all(databases: Callable[[int], list[str]]) -> None:
    status: FleetStatus = fleet_status(ClusterConfig.from_dsn(databases(1)[0]))
    assert not status.healthy
    assert "shards init" in (status.problem or "")
    away = fleet_status(ClusterConfig.from_dsn(NOWHERE))
    assert not away.healthy
    assert not away.shards[0].reachable


def test_a_slot_that_is_not_live_is_not_counted(config: ClusterConfig) -> None:
    execute(config.shards[0], ready("wf_0000", "shop", "default", 3), "update wf_0000.fence set live = false")
    one = fleet_status(config).shards[0]
    assert (one.slots, one.backlog) == ((2,), Count(0))


def test_migrations_go_on_where_shards_are_away(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    released = load_migrations("slot")
    added = Migration(len(released) + 1, "pre", "add_colour", "alter table {slot}.workflow add column colour text")

    def load(kind: Literal["control", "slot"]) -> tuple[Migration, ...]:
        return (*released, added) if kind == "slot" else load_migrations(kind)

    monkeypatch.setattr(migrate, "load_migrations", load)
    assert [shard.pending_migrations for shard in fleet_status(config).shards] == [2, 2]
    foreign = migrate_fleet(ClusterConfig("bank", config.shards))
    assert all(isinstance(error, ClusterMismatch) for error in foreign.failed.values())
    answers = migrate_fleet(ClusterConfig("shop", (*config.shards, ShardConfig("pg3", NOWHERE))))
    assert {name: [step.schema for step in steps] for name, steps in answers.given.items()} == {
        "pg1": ["wf_0000", "wf_0002"],
        "pg2": ["wf_0001", "wf_0003"],
    }
    assert isinstance(answers.failed["pg3"], ShardUnavailable)
    assert [shard.pending_migrations for shard in fleet_status(config).shards] == [0, 0]
