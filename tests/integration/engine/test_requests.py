"""Cancel with a clean-up and with children, terminate, pause: what is asked of a workflow itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from sharded_wf import Client, Status, WorkflowCancelled, WorkflowNotFound, WorkflowTerminated
from sharded_wf.cluster.directory import load_map
from sharded_wf.model.history import EntryKind
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Proxy
from tests.support.request_flows import counted, gated_then, sync_pausable, sync_tidy, tidy, tidy_parent

REQUEST_APP = "tests.support.request_flows:app"


@asynccontextmanager
async def running(cluster: TestCluster, **options: float) -> AsyncGenerator[Client]:
    async with app.executor(cluster.config, **options), app.connect(cluster.config) as client:
        yield client


def runs(cluster: TestCluster) -> Counter[tuple[str, int]]:
    return Counter((workflow, number) for workflow, _, number, _, _ in cluster.bodies())


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


def test_a_cancel_reaches_children_on_other_shards_and_clean_ups_run(two_shards: TestCluster) -> None:
    shard_map = load_map(two_shards.config).shard_map
    parent = next(
        id_
        for id_ in two_shards.ids_on(1, 100)
        if all(shard_map.shard_of(f"{id_}/tidy-{number}") == two_shards.name(number) for number in (1, 2))
    )

    async def go() -> None:
        async with running(two_shards, park_after=0.2) as client:
            handle = await client.start(tidy_parent.bind(), id=parent)
            await until(lambda: list(two_shards.statuses().values()) == [2, 2, 2], "three parked")
            await client.cancel(parent)
            with pytest.raises(WorkflowCancelled):
                await handle.result(30)
            for number in (1, 2):
                with pytest.raises(WorkflowCancelled):
                    await client.get_handle(f"{parent}/tidy-{number}").result(30)
            await asyncio.to_thread(two_shards.certify, [parent])

    asyncio.run(go())
    counted_ = runs(two_shards)
    assert counted_[parent, 1] == 1
    assert [counted_[f"{parent}/tidy-{child}", number] for child in (1, 2) for number in (100, 101)] == [1] * 4
    cancels = Counter(row["workflow_id"] for row in two_shards.rows().step if row["kind"] == EntryKind.CANCEL)
    assert set(cancels.values()) == {1}


def test_a_clean_up_that_takes_too_long_is_ended(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster) as client:
            handle = await client.start(tidy.bind(60.0), id="w")
            await until(lambda: list(cluster.statuses().values()) == [1], "it runs")
            await client.cancel("w", cleanup=0.3)
            with pytest.raises(WorkflowTerminated, match="took too long"):
                await handle.result(30)
            assert await handle.status() is Status.CANCELLED
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())
    assert runs(cluster)["w", 101] == 0


def test_terminate_runs_no_clean_up(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with running(two_shards, park_after=0.2) as client:
            handle = await client.start(tidy_parent.bind(), id="w")
            later = await client.start(chain.bind(1), id="later", delay=3600)
            await until(lambda: list(two_shards.statuses().values()) == [2, 2, 2, 2], "all parked")
            await client.terminate("w")
            await client.terminate("later")
            for one in (handle, later):
                with pytest.raises(WorkflowTerminated):
                    await one.result(30)
            for number in (1, 2):  # the children are cancelled, and clean up
                with pytest.raises(WorkflowCancelled):
                    await client.get_handle(f"w/tidy-{number}").result(30)
            with pytest.raises(WorkflowNotFound):
                await client.terminate("nobody")
            assert await client.resume("w")
            await client.terminate("w")
            with pytest.raises(WorkflowTerminated):
                await handle.result(30)

    asyncio.run(go())
    assert runs(two_shards)["w", 1] == 0
    assert runs(two_shards)["w/tidy-1", 101] >= 1


def test_a_client_that_dies_as_it_cancels_has_cancelled_or_done_nothing(cluster: TestCluster) -> None:
    """A paused workflow: it does not go on as if nobody had paused it, nor as if nobody had cancelled it."""

    async def go(proxy: Proxy) -> None:
        async with running(cluster, park_after=0.2) as client:
            handle = await client.start(tidy.bind(0.0), id="w")
            await until(lambda: cluster.statuses() == {"w": 2}, "parked")
            await client.pause("w")
            async with app.connect(cluster.through(proxy.dsn).config) as victim:
                held = proxy.hold(COMMIT, when="after", within=r"delete from wf_\d+\.message")
                asking = asyncio.create_task(victim.cancel("w"))
                await asyncio.to_thread(held.wait)
                asking.cancel()
                await asyncio.wait([asking])
                proxy.release()
            with pytest.raises(WorkflowCancelled):
                await handle.result(10)
            await asyncio.to_thread(cluster.certify, ["w"])

    with Proxy(cluster.direct[0]) as proxy:
        asyncio.run(go(proxy))
    assert runs(cluster)["w", 101] == 1


def test_def_workflows_clean_up_and_pause(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster, park_after=0.2) as client:
            tidying = await client.start(sync_tidy.bind(), id="tidy")
            pausing = await client.start(sync_pausable.bind(), id="pause")
            await until(lambda: list(cluster.statuses().values()) == [2, 2], "both parked")
            await client.pause("pause")
            await client.send("pause", "mail", 5)
            await client.cancel("tidy")
            with pytest.raises(WorkflowCancelled):
                await tidying.result(30)
            assert [entry.name for entry in (await client.history("tidy")).entries] == ["cancel", "sync_say"]
            assert not (await client.history("pause")).entries
            await client.unpause("pause")
            assert await pausing.result(30) == 5
            await asyncio.to_thread(cluster.certify, ["tidy", "pause"])

    asyncio.run(go())


def test_a_paused_workflow_runs_no_step_and_its_messages_wait(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with running(two_shards, park_after=0.2) as client:
            handle = await client.start(counted.bind(2), id="w")
            await client.send("w", "mail", "one")
            await until(lambda: runs(two_shards)["w", 0] == 1, "the first step")
            await client.pause("w")
            await client.send("w", "mail", "two")
            await until(lambda: two_shards.statuses() == {"w": 2} and not two_shards.rows().wake, "it is parked")
            assert (await handle.describe()).paused
            assert runs(two_shards)["w", 1] == 0
            await client.pause("w")
            await client.unpause("w")
            assert await handle.result(30) == ["one", "two"]
            assert not (await handle.describe()).paused
            await client.pause("w")  # changes nothing
            await asyncio.to_thread(two_shards.certify, ["w"])

    asyncio.run(go())


def test_paused_in_the_middle_of_a_step_and_before_it_ever_ran(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            never = await client.start(chain.bind(1), id="never")
            await client.pause("never")
            async with app.executor(cluster.config, park_after=0.2):
                with cluster.closed_gate():
                    handle = await client.start(gated_then.bind(2), id="w")
                    await until(lambda: runs(cluster)["w", 0] == 1, "the step runs")
                    await client.pause("w")
                    await until(lambda: not cluster.rows().wake, "the executor knows")
                await until(lambda: cluster.statuses()["w"] == 2, "it is parked")
                assert len((await client.history("w")).entries) == 1
                assert runs(cluster) == {("w", 0): 1}
                for id_ in ("w", "never"):
                    await client.unpause(id_)
                assert await handle.result(30) == 2
                assert await never.result(30) == 1
                await asyncio.to_thread(cluster.certify, ["w", "never"])

    asyncio.run(go())


def test_a_paused_workflow_can_be_cancelled(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster, park_after=0.2) as client:
            handle = await client.start(tidy.bind(0.0), id="w")
            await until(lambda: cluster.statuses() == {"w": 2}, "parked")
            await client.pause("w")
            await client.cancel("w")
            with pytest.raises(WorkflowCancelled):
                await handle.result(30)
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())
    assert runs(cluster)["w", 101] == 1
