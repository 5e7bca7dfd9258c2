"""Executors and their clocks, and the work that waits for them. Each condition is made for real."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from sharded_wf.doctor import leases, work
from sharded_wf.doctor.examine import examine
from sharded_wf.doctor.finding import Severity
from sharded_wf.executor import Executor
from tests.support.cluster import TestCluster
from tests.support.doctor import config_of, do, findings, gone, rows_known, run, the_finding
from tests.support.flows import app, echo, gated_chain
from tests.support.processes import wait_until


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
    name = conninfo_to_dict(two_shards.direct[1])["dbname"]
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


@pytest.mark.sampled
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


@pytest.mark.sampled
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
