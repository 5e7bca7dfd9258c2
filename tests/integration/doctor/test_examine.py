"""The examination as a whole: a cluster that is well, shards that are away, roles that may not see all."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.dev import EmbeddedServer
from sharded_wf.doctor.examine import examine
from sharded_wf.doctor.finding import Severity
from tests.support.cluster import TestCluster
from tests.support.doctor import do, findings, the_finding
from tests.support.flows import app, echo


def test_nothing_is_wrong_with_a_cluster_that_works(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            handles = await client.start_many((f"w-{n}", echo.bind("x")) for n in range(50))
            await asyncio.gather(*(handle.result(30) for handle in handles))
            report = await asyncio.to_thread(examine, two_shards.config)
            assert {one.check for one in report.findings} == {"no-standby"}
            assert report.unseen == ()
            assert report.examined == ("pg1", "pg2")

    asyncio.run(go())


def test_a_shard_that_is_away(cluster_and_far: tuple[TestCluster, EmbeddedServer]) -> None:
    cluster, server = cluster_and_far
    server.stop()
    report = examine(cluster.config)
    (finding,) = report.of(["unreachable"])
    assert (finding.shard, finding.severity, report.examined) == ("pg2", Severity.CRITICAL, ("pg1",))
    assert "its 3 slots" in finding.why
    assert {one.shard for one in report.findings if one.check == "no-standby"} == {"pg1"}
    assert not report.of(["slot-homes"])
    server.start()
    assert not findings(cluster.config, "unreachable")
    server.pause()
    try:
        assert [one.shard for one in findings(cluster.config, "unreachable")] == ["pg2"]
    finally:
        server.resume()


def test_a_wrong_database(two_shards: TestCluster, databases: Callable[[int], list[str]]) -> None:
    first, second = two_shards.config.shards
    swapped = (ShardConfig("pg1", second.dsn), ShardConfig("pg2", first.dsn))
    found = findings(dataclasses.replace(two_shards.config, shards=swapped), "wrong-database")
    assert [one.shard for one in found] == ["pg1", "pg2"]
    assert "in truth the shard 'pg2'" in found[0].what
    empty = dataclasses.replace(two_shards.config, shards=(first, ShardConfig("pg2", databases(1)[0])))
    finding = the_finding(empty, "wrong-database")
    assert "is not part of the cluster" in finding.what


def test_only_one_shard(two_shards: TestCluster) -> None:
    report = examine(two_shards.config, ["pg2"])
    assert (report.examined, {one.shard for one in report.findings}) == (("pg2",), {"pg2"})


def test_a_role_that_may_not_see_all(cluster: TestCluster) -> None:
    do(cluster, "drop role if exists watcher", "create role watcher login")
    dsn = cluster.direct[0].replace("//wf@", "//watcher@")
    config = dataclasses.replace(cluster.config, shards=(ShardConfig("pg1", dsn),))
    (unseen,) = examine(config).unseen
    assert unseen.check == "everything"
    assert 'grant pg_monitor, pg_read_all_data to "watcher"' in (unseen.mend or "")
    do(cluster, "grant pg_read_all_data to watcher")
    with psycopg.connect(cluster.direct[0]):
        report = examine(config)
    found = {one.check: one for one in report.unseen}
    assert "sessions of other roles" in found["long-transaction"].why
    assert not report.of(["unreachable"]), report.findings
    assert 'grant pg_monitor to "watcher"' in (found["long-transaction"].mend or "")


def test_what_is_locked_is_said_to_be_unseen(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharded_wf.doctor.look.DOCTOR_LOCK_TIMEOUT_SECONDS", 0.1)
    with psycopg.connect(cluster.direct[0]) as conn:
        conn.execute("lock table wf_0003.failed in access exclusive mode")
        report = examine(cluster.config)
    assert any(one.check == "quarantined" and "too long" in one.why for one in report.unseen)
    assert not report.of(["unreachable"])


def test_an_examination_changes_nothing(
    own: Callable[..., tuple[ClusterConfig, EmbeddedServer]], tmp_path: Path
) -> None:
    config, _ = own(autovacuum="off")
    with psycopg.connect(config.shards[0].dsn, autocommit=True) as conn:
        before = conn.execute("select pg_snapshot_xmax(pg_current_snapshot()), pg_current_wal_insert_lsn()").fetchone()
        examine(config)
        after = conn.execute("select pg_snapshot_xmax(pg_current_snapshot()), pg_current_wal_insert_lsn()").fetchone()
    assert before is not None
    assert after is not None
    assert before[0] == after[0]
