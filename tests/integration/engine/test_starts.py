"""I1 and I2: a start that was acknowledged is never lost; one ID is one workflow with one outcome."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from sharded_wf import (
    App,
    IdConflict,
    LimitExceeded,
    Retry,
    ShardedWfError,
    ShardUnavailable,
    Status,
    WorkflowCancelled,
    receive,
    start_child,
)
from sharded_wf.client import Client
from sharded_wf.dev import EmbeddedServer
from sharded_wf.model.workflow import Start
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, echo
from tests.support.processes import until


@pytest.mark.sampled
@pytest.mark.parametrize("kills", [2])
def test_i1_acknowledged_starts_survive_a_crash_of_postgres(
    make_cluster: Callable[..., TestCluster], server_factory: Callable[..., EmbeddedServer], kills: int
) -> None:
    server = server_factory()
    cluster = make_cluster(dsns=[server.create_database("crash")])
    acknowledged: list[str] = []

    async def start_for_ever(client: Client, name: int) -> None:
        for number in range(1_000_000):
            try:
                handle = await client.start(chain.bind(1), id=f"{name}-{number}", wait_seconds=60)
            except ShardUnavailable:
                continue
            acknowledged.append(handle.id)

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            starting = [asyncio.create_task(start_for_ever(client, name)) for name in range(20)]
            for kill in range(1, kills + 1):
                await until(lambda enough=100 * kill: len(acknowledged) >= enough, "acknowledged starts")  # type: ignore[misc]
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await until(lambda: len(acknowledged) >= 100 * (kills + 1), "acknowledged starts")
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            known = list(acknowledged)
            async with app.executor(cluster.config):
                async with asyncio.timeout(60):
                    await asyncio.gather(*(client.get_handle(id_, int).result() for id_ in known))
                # Starts that were not acknowledged may be there too; they end as well.
                await asyncio.to_thread(cluster.certify, known, timeout=30)

    asyncio.run(go())


def test_i2_many_clients_start_the_same_id_at_once(two_shards: TestCluster) -> None:
    ids = [f"same-{number}" for number in range(5)]

    async def go() -> None:
        async with app.connect(two_shards.config) as one, app.connect(two_shards.config) as other:
            clients = [one, other] * 10
            for id_ in ids:
                handles = await asyncio.gather(*(client.start(chain.bind(1), id=id_) for client in clients))
                assert [handle.created for handle in handles].count(True) == 1
                assert {handle.id for handle in handles} == {id_}
            async with app.executor(two_shards.config):
                results = await asyncio.gather(
                    *(client.get_handle(id_, int).result(30) for client in clients for id_ in ids)
                )
                assert results == [1] * len(results)
                await asyncio.to_thread(two_shards.certify, ids)

    asyncio.run(go())
    assert len(two_shards.bodies()) == len(ids)


def test_i2_overlapping_batches_from_many_clients(two_shards: TestCluster, seed: int) -> None:
    """``start_many`` of overlapping sets, in different orders, at once: no deadlock, each created exactly once."""
    chance = random.Random(seed)
    ids = [f"batch-{number}" for number in range(300)]

    async def go() -> None:
        async with app.connect(two_shards.config) as one, app.connect(two_shards.config) as other:
            orders = [chance.sample(ids, len(ids)) for _ in range(6)]
            answers = await asyncio.gather(
                *(
                    client.start_many((id_, echo.bind(id_)) for id_ in order)
                    for client, order in zip([one, other] * 3, orders, strict=True)
                )
            )
            created = [handle.id for handles in answers for handle in handles if handle.created]
            assert sorted(created) == sorted(ids)

    asyncio.run(go())
    two_shards.certify(ids, finished=False)


def test_i2_conflicts(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            first = await client.start(echo.bind("a"), id="x")
            assert first.created
            with pytest.raises(IdConflict, match="other arguments"):
                await client.start(echo.bind("b"), id="x")
            with pytest.raises(IdConflict, match="engine/echo"):
                await client.start(chain.bind(1), id="x")
            with pytest.raises(IdConflict):
                await client.start_many([("y", echo.bind("a")), ("x", echo.bind("b"))])
            kept = await client.start(echo.bind("b"), id="x", on_conflict="existing")
            assert not kept.created
            assert await kept.result(10) == "a"
            again = await client.start(echo.bind("a"), id="x")  # also when it has ended
            assert not again.created
            assert await again.result(10) == "a"
            await client.get_handle("y", str).result(10)
            await asyncio.to_thread(cluster.certify, ["x", "y"])

    asyncio.run(go())


def test_what_can_not_be_started_is_refused_with_what_to_write(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            unbound: list[Any] = [echo, echo("x")]
            for given in unbound:
                with pytest.raises(TypeError, match=r"write echo\.bind\(\.\.\.\)"):
                    await client.start(given, id="never")
            with pytest.raises(TypeError, match=r"not 'echo'"):
                await client.start_many(cast("Any", ["echo"]))
            with pytest.raises(TypeError, match=r"write function\.bind"):
                await client.start_many(cast("Any", [("never", echo.bind("x"), 1)]))
            with pytest.raises(ValueError, match=r'on_conflict=\'ignore\': "error" or "existing"'):
                await client.start(echo.bind("x"), id="never", on_conflict=cast("Any", "ignore"))
            with pytest.raises(LimitExceeded, match="a queue has 1 to"):
                await client.start(echo.bind("x"), id="never", queue="")
            with pytest.raises(TypeError, match="a workflow ID is text, not 5"):
                await client.start(echo.bind("x"), id=cast("Any", 5))
            with pytest.raises(TypeError, match="a priority is an integer, not 'high'"):
                await client.start(echo.bind("x"), id="never", priority=cast("Any", "high"))
            with pytest.raises(TypeError, match=r"a timedelta or a number of seconds, not '1h'"):
                await client.start(echo.bind("x"), id="never", delay=cast("Any", "1h"))
            with pytest.raises(ValueError, match="can't be NaN"):
                await client.start(echo.bind("x"), id="never", delay=math.nan)
            with pytest.raises(TypeError, match=r"one of Status, for example Status\.FAILED"):
                await client.list(status=cast("Any", "failed"))
            assert await client.describe("never") is None

    asyncio.run(go())


def test_i2_conflict_within_one_batch(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            twice = await client.start_many([("x", echo.bind("a")), ("x", echo.bind("a"))])
            assert [(handle.id, handle.created) for handle in twice] == [("x", True), ("x", False)]
            with pytest.raises(IdConflict):
                await client.start_many([("z", echo.bind("a")), ("z", echo.bind("b"))])

    asyncio.run(go())


def test_i2_starting_again_does_not_change_a_large_input(cluster: TestCluster) -> None:
    """A refused start must leave nothing behind, in particular no other input for a workflow that has a small one."""
    large = "b" * 5_000

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(echo.bind("small"), id="x")
            with pytest.raises(IdConflict):
                await client.start(echo.bind(large), id="x")
            await client.start(echo.bind(large), id="y")
            with pytest.raises(IdConflict):
                await client.start(echo.bind("c" * 5_000), id="y")
            async with app.executor(cluster.config):
                assert await client.get_handle("x", str).result(10) == "small"
                assert await client.get_handle("y", str).result(10) == large

    asyncio.run(go())


def test_a_row_that_postgres_refuses_fails_alone(cluster: TestCluster) -> None:
    """Starts of many callers share a transaction; the one that can't be stored must not fail the others."""

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            shards = client._shards
            good = [Start(f"good-{n}", "engine/echo", "engine", "default", 0, b'["x"]') for n in range(50)]
            bad = Start("bad", "engine/echo", "engine", "default", 0, b"[no json")
            unpackable = Start("late", "engine/echo", "engine", "default", 0, b"[]", not_before=1 << 64)
            answers = await asyncio.gather(
                *(shards.start((start,)) for start in [*good[:25], bad, unpackable, *good[25:]]),
                return_exceptions=True,
            )
            assert [type(answer) for answer in answers].count(dict) == 50
            for answer in answers[25:27]:
                assert isinstance(answer, ShardedWfError)
                assert "refused the row" in str(answer)

    asyncio.run(go())
    cluster.certify([f"good-{number}" for number in range(50)], finished=False)


