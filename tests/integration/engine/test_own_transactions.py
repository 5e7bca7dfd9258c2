"""``start_in`` and ``send_in``: part of the caller's own transaction, on the workflow's shard, on another, and in a
database that is none; and a start with its first message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from sharded_wf import IdConflict, Status, TransactionRefused, WorkflowNotFound, attr, connect_blocking
from sharded_wf.cluster.outbox import init_outbox
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ConfigError
from tests.conftest import SEED
from tests.support.bank import app, inbox, mover
from tests.support.cluster import TestCluster
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

APP = "tests.support.bank:app"
CARRY = r"insert into wf_\d+\.(workflow|message)"
CLEAR = r"delete from wf_outbox\.request"


@pytest.fixture
def orders(two_shards: TestCluster, databases: Callable[[int], list[str]]) -> tuple[TestCluster, str]:
    """Two shards, and a database with an outbox that is none of them."""
    dsn = databases(1)[0]
    assert init_outbox(two_shards.config, dsn)
    assert not init_outbox(two_shards.config, dsn)
    return with_outbox(two_shards, dsn), dsn


def with_outbox(cluster: TestCluster, dsn: str) -> TestCluster:
    return replace(cluster, config=replace(cluster.config, outboxes=(ShardConfig("orders", dsn),)))


def count(dsn: str, table: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(f"select count(*) from {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


async def ask_for(client: Any, conn: psycopg.AsyncConnection[Any], ids: list[str]) -> None:
    """In one transaction: start inboxes, and send each three messages."""
    for id_ in ids:
        await client.start_in(conn, inbox.bind(3), id=id_)
    for number in range(3):
        for id_ in ids:
            await client.send_in(conn, id_, "mail", f"{id_}#{number}")


def test_nothing_before_commit_and_nothing_after_rollback(orders: tuple[TestCluster, str]) -> None:
    cluster, own = orders
    here, elsewhere = cluster.ids_on(1, 2, "here"), cluster.ids_on(2, 2, "there")

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            for dsn in (cluster.direct[0], own):
                async with await psycopg.AsyncConnection.connect(dsn) as conn:
                    await ask_for(client, conn, [*here, *elsewhere])
                    assert [await client.describe(id_) for id_ in here] == [None, None]
                    # An open transaction holds nobody up.
                    assert await (await client.start(mover_free.bind(1), id=f"free-{dsn[-6:]}")).result(20) == [0]
                    await conn.rollback()
            async with await psycopg.AsyncConnection.connect(cluster.direct[0]) as conn:
                await ask_for(client, conn, [here[0], elsewhere[0]])
            async with await psycopg.AsyncConnection.connect(own) as conn:
                await ask_for(client, conn, [here[1], elsewhere[1]])
            for id_ in (*here, *elsewhere):
                wanted = [f"{id_}#{number}" for number in range(3)]
                await asyncio.to_thread(wait_until, lambda id_=id_: id_ in cluster.statuses(), "the start")  # type: ignore[misc]
                assert await client.get_handle(id_, list[str]).result(20) == wanted
            await asyncio.to_thread(cluster.certify)

    asyncio.run(go())
    assert set(cluster.statuses()) == {
        *here,
        *elsewhere,
        *(id_ for id_ in cluster.statuses() if id_.startswith("free")),
    }
    wait_until(lambda: count(own, "wf_outbox.request") == 0, "an empty outbox")
    assert count(own, "wf_outbox.request_refused") == 0


@app.workflow
async def mover_free(number: int) -> list[int]:
    return list(range(number))


def test_attributes_come_with_the_start(orders: tuple[TestCluster, str]) -> None:
    cluster, own = orders
    here, there = cluster.ids_on(1, 1)[0], cluster.ids_on(2, 1)[0]

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            for dsn, id_ in ((cluster.direct[0], here), (own, there)):
                async with await psycopg.AsyncConnection.connect(dsn) as conn:
                    await client.start_in(conn, inbox.bind(0), id=id_, attributes={"amount": 4, "which": id_})
            both = {here, there}
            await asyncio.to_thread(wait_until, lambda: both <= set(cluster.statuses()), "the starts")
            for id_ in both:
                assert await client.attributes(id_) == {"amount": 4, "which": id_}
            assert {one.id for one in await client.list(where=attr("amount") == 4)} == {here, there}

    asyncio.run(go())


def test_the_blocking_client(orders: tuple[TestCluster, str]) -> None:
    cluster, own = orders
    here, there = cluster.ids_on(1, 1)[0], cluster.ids_on(2, 1)[0]
    with cluster.worker(app=APP), connect_blocking(cluster.config) as client:
        for dsn, id_ in ((cluster.direct[0], here), (own, there)):
            with psycopg.connect(dsn) as conn:
                handle = client.start_in(conn, inbox.bind(1), id=id_)
                assert handle.created is (True if id_ == here else None)
                client.send_in(conn, id_, "mail", "x")
            wait_until(lambda id_=id_: client.describe(id_) is not None, "the start")  # type: ignore[misc]
            assert client.get_handle(id_, list[str]).result(20) == ["x"]


def test_what_is_refused(orders: tuple[TestCluster, str], databases: Callable[[int], list[str]]) -> None:
    cluster, own = orders
    here, there = cluster.ids_on(1, 2), cluster.ids_on(2, 1)[0]

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            async with await psycopg.AsyncConnection.connect(cluster.direct[0], autocommit=True) as conn:
                with pytest.raises(TransactionRefused, match="autocommit"):
                    await client.start_in(conn, inbox.bind(1))
                async with conn.transaction():
                    first = await client.start_in(conn, inbox.bind(1), id=here[0])
                    again = await client.start_in(conn, inbox.bind(1), id=here[0])
                    assert (first.created, again.created) == (True, False)
                    with pytest.raises(IdConflict):
                        await client.start_in(conn, inbox.bind(2), id=here[0])
                    with pytest.raises(WorkflowNotFound):
                        await client.send_in(conn, here[1], "mail", "x")
            async with await psycopg.AsyncConnection.connect(databases(1)[0]) as conn:
                with pytest.raises(TransactionRefused, match="outbox init"):
                    await client.start_in(conn, inbox.bind(1))
            async with await psycopg.AsyncConnection.connect(own) as conn:
                await client.start_in(conn, inbox.bind(5), id=here[0])  # exists, with another argument
                await client.send_in(conn, there, "mail", "x")  # to nobody
            async with app.executor(cluster.config):
                await asyncio.to_thread(
                    wait_until, lambda: count(own, "wf_outbox.request_refused") == 2, "two that are refused"
                )

    asyncio.run(go())
    with psycopg.connect(own) as conn:
        errors = [row[0] for row in conn.execute("select error from wf_outbox.request_refused order by id")]
    assert errors[0].startswith("IdConflict")
    assert errors[1].startswith("WorkflowNotFound")
    assert count(own, "wf_outbox.request") == 0


def test_an_outbox_belongs_to_one_cluster_and_to_no_shard(orders: tuple[TestCluster, str]) -> None:
    cluster, own = orders
    with pytest.raises(ConfigError, match="is a shard"):
        init_outbox(cluster.config, cluster.direct[0])
    assert ClusterConfig.from_file(cluster.config_file()).outboxes == (ShardConfig("orders", own),)


@pytest.mark.sampled
@pytest.mark.parametrize("when", ["before", "after"])
def test_carried_once_though_the_executor_is_killed(orders: tuple[TestCluster, str], when: Moment, full: bool) -> None:
    """At the commit of the carried rows, and at that of their removal from the outbox."""
    if not full and when != ("before", "after")[SEED % 2]:
        pytest.skip("sampled: the other moment is tried")
    cluster, own = orders
    ids = [*cluster.ids_on(1, 2), *cluster.ids_on(2, 2, "v")]

    async def ask() -> None:
        async with app.connect(cluster.config) as client, await psycopg.AsyncConnection.connect(own) as conn:
            await ask_for(client, conn, ids)

    asyncio.run(ask())
    with Proxy(cluster.direct[0]) as shard, Proxy(own) as outbox:
        behind = with_outbox(cluster.through(shard.dsn), outbox.dsn)
        hold = shard.hold(COMMIT, when=when, within=CARRY)
        with behind.worker(app=APP) as victim:
            hold.wait()
            victim.kill()
        shard.release()
        hold = outbox.hold(r"delete from wf_outbox\.request", when=when)
        with behind.worker(app=APP) as victim:
            hold.wait()
            victim.kill()
    with cluster.worker(app=APP):
        wait_until(lambda: count(own, "wf_outbox.request") == 0, "an empty outbox")
        wait_until(lambda: set(cluster.statuses().values()) == {Status.SUCCEEDED}, "the ends", interval=0.1)
        rows = cluster.certify(ids)
    assert sorted(row["id"] for row in rows.workflow) == sorted(ids)
    for row in rows.workflow:
        assert row["output"] == [f"{row['id']}#{number}" for number in range(3)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_start_with_its_message_is_one_commit(cluster: TestCluster, when: Moment) -> None:
    async def go() -> None:
        with Proxy(cluster.direct[0]) as proxy:
            behind = cluster.through(proxy.dsn)
            async with app.connect(behind.config) as client:
                await client.start(inbox.bind(1), id="warm")
                cut = proxy.cut(COMMIT, when=when, within=r"insert into wf_\d+\.message")
                first = await client.start(inbox.bind(3), id="w", message=("mail", "one"), idempotency_key="1")
                assert cut.count == 1
                assert first.created
                again = await client.start(inbox.bind(99), id="w", message=("mail", "one"), idempotency_key="1")
                assert not again.created
                await client.start(inbox.bind(99), id="w", message=("mail", "two"))
                with pytest.raises(IdConflict):
                    await client.start(mover.bind(1, 1), id="w", message=("mail", "to another"))
                async with app.executor(behind.config, park_after=0.1):
                    await asyncio.sleep(0)
                    await client.send("w", "mail", "two and a half", idempotency_key="w")
                    assert await first.result(20) == ["one", "two", "two and a half"]
                    # Once more, long after it was received.
                    await client.start(inbox.bind(3), id="w", message=("mail", "one"), idempotency_key="1")
                    await client.send("warm", "mail", "x")
                    await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())
