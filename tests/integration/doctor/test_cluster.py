"""What is wrong with a cluster: its slots, its tables, its executors, its work. Each condition is made for real, and
what the finding says is done in a shell."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.dev import EmbeddedServer
from sharded_wf.doctor import leases, vacuum, work
from sharded_wf.doctor.examine import examine
from sharded_wf.doctor.finding import Severity
from sharded_wf.executor import Executor
from sharded_wf.postgres.queries import load
from tests.integration.engine.test_query_plans import FILL, ROWS, SLOT
from tests.integration.reshard.test_interrupted import COORDINATOR
from tests.support.cluster import TestCluster
from tests.support.doctor import findings, gone, is_mended, mend, run, the_finding
from tests.support.flows import app, echo, gated_chain
from tests.support.processes import WorkerProcess, wait_until


def config_of(cluster: TestCluster) -> ClusterConfig:
    """Read from a file, so that commands can name it."""
    return ClusterConfig.from_file(cluster.config_file())


def do(cluster: TestCluster, *statements: str, shard: int = 1) -> None:
    with psycopg.connect(cluster.direct[shard - 1], autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


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


# --- vacuum and plans


def test_dead_rows_and_bloat(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacuum, "DOCTOR_BLOAT_BYTES", 8 * 1024 * 1024)
    fill = "insert into wf_0001.ready select 'engine', 'default', 0, now(), repeat('x', 60) || n from generate_series"
    do(cluster, f"{fill}(1, 60000) n", "delete from wf_0001.ready")
    finding = the_finding(cluster.config, "dead-rows")
    assert "wf_0001.ready (60,000 beside 0 live)" in finding.what
    assert finding.mend[-1].startswith("sharded-wf worker MODULE:APP")  # nobody vacuums
    run(finding.mend[0])
    gone(cluster.config, "dead-rows")
    assert "wf_0001.ready (" in is_mended(cluster.config, "bloat").what


def test_dead_rows_that_are_held(cluster: TestCluster) -> None:
    with psycopg.connect(cluster.direct[0]) as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select 1")
        do(cluster, "insert into wf_0001.timer select now(), 'x' || n from generate_series(1, 30000) n")
        do(cluster, "delete from wf_0001.timer", "vacuum wf_0001.timer")
        the_finding(cluster.config, "dead-rows")


def test_plans(cluster: TestCluster) -> None:
    do(cluster, FILL.replace(SLOT, "wf_0002").replace(str(ROWS), "20000"))
    wait_until(lambda: rows_known(cluster) >= 20_000, "statistics")
    assert not findings(cluster.config, "seq-scan")
    do(cluster, "analyze")
    assert not findings(cluster.config, "seq-scan")
    do(cluster, "alter table wf_0002.workflow drop constraint workflow_pkey")
    refused, scan = sorted(findings(cluster.config, "seq-scan"), key=lambda one: one.what)
    assert "all of wf_0002.workflow (20,000 rows): adopt, cancel_unclaimed" in scan.what
    assert "Postgres refuses start_delayed, start_inline" in refused.what
    for finding in (refused, scan):
        assert finding.severity is Severity.CRITICAL
        run(finding.mend[0])
    assert (
        "the index workflow_pkey of workflow is missing in wf_0002" in is_mended(cluster.config, "missing-index").what
    )
    gone(cluster.config, "seq-scan")
    do(cluster, "drop index wf_0003.workflow_created")
    is_mended(cluster.config, "missing-index")


def rows_known(cluster: TestCluster) -> int:
    query = load("doctor")["estimate_workflows"]
    with psycopg.connect(cluster.direct[0], cursor_factory=psycopg.RawCursor) as conn:
        return max(int(row[1]) for row in conn.execute(query.on(), (["wf_0002"],)).fetchall())


def test_an_index_that_was_never_finished(cluster: TestCluster) -> None:
    with psycopg.connect(cluster.direct[0]) as holder:
        holder.execute("lock table wf_0000.timer in row exclusive mode")
        with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
            conn.execute("set statement_timeout = '0.3s'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                conn.execute("create index concurrently late on wf_0000.timer (workflow_id)")
    assert "wf_0000.late" in is_mended(cluster.config, "invalid-index").what


# --- slots, shards, moves


def test_copies_of_the_map(two_shards: TestCluster) -> None:
    config = config_of(two_shards)
    do(two_shards, "update wf_control.shard_map set epoch = 2 where slot = 0", shard=2)  # pg1 was away then
    finding = is_mended(config, "map-copies")
    assert (finding.shard, "old for 1 slots: 0" in finding.what) == ("pg1", True)
    do(two_shards, "update wf_control.shard_map set shard = 'pg2' where slot = 2")  # as from a backup
    found = findings(config, "map-copies")
    assert [one.severity for one in found] == [Severity.CRITICAL]
    assert "slot 2 lies on pg2, elsewhere on pg1" in found[0].what or "slot 2 lies on pg1" in found[0].what


def test_slots_that_are_not_where_they_should_be(two_shards: TestCluster) -> None:
    config = config_of(two_shards)
    assert not findings(config, "slot-homes")
    do(two_shards, "alter schema wf_0000 rename to lost")
    finding = the_finding(config, "slot-homes")
    assert (finding.shard, "1 slots are not there" in finding.what) == ("pg1", True)
    do(two_shards, "alter schema lost rename to wf_0000")
    gone(config, "slot-homes")
    # A backup of before a move.
    do(two_shards, "create schema wf_0000", "create table wf_0000.fence as select 0 as slot, 'pg2'::text as shard, "
       "1::bigint as epoch, true as live", shard=2)  # fmt: skip
    found = findings(config, "slot-homes")
    assert [one.what for one in found] == ["slot 0 is live on pg1 and pg2"]
    assert found[0].severity is Severity.CRITICAL
    do(two_shards, "alter schema wf_0000 rename to gone", shard=1)
    assert "slot 0 lives here, and the newest map says on pg1" in [one.what for one in findings(config, "slot-homes")]


def test_a_file_that_does_not_name_every_shard(two_shards: TestCluster) -> None:
    config = dataclasses.replace(two_shards.config, shards=two_shards.config.shards[:1], source="shards.toml")
    finding = the_finding(config, "missing-shard")
    assert "the map names the shard 'pg2', and shards.toml does not" in finding.what
    assert not findings(two_shards.config, "missing-shard")


@pytest.mark.parametrize("state", ["draining", "retired"])
def test_a_move_that_hangs(two_shards: TestCluster, state: str) -> None:
    config = config_of(two_shards)
    path = str(two_shards.config_file())
    with WorkerProcess(COORDINATOR, path, state, "run") as coordinator:
        coordinator.wait_line(f"at {state}")
        assert not findings(config, "unfinished-move")  # somebody drives it
        coordinator.kill()
    finding = the_finding(config, "unfinished-move")
    assert finding.severity is (Severity.CRITICAL if state == "retired" else Severity.WARNING)
    assert not findings(config, "slot-homes")
    assert not findings(config, "move-leftovers")
    mend(finding)
    assert not findings(config, "unfinished-move")
    assert load_map(config).shard_map.shard_of_slot(0) == "pg2"


def test_leftovers_of_moves(cluster: TestCluster) -> None:
    do(
        cluster,
        "create schema wf_0000_changes_9",
        "select wf_control.capture_changes('wf_0000', 'wf_0000_changes_9', 'timer', 'due_at, workflow_id')",
        "create schema wf_0001_retired_3",
        "insert into wf_0000.timer values (now(), 'x')",
    )
    found = findings(cluster.config, "move-leftovers")
    assert len(found) == 2
    for one in reversed(found):  # the triggers first: they write into the schema
        mend(one)
        do(cluster, "delete from wf_0000.timer")
    assert not findings(cluster.config, "move-leftovers")
    do(cluster, "insert into wf_0000.timer values (now(), 'x')")


# --- versions


def test_tables_of_another_version(cluster: TestCluster) -> None:
    config = config_of(cluster)
    do(
        cluster,
        "drop table wf_control.move, wf_control.departure",
        "drop function wf_control.capture_changes",
        "delete from wf_control.migration where schema_name = 'wf_control' and version = 4",
    )
    finding = is_mended(config, "migrations")
    assert (finding.severity, "0004_pre_moves" in finding.what) == (Severity.CRITICAL, True)
    do(cluster, "insert into wf_control.migration values ('wf_control', 99, 'post_future')")
    finding = the_finding(config, "migrations")
    assert "newer than this version can use" in finding.what


def test_versions_of_executors(cluster: TestCluster) -> None:
    async def go() -> None:
        old, new, newer = (Executor(app, cluster.config) for _ in range(3))
        old.version = "0.0.9"
        async with old, new, newer:
            finding = await asyncio.to_thread(the_finding, cluster.config, "executor-versions")
            assert "executors run 2 versions" in finding.what
        async with old:
            finding = await asyncio.to_thread(the_finding, cluster.config, "executor-versions")
            assert finding.severity is Severity.NOTE

    asyncio.run(go())


# --- clocks


class OffClock:
    """A clock that is off."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now_us(self) -> int:
        return time.time_ns() // 1000 + int(self._seconds * 1e6)

    def monotonic(self) -> float:
        return time.monotonic()