def test_durations_without_end(cluster: TestCluster) -> None:
    """What is longer than any timer waits as long as the longest one, and disturbs nobody in the same transactions."""
    endless = App("endless")

    @endless.step(retry=Retry(attempts=3, first=timedelta.max, cap=math.inf))
    async def fail() -> None:
        raise ValueError

    @endless.workflow
    async def retries() -> None:
        await fail()

    @endless.workflow
    async def waits() -> str:
        return await receive("go", str, timeout=timedelta.max)

    @endless.workflow
    async def starts() -> str:
        return (await start_child(waits.bind(), delay=math.inf)).id

    async def go() -> None:
        async with endless.connect(cluster.config) as client, endless.executor(cluster.config):
            retrying = await client.start(retries.bind())
            late, waiting, starting = await asyncio.gather(
                client.start(waits.bind(), delay=timedelta.max), client.start(waits.bind()), client.start(starts.bind())
            )
            assert await client.get_handle(await starting.result(10)).status() is Status.PARKED
            assert await late.status() is Status.PARKED
            await client.send(waiting.id, "go", "on")
            assert await waiting.result(math.inf) == "on"
            held = await client.start(waits.bind())
            for handle in (held, retrying):
                await handle.cancel(cleanup=math.inf)
                with pytest.raises(WorkflowCancelled):
                    await handle.result(10)

    asyncio.run(go())
