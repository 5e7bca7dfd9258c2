"""I8: a shard that is down or hung delays only its own slots, and catches up when it is back."""

from __future__ import annotations

import asyncio
import logging
import statistics
import threading
import time

import pytest

from sharded_wf import App, ShardUnavailable
from sharded_wf.client import Client
from sharded_wf.cluster import writer
from sharded_wf.dev import EmbeddedServer
from sharded_wf.limits import RESULT_LOOK_PAUSE_FACTOR, WRITE_DEADLINE_SECONDS
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, echo, gated_chain
from tests.support.processes import until

HUNG_SECONDS = 4.0
SLOWER_MAX_SECONDS = 0.75
"""How much later a result may come while another shard is away: scheduling noise of a busy machine, no timeout."""


def homes_of_made_ids(client: Client) -> set[str]:
    """The shards on which IDs lie that the client makes now."""
    shards = client._shards
    return {shards.map.shard_of(shards.id_maker()()) for _ in range(50)}


async def latency(client: Client, ids: list[str]) -> float:
    """The median time from start to result, one after another."""
    taken: list[float] = []
    for id_ in ids:
        begun = time.monotonic()
        handle = await client.start(chain.bind(1), id=id_)
        assert await handle.result(20) == 1
        taken.append(time.monotonic() - begun)
    return statistics.median(taken)