def test_clocks_of_servers(two_shards: TestCluster, cluster: TestCluster) -> None:
    assert not findings(cluster.config, "clock-skew")
    finding = the_finding(cluster.config, "clock-skew", clock=OffClock(5))
    assert (finding.shard, "behind ours" in finding.what, finding.severity) == ("pg1", True, Severity.WARNING)
    finding = the_finding(two_shards.config, "clock-skew", clock=OffClock(-40))
    assert (finding.shard, finding.severity) == (None, Severity.CRITICAL)
    assert "this machine's clock is 40 s behind that of most shards" in finding.what
    # A server whose clock is off: this shard's database has its own idea of the time.
    do(two_shards, "create schema off", "create function off.clock_timestamp() returns timestamptz language sql as "
       "'select pg_catalog.clock_timestamp() + interval ''1 min'''", shard=2)  # fmt: skip
    name = psycopg.conninfo.conninfo_to_dict(two_shards.direct[1])["dbname"]
    do(two_shards, f"alter database {name} set search_path = off, pg_catalog, public", shard=2)
    finding = the_finding(two_shards.config, "clock-skew")
    assert (finding.shard, finding.severity, "ahead of ours" in finding.what) == ("pg2", Severity.CRITICAL, True)


@pytest.mark.parametrize("seconds", [8, -8])
def test_clocks_of_executors(cluster: TestCluster, seconds: int) -> None:
    async def go() -> None:
        async with Executor(app, cluster.config, clock=OffClock(seconds)):
            finding = await asyncio.to_thread(the_finding, cluster.config, "executor-clock")
            assert ("ahead of" if seconds > 0 else "behind") in finding.what
            assert not await asyncio.to_thread(findings, cluster.config, "stuck-lease")

    asyncio.run(go())


