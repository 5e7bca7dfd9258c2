"""A shard's primary dies and its standby takes over: with the hosts of both in the DSN, nobody has to do anything."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sharded_wf import Handle, OldPrimary
from sharded_wf.client import Client
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.timelines import accept_primary, read_copy
from sharded_wf.dev import EmbeddedServer
from sharded_wf.doctor.examine import examine
from sharded_wf.postgres import timeline
from sharded_wf.postgres.connect import connection
from sharded_wf.postgres.queries import Query
from sharded_wf.postgres.session import ConnectionLost, Session, Statement
from sharded_wf.postgres.timeline import primary_of
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, echo
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.processes import until
from tests.support.standby import Pair, standby_of

GAP_MAX_SECONDS = 15.0
"""A few seconds, on a busy machine; whoever has to be told of the new primary waits for good."""


@pytest.fixture
def pair(server_factory: Callable[..., EmbeddedServer]) -> Iterator[Pair]:
    with standby_of(server_factory()) as made:
        yield made


@pytest.fixture
def cluster(make_cluster: Callable[..., TestCluster], databases: Callable[[int], list[str]], pair: Pair) -> TestCluster:
    """Shard pg1 on the tests' server, and pg2 on the pair; judged on the standby, which has been promoted by then."""
    (first,) = databases(1)
    pair.primary.create_database("far")
    made = make_cluster(dsns=[first, pair.dsn("far")])
    return replace(made, direct=(first, pair.standby.dsn("far")))


@pytest.fixture
def forgetful() -> Callable[[], None]:
    """Calling it makes this process know as little as one that has just begun."""
    return timeline._primaries.clear


class Load:
    """Starts workflows on pg2 one after another, each of three steps, and notes what was acknowledged, when."""

    def __init__(self, client: Client, ids: Iterator[str]) -> None:
        self._client = client
        self._ids = ids
        self.acknowledged: list[tuple[float, str]] = []
        self.finished: list[float] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as waiting:
            for id_ in self._ids:
                handle = await self._client.start(chain.bind(3), id=id_, wait_seconds=60)
                self.acknowledged.append((time.monotonic(), id_))
                waiting.create_task(self._finish(handle))

    async def _finish(self, handle: Handle[int]) -> None:
        assert await handle.result(60) == 3
        self.finished.append(time.monotonic())

    def gap_after(self, moment: float) -> float:
        """Until something was acknowledged, and something had ended, again."""
        started = min(at for at, _ in self.acknowledged if at > moment)
        return max(started, min(at for at in self.finished if at > moment)) - moment


@pytest.mark.sampled
def test_i1_what_was_acknowledged_is_there_after_a_failover(cluster: TestCluster, pair: Pair) -> None:
    pair.make_synchronous()
    stop = False
    ids = itertools.takewhile(lambda _: not stop, cluster.ids_on(2, 20_000))

    async def go() -> None:
        nonlocal stop
        async with app.connect(cluster.config) as client:
            load = Load(client, ids)
            running = asyncio.create_task(load.run())
            await until(lambda: len(load.finished) > 50, "a load")
            await asyncio.to_thread(pair.primary.kill)
            await asyncio.sleep(1.0)  # until somebody notices, and decides to promote
            await asyncio.to_thread(pair.promote)
            promoted = time.monotonic()
            await until(lambda: load.finished[-1] > promoted and load.acknowledged[-1][0] > promoted, "work again")
            some = len(load.finished)
            await until(lambda: len(load.finished) > some + 50, "a load on the new primary")
            stop = True
            async with asyncio.timeout(60):
                await running
            assert load.gap_after(promoted) < GAP_MAX_SECONDS
            await asyncio.to_thread(cluster.certify, [id_ for _, id_ in load.acknowledged])

    with cluster.worker(), cluster.worker():
        asyncio.run(go())


def ids_in(dsn: str, ids: list[str]) -> set[str]:
    """Which of these workflows a server has."""
    with psycopg.connect(dsn) as conn:
        schemas = conn.execute("select nspname from pg_namespace where nspname ~ '^wf_[0-9]{4}$'").fetchall()
        found = [
            conn.execute(
                sql.SQL("select id from {} where id = any(%s)").format(sql.Identifier(schema, "workflow")), (ids,)
            ).fetchall()
            for (schema,) in schemas
        ]
    return {id_ for rows in found for (id_,) in rows}


@pytest.mark.sampled
def test_i1_an_old_primary_that_nobody_fenced_is_left(cluster: TestCluster, pair: Pair) -> None:
    """The standby is promoted while the primary lives on. Executors and clients that are connected to it hear of that
    from the other shard, where the first process that saw the new one has written it down."""
    ids = cluster.ids_on(2, 3)
    knowing = cluster.through(cluster.direct[0], pair.dsn("far", pair.standby, pair.primary))

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            assert await (await client.start(chain.bind(2), id=ids[0])).result(20) == 2
            await asyncio.to_thread(pair.wait_replayed)
            await asyncio.to_thread(pair.promote)
            await asyncio.to_thread(load_map, knowing.config)
            known = primary_of(cluster.config.shard("pg2").dsn)
            await until(lambda: known.known is not None and known.known.number == 2, "that it hears of it")
            assert await (await client.start(chain.bind(2), id=ids[1])).result(20) == 2
            assert await (await client.start(chain.bind(2), id=ids[2])).result(20) == 2

    asyncio.run(go())
    assert ids_in(pair.standby.dsn("far"), ids) == set(ids)
    assert ids_in(pair.primary.dsn("far"), ids) == {ids[0]}