@pytest.mark.sampled
@pytest.mark.parametrize("trouble", ["down", "hung"])
def test_i8_a_shard_that_is_away_delays_only_its_slots(
    cluster_and_far: tuple[TestCluster, EmbeddedServer],
    trouble: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, server = cluster_and_far
    caplog.set_level(logging.INFO, "sharded_wf.watch")
    here, there = cluster.ids_on(1, 40), cluster.ids_on(2, 40)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            await latency(client, [here.pop(), there.pop()])
            healthy = await latency(client, [here.pop() for _ in range(10)])
            await asyncio.to_thread(server.stop if trouble == "down" else server.pause)
            try:
                waiting = asyncio.create_task(client.start(chain.bind(1), id=there.pop(), wait_seconds=60))
                during = await latency(client, [here.pop() for _ in range(10)])
                assert during < healthy + SLOWER_MAX_SECONDS
                begun = time.monotonic()
                with pytest.raises(ShardUnavailable, match=cluster.name(2)):
                    await client.start(echo.bind("x"), id=there.pop(), wait_seconds=2.0)
                assert time.monotonic() - begun < WRITE_DEADLINE_SECONDS - 1, "the caller's own wait, not the default"
                # Now that it is known, IDs of our own making avoid the shard.
                made = [await client.start(echo.bind("x")) for _ in range(20)]
                async with asyncio.timeout(30):
                    await asyncio.gather(*(handle.result() for handle in made))
                assert not waiting.done()
            finally:
                await asyncio.to_thread(server.start if trouble == "down" else server.resume)
            async with asyncio.timeout(30):
                late = await waiting
                assert await late.result() == 1
                # It is found healthy again without being asked for by ID: made IDs fall there again.
                await until(
                    lambda: homes_of_made_ids(client) == {cluster.name(1), cluster.name(2)}, "made IDs on both shards"
                )
                assert await (await client.start(chain.bind(1), id=there.pop())).result() == 1
                if trouble == "down":
                    await until(lambda: len(said()) > 1, "the executor's word that the shard is back")

    def said() -> list[str]:
        texts = [record.getMessage() for record in caplog.records if record.name == "sharded_wf.watch"]
        return [text.partition(";")[0] for text in texts]

    asyncio.run(go())
    if trouble == "down":
        assert said() == [f"shard {cluster.name(2)}: {what}" for what in ("does not answer", "answers again")]


@pytest.mark.sampled
def test_i8_who_waits_for_results_hears_of_them_as_soon_as_a_hung_shard_is_back(
    cluster_and_far: tuple[TestCluster, EmbeddedServer],
) -> None:
    """A look that hung for long is no reason to rest for long."""
    cluster, server = cluster_and_far
    first, second = cluster.ids_on(2, 2)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            with cluster.closed_gate():
                handle = await client.start(gated_chain.bind(0, 0), id=first)
                result = asyncio.create_task(handle.result(60))
                await until(
                    lambda: bool(client._results.at(client._shards.map.slot_of(first))._waiting), "a client that waits"
                )
                await asyncio.to_thread(server.pause)
                begun = time.monotonic()
                await asyncio.sleep(HUNG_SECONDS)  # longer than the client goes without a look
                await asyncio.to_thread(server.resume)
            await result
            assert await (await client.start(chain.bind(1), id=second, wait_seconds=30)).result(30) == 1
            assert time.monotonic() - begun < (RESULT_LOOK_PAUSE_FACTOR + 0.5) * HUNG_SECONDS, "it rested in proportion"

    asyncio.run(go())


@pytest.mark.sampled
def test_i8_fixed_ids_are_refused_at_once_when_the_shard_has_been_away_for_long(
    cluster_and_far: tuple[TestCluster, EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short absence is sat out, unless the caller says for how long; a longer one is told at once."""
    cluster, server = cluster_and_far
    monkeypatch.setattr(writer, "WRITE_DEADLINE_SECONDS", 2.0)
    there = cluster.ids_on(2, 20)

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(echo.bind("x"), id=there.pop())
            await asyncio.to_thread(server.pause)
            try:
                begun = time.monotonic()
                waiting = [asyncio.create_task(client.start(echo.bind("x"), id=there.pop())) for _ in range(3)]
                refused = await asyncio.gather(*waiting, return_exceptions=True)
                assert 1.9 < time.monotonic() - begun < WRITE_DEADLINE_SECONDS - 1
                assert {type(error) for error in refused} == {ShardUnavailable}
                begun = time.monotonic()
                for _ in range(5):
                    with pytest.raises(ShardUnavailable, match=cluster.name(2)):
                        await client.start(echo.bind("x"), id=there.pop())
                assert time.monotonic() - begun < 5, "each one waited"
                patient = asyncio.create_task(client.start(echo.bind("x"), id=there.pop(), wait_seconds=60))
            finally:
                await asyncio.to_thread(server.resume)
            async with asyncio.timeout(30):
                await patient
                await until(lambda: client._shards.shards[cluster.name(2)].healthy, "that pg2 is back")
            await client.start(echo.bind("x"), id=there.pop())

    asyncio.run(go())


@pytest.mark.sampled
def test_i8_def_workflows_of_a_hung_shard_take_no_threads_from_the_others(
    cluster_and_far: tuple[TestCluster, EmbeddedServer],
) -> None:
    cluster, server = cluster_and_far
    here, there = cluster.ids_on(1, 10), cluster.ids_on(2, 10)
    blocking, gate, inside = App("blocking"), threading.Event(), threading.Semaphore(0)

    @blocking.step
    def wait(where: str) -> str:
        inside.release()
        if where == "there":
            gate.wait(30)
        return where

    @blocking.workflow
    def flow(where: str) -> str:
        return wait(where)

    async def go() -> None:
        async with blocking.connect(cluster.config) as client, blocking.executor(cluster.config, threads=2):
            late = [await client.start(flow.bind("there"), id=id_) for id_ in there]
            await until(lambda: inside.acquire(blocking=False), "the first of them")
            await until(lambda: inside.acquire(blocking=False), "that both threads are taken")
            await asyncio.to_thread(server.pause)
            try:
                gate.set()  # now they wait for their shard
                handles = [await client.start(flow.bind("here"), id=id_) for id_ in here]
                async with asyncio.timeout(20):
                    assert await asyncio.gather(*(handle.result() for handle in handles)) == ["here"] * len(here)
            finally:
                await asyncio.to_thread(server.resume)
            async with asyncio.timeout(20):
                assert await asyncio.gather(*(handle.result() for handle in late)) == ["there"] * len(there)

    asyncio.run(go())


def test_i8_made_ids_return_to_a_shard_that_came_back(
    cluster_and_far: tuple[TestCluster, EmbeddedServer],
) -> None:
    """Nobody asks for a workflow of that shard by name, and it still gets its share of new ones again."""
    cluster, server = cluster_and_far
    there = cluster.ids_on(2, 1)[0]

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await asyncio.to_thread(server.stop)
            with pytest.raises(ShardUnavailable):
                await client.start(echo.bind("x"), id=there, wait_seconds=0.2)
            assert homes_of_made_ids(client) == {cluster.name(1)}
            await asyncio.to_thread(server.start)
            await until(
                lambda: homes_of_made_ids(client) == {cluster.name(1), cluster.name(2)}, "made IDs on both shards"
            )

    asyncio.run(go())


@pytest.mark.sampled
def test_i8_an_executor_starts_while_a_shard_is_down(
    cluster_and_far: tuple[TestCluster, EmbeddedServer],
) -> None:
    cluster, server = cluster_and_far
    here, there = cluster.ids_on(1, 1)[0], cluster.ids_on(2, 1)[0]

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(chain.bind(1), id=there)
        await asyncio.to_thread(server.stop)
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            assert await (await client.start(chain.bind(1), id=here)).result(30) == 1
            await asyncio.to_thread(server.start)
            assert await client.get_handle(there, int).result(30) == 1

    asyncio.run(go())
