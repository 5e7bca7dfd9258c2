"""Postgres restarts, pauses for longer than a lease, and loses backends, all under load: the work goes on by itself,
and nobody is taken for dead."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from sharded_wf import ShardUnavailable
from sharded_wf.client import Client
from sharded_wf.dev import EmbeddedServer
from sharded_wf.dev.supervisor import StopMode
from sharded_wf.limits import LEASE_SECONDS
from tests.support.cluster import TestCluster
from tests.support.flows import app, slow_chain
from tests.support.processes import until

STEPS = 3
LOAD_MAX = 400
"""Workflows started by the load generator in all, so that a slow machine is not drowned."""


async def keep_starting(client: Client, started: list[str], stop: asyncio.Event) -> None:
    """Start workflows, a few at a time, until told to stop; a start that fails is made again under the same ID."""
    while not stop.is_set() and len(started) < LOAD_MAX:
        ids = [f"w-{len(started) + number}" for number in range(5)]
        while True:
            try:
                await client.start_many([(id_, slow_chain.bind(STEPS, 0.02)) for id_ in ids], wait_seconds=60)
                break
            except ShardUnavailable:
                continue
        started += ids
        await asyncio.sleep(0.02)


async def under_load(cluster: TestCluster, trouble: Callable[[], Awaitable[None]]) -> None:
    """Two executors work while the trouble happens; then everything that was acknowledged must have one right outcome,
    no step may have run again, and nobody may have been taken over."""
    started: list[str] = []
    stop = asyncio.Event()
    async with (
        app.connect(cluster.config) as client,
        app.executor(cluster.config) as one,
        app.executor(cluster.config) as other,
    ):
        load = asyncio.create_task(keep_starting(client, started, stop))
        await until(lambda: len(started) >= 50, "the load")
        leases = await asyncio.to_thread(cluster.leases)
        assert len(leases) == 2
        await trouble()
        enough = min(len(started) + 20, LOAD_MAX)
        await until(lambda: len(started) >= enough, "more load, after the trouble")
        stop.set()
        await load
        async with asyncio.timeout(60):
            results = await asyncio.gather(*(client.get_handle(id_, int).result() for id_ in started))
        assert results == [STEPS] * len(started)
        assert (one.statistics()["taken_over"], other.statistics()["taken_over"]) == (0, 0)
        assert await asyncio.to_thread(cluster.leases) == leases
        await asyncio.to_thread(cluster.certify, started)
    again = [call for call, runs in Counter(body[:3] for body in cluster.bodies()).items() if runs > 1]
    assert again == []


@pytest.fixture
def own_server(server_factory: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    return server_factory(settings={"max_connections": "100"})


@pytest.mark.sampled
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_i1_i3_postgres_restarts_under_load(
    make_cluster: Callable[..., TestCluster], own_server: EmbeddedServer, mode: StopMode
) -> None:
    cluster = make_cluster(dsns=[own_server.create_database("restarts")])

    async def restart() -> None:
        await asyncio.to_thread(own_server.restart, mode)

    asyncio.run(under_load(cluster, restart))


@pytest.mark.sampled
def test_i5_postgres_pauses_longer_than_a_lease_under_load(
    make_cluster: Callable[..., TestCluster], own_server: EmbeddedServer, full: bool
) -> None:
    cluster = make_cluster(dsns=[own_server.create_database("pauses")])

    async def pause() -> None:
        own_server.pause()
        try:
            await asyncio.sleep(35.0 if full else LEASE_SECONDS + 2.0)
        finally:
            own_server.resume()

    asyncio.run(under_load(cluster, pause))


@pytest.mark.sampled
def test_i3_backends_are_terminated_under_load(cluster: TestCluster, seed: int) -> None:
    chance = random.Random(seed)

    def terminate() -> int:
        with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
            found = conn.execute(
                "select pid from pg_stat_activity where datname = current_database() "
                "and application_name like 'sharded_wf%%' order by application_name"
            ).fetchall()
            for (pid,) in chance.sample(found, min(3, len(found))):
                conn.execute("select pg_terminate_backend(%s::int)", (pid,))
        return len(found)

    async def trouble() -> None:
        for _ in range(12):
            await asyncio.to_thread(terminate)
            await asyncio.sleep(0.15)

    asyncio.run(under_load(cluster, trouble))