@pytest.mark.sampled
def test_i1_an_old_primary_is_refused_by_processes_that_start_later(
    cluster: TestCluster, pair: Pair, forgetful: Callable[[], None]
) -> None:
    here, there = cluster.ids_on(1, 1)[0], cluster.ids_on(2, 1)[0]
    load_map(cluster.config)
    pair.wait_replayed()
    pair.primary.kill()
    pair.promote()
    load_map(cluster.config)
    pair.primary.start()

    forgetful()  # both answer, and the old one stands first in the DSN
    assert load_map(cluster.config).unreachable == {}
    with connection(cluster.config.shard("pg2").dsn, purpose="test") as conn:
        assert conn.info.host == conninfo_to_dict(pair.standby.dsn())["host"]

    forgetful()  # the old one alone answers
    old = cluster.through(cluster.direct[0], pair.primary.dsn("far"))
    assert "old primary, on timeline 1; timeline 2 was seen" in load_map(old.config).unreachable["pg2"]

    forgetful()  # the doctor, too, asks the one that is right, and examines no old one
    assert examine(cluster.config, ["pg2"]).examined == ("pg2",)
    forgetful()
    report = examine(old.config, ["pg2"])
    assert report.examined == ()
    assert "old primary, on timeline 1" in next(iter(report.of(["unreachable"]))).what

    async def go() -> None:
        async with app.connect(old.config) as client:
            with pytest.raises(OldPrimary, match="timeline 1"):
                await client.start(echo.bind("x"), id=there, wait_seconds=1)
            await client.start(echo.bind("x"), id=here)

    asyncio.run(go())
    assert ids_in(pair.primary.dsn("far"), [there]) == set()


@pytest.mark.sampled
def test_a_person_may_say_that_an_earlier_timeline_is_right(
    cluster: TestCluster, pair: Pair, forgetful: Callable[[], None]
) -> None:
    """As after a restore of a backup from before the failover, also for processes that knew better."""
    load_map(cluster.config)
    pair.wait_replayed()
    pair.promote()
    restored = cluster.through(cluster.direct[0], pair.primary.dsn("far"))
    promoted = cluster.through(cluster.direct[0], pair.standby.dsn("far"))
    load_map(promoted.config)
    assert "pg2" in load_map(restored.config).unreachable
    accepted = accept_primary(restored.config, "pg2")
    assert accepted is not None
    assert (accepted.number, accepted.term) == (1, 2)
    assert load_map(restored.config).unreachable == {}
    forgetful()
    assert load_map(restored.config).unreachable == {}
    with connection(cluster.direct[0], purpose="test") as conn:
        assert read_copy(conn)["pg2"] == accepted


@pytest.mark.sampled
@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not on this machine: NOTHING behind a pooler is tested")
def test_a_pooler_that_goes_back_to_the_old_primary_is_noticed_in_each_transaction(pair: Pair) -> None:
    pair.primary.create_database("far")
    with psycopg.connect(pair.primary.dsn("far"), autocommit=True) as conn:
        conn.execute("create table note (line int)")
    pair.wait_replayed()
    pair.promote()
    write = Statement(Query("write", "insert into note values (1)"), "")
    read = Statement(Query("read", "select count(*) from note"), "")

    async def lost_by(session: Session, statement: Statement) -> ConnectionLost:
        while True:  # the pooler follows when it has read its file
            try:
                await session.transact([statement])
            except ConnectionLost as error:
                return error

    async def go(bouncer: PgBouncer) -> None:
        session = await Session.connect(bouncer.through(pair.standby.dsn("far")), purpose="test")
        assert session.pooled
        await session.transact([write])
        for statement in (write, read):
            await asyncio.to_thread(bouncer.lead_to, pair.primary.dsn("far"))
            lost = await lost_by(session, statement)
            assert not lost.commit_unknown
            assert session.closed
            with pytest.raises(ConnectionLost, match="old primary"):
                await Session.connect(bouncer.through(pair.standby.dsn("far")), purpose="test")
            await asyncio.to_thread(bouncer.lead_to, pair.standby.dsn("far"))
            async with asyncio.timeout(40):
                while True:
                    try:
                        session = await Session.connect(bouncer.through(pair.standby.dsn("far")), purpose="test")
                        break
                    except ConnectionLost:
                        await asyncio.sleep(0.02)
        session.close()

    with (
        tempfile.TemporaryDirectory(prefix="sharded_wf-pgbouncer-") as directory,
        PgBouncer(Path(directory), [pair.standby.dsn("far")]) as bouncer,
    ):
        asyncio.run(go(bouncer))
    with psycopg.connect(pair.primary.dsn("far")) as conn:
        assert conn.execute("select count(*) from note").fetchone() == (0,)