# --- leases and work


def test_an_executor_that_died_where_no_other_is(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DOCTOR_OVERDUE_SECONDS", 0.5)
    config = config_of(cluster)

    async def start() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(gated_chain.bind(0, 1), id="held")

    with cluster.closed_gate():
        asyncio.run(start())
        with cluster.worker() as worker:
            wait_until(lambda: cluster.bodies() != [], "the step")
            worker.kill()
        finding = the_finding(config, "stuck-lease")
        assert "No other executor is here to take over" in finding.why
        assert findings(config, "orphaned-claims") == []
        do(cluster, "delete from wf_control.lease")  # as a takeover does, which then dies
        finding = the_finding(config, "orphaned-claims")
        assert finding.what.startswith("1 workflows are claimed by executors that are gone")
    with cluster.worker():  # what the finding says
        gone(config, "orphaned-claims")
        gone(config, "stuck-lease")


def test_a_lease_that_can_not_be_taken_away(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.1)
    with psycopg.connect(cluster.direct[0]) as holder:

        async def go() -> None:
            with cluster.worker() as worker:
                wait_until(lambda: len(cluster.leases()) == 1, "the lease")
                (id_,) = cluster.leases()
                holder.execute("select from wf_control.lease where id::text = %s for key share", (id_,))
                worker.kill()
            monkeypatch.setattr("sharded_wf.maintenance.leases.end_lease", never)
            async with app.executor(cluster.config):
                finding = await asyncio.to_thread(the_finding, cluster.config, "stuck-lease")
                assert (finding.severity, "should have taken over" in finding.why) == (Severity.CRITICAL, True)
                await asyncio.to_thread(run, finding.mend[0])

        asyncio.run(go())


async def never(*_: object) -> bool:
    return False


def test_work_that_nobody_runs(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "DOCTOR_OVERDUE_SECONDS", 0.3)
    config = config_of(cluster)

    async def start() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(echo.bind("x"), id="ready", queue="vip")
            await client.start(echo.bind("x"), id="late", delay=0.05)
            await client.start(echo.bind("x"), id="parked", delay=3600)

    asyncio.run(start())
    finding = the_finding(config, "queue-without-executor")
    assert finding.what == "1 ready in queue 'vip', and no live executor here runs 'engine'"
    assert finding.mend[0].startswith("sharded-wf worker MODULE:APP --queue vip -c ")
    assert finding.mend[0].endswith("# the app named 'engine'")
    finding = the_finding(config, "unrunnable")
    assert "2 parked workflows of 'engine' in queue 'default'" in finding.what
    assert "1 timers are overdue" in the_finding(config, "overdue-timers").what

    async def serve() -> None:
        async with app.executor(cluster.config):
            for check in ("queue-without-executor", "unrunnable", "overdue-timers"):
                await asyncio.to_thread(gone, config, check)
        async with app.executor(cluster.config, queues=["other"]):
            assert await asyncio.to_thread(findings, config, "unrunnable")

    asyncio.run(serve())


def test_large_histories_are_sampled(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "DOCTOR_OPEN_MAX_ROWS", 1_000)
    do(
        cluster,
        "insert into wf_0002.workflow (created_at, status, priority, id, name, capability, queue) select now(), 2, 0, "
        "'w' || n, 'engine/echo', 'engine', 'default' from generate_series(1, 20000) n",
    )
    wait_until(lambda: rows_known(cluster) >= 20_000, "statistics")
    report = examine(cluster.config)
    assert [one.check for one in report.unseen] == ["unrunnable"]
    assert "95% of 20,000 workflows" in report.unseen[0].why
    (finding,) = report.of(["unrunnable"])
    assert finding.what.startswith("at least ")


def test_poison(cluster: TestCluster) -> None:
    """As a takeover leaves them behind."""
    do(
        cluster,
        "insert into wf_0000.ready values ('!engine', 'default', 0, now() - interval '5 min', 'suspicious')",
        "insert into wf_0001.failed values (now() - interval '3 d', 'old', 6), (now() - interval '30 d', 'ancient', 6)",
    )
    assert "suspicious; the oldest has waited 5 min" in the_finding(cluster.config, "suspects").what
    finding = the_finding(cluster.config, "quarantined")
    assert (finding.severity, "1 workflows were quarantined" in finding.what) == (Severity.NOTE, True)
    do(cluster, "insert into wf_0001.failed values (now(), 'young', 6), (now(), 'just failed', 4)")
    finding = the_finding(cluster.config, "quarantined")
    assert (finding.severity, "young, old" in finding.what) == (Severity.WARNING, True)


def test_messages_and_requests(cluster: TestCluster) -> None:
    do(
        cluster,
        "insert into wf_0000.outbox values ('far', 'mail', 's', 1, now() - interval '2 min', '1')",
        "insert into wf_0000.outbox values ('far', 'mail', 's', 2, now(), '1')",
        "insert into wf_control.request_refused (id, body, error) values (1, '{}', 'no such thing')",
    )
    assert (
        "1 messages to other slots wait, the oldest for 2 min, to far"
        in the_finding(cluster.config, "stuck-outbox").what
    )
    finding = the_finding(cluster.config, "refused-requests")
    assert finding.what.endswith("the last: no such thing")
    assert "no such thing" in run(finding.mend[0])


# --- the examination itself


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
