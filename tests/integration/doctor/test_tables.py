"""Tables: vacuum, plans, indexes, migrations, versions. Each condition is made for real."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from sharded_wf.doctor import vacuum
from sharded_wf.doctor.finding import Severity
from sharded_wf.executor import Executor
from tests.integration.engine.test_query_plans import FILL, ROWS, SLOT
from tests.support.cluster import TestCluster
from tests.support.doctor import config_of, do, findings, gone, is_mended, rows_known, run, the_finding
from tests.support.flows import app
from tests.support.processes import wait_until


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
    scan, refused = sorted(findings(cluster.config, "seq-scan"), key=lambda one: one.what)
    assert "all of wf_0002.workflow (20,000 rows): adopt, cancel_unclaimed" in scan.what
    assert "Postgres refuses start_children, start_delayed, start_inline" in refused.what
    for finding in (refused, scan):
        assert finding.severity is Severity.CRITICAL
        run(finding.mend[0])
    assert (
        "the index workflow_pkey of workflow is missing in wf_0002" in is_mended(cluster.config, "missing-index").what
    )
    gone(cluster.config, "seq-scan")
    do(cluster, "drop index wf_0003.workflow_created")
    is_mended(cluster.config, "missing-index")


def test_an_index_that_was_never_finished(cluster: TestCluster) -> None:
    with psycopg.connect(cluster.direct[0]) as holder:
        holder.execute("lock table wf_0000.timer in row exclusive mode")
        with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
            conn.execute("set statement_timeout = '0.3s'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                conn.execute("create index concurrently late on wf_0000.timer (workflow_id)")
    assert "wf_0000.late" in is_mended(cluster.config, "invalid-index").what


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
