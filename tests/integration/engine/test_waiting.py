"""Waiting and events on real rows: parked, killed, on other shards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sharded_wf import EventNeverSet, ResultTimeout, WorkflowNotFound, WorkflowTimedOut
from sharded_wf.model.history import EMPTY_HISTORY
from sharded_wf.model.status import Status
from tests.support.cluster import TestCluster
from tests.support.processes import wait_until
from tests.support.waiting_flows import (
    DIRECTORY,
    app,
    copying,
    limited,
    limited_run,
    place,
    sensor,
    setter,
    sleeper,
    sync_watcher,
    unlimited,
    watcher,
)

APP = "tests.support.waiting_flows:app"


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))


def statuses(cluster: TestCluster) -> list[int]:
    return sorted(cluster.statuses().values())


@pytest.mark.sampled
def test_a_killed_executor_loses_neither_heartbeats_nor_looks(cluster: TestCluster) -> None:
    async def start() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(copying.bind(6), id="copy")
            await client.start(sensor.bind("file", 0.3), id="sensor")

    async def results() -> tuple[list[int], str | None]:
        async with app.connect(cluster.config) as client, asyncio.timeout(40):
            copied = await client.get_handle("copy", list[int]).result()
            return copied, await client.get_handle("sensor", str).result()

    asyncio.run(start())
    with cluster.worker(app=APP) as first:
        wait_until(lambda: place("done-3").exists(), "the third heartbeat")
        wait_until(lambda: bool(cluster.ask_all("heartbeat", "details::text in ('2', '3')")), "a saved one")
        wait_until(lambda: len(place("looks").read_text().split()) >= 3, "three looks")
        first.kill()
    place("file").write_text("found")
    with cluster.worker(app=APP):
        copied, found = asyncio.run(results())
    assert copied[0] in (2, 3)
    assert copied[1] == 6
    assert found == "found"
    assert [row["name"] for row in cluster.rows().step if row["workflow_id"] == "sensor"] == ["file_is_there"]
    assert not cluster.ask_all("attempt", "true"), "looks leave no rows"


def test_a_sensor_and_a_sleeper_are_parked_meanwhile(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            one = await client.start(sensor.bind("file", 2.0), id="sensor")
            other = await client.start(sleeper.bind(2.0), id="sleeper")
            parked = [int(Status.PARKED)] * 2
            await asyncio.to_thread(wait_until, lambda: statuses(cluster) == parked, "both parked")
            place("file").write_text("found")
            assert await one.result(20) == "found"
            assert 0 <= await other.result(20) < 10, "it woke when it was to, or when the machine let it"

    asyncio.run(go())


def test_events_reach_workflows_on_other_shards_and_clients(two_shards: TestCluster) -> None:
    async def go() -> None:
        here, there = two_shards.ids_on(1, 3, "a"), two_shards.ids_on(2, 3, "b")
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            setting = await client.start(setter.bind([1, 2, 3], True), id=here[0])
            watching = [await client.start(watcher.bind(here[0]), id=id_) for id_ in (here[1], there[0])]
            watching.append(await client.start(sync_watcher.bind(here[0]), id=there[1]))
            await asyncio.to_thread(wait_until, lambda: statuses(two_shards) == [int(Status.PARKED)] * 4, "all parked")
            outside = asyncio.create_task(setting.event("progress", dict[str, int]))
            with pytest.raises(ResultTimeout):
                await setting.event("progress", timeout=0.2)
            await client.send(here[0], "go", 1)
            assert [await one.result(20) for one in watching] == [1, 1, 1]
            assert await outside == {"value": 1}
            for _ in range(2):
                await client.send(here[0], "go", 1)
            assert await setting.result(20) == 3
            assert await setting.event("progress", dict[str, int]) == {"value": 3}, "also after its end, the latest"
            late = await client.start(watcher.bind(here[0]), id=there[2])
            assert await late.result(20) == 3
            nobody_waits = lambda: two_shards.ask_all("event_waiter", "true") == []  # noqa: E731
            await asyncio.to_thread(wait_until, nobody_waits, "nobody waits")

    asyncio.run(go())


@pytest.mark.sampled
def test_waiting_in_vain_ends(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            silent = await client.start(setter.bind([], False), id="silent")
            await silent.result(20)
            with pytest.raises(EventNeverSet):
                await silent.event("progress", timeout=20)
            with pytest.raises(WorkflowNotFound):
                await client.get_handle("nobody").event("progress", timeout=20)
            with pytest.raises(WorkflowNotFound):
                await (await client.start(watcher.bind("nobody"))).result(20)
            waiting = await client.start(sleeper.bind(1.5), id="ends")
            vain = await client.start(watcher.bind("ends"), id="vain")
            await waiting.result(20)
            with pytest.raises(EventNeverSet):  # though it was parked when the other ended
                await vain.result(20)

    asyncio.run(go())


def test_the_time_of_workflows_and_their_children_is_over(two_shards: TestCluster) -> None:
    """Also of one that is parked, of one whose executor was killed, and of one that comes too late to run at all."""

    async def start() -> None:
        async with app.connect(two_shards.config) as client:
            await client.start(limited.bind(False), id="limited")
            await client.start(limited.bind(True), id="parent")
            await client.start(limited_run.bind(), id="run")
            await client.start(unlimited.bind(), id="at-start", timeout=2)
            await client.start(unlimited.bind(), id="free")
            await client.start(unlimited.bind(), id="late", timeout=0.5, delay=0.01, queue="unserved")

    async def check() -> None:
        async with app.connect(two_shards.config) as client, asyncio.timeout(40):
            for id_ in ("limited", "parent", "run", "at-start", "parent/unlimited-1"):
                with pytest.raises(WorkflowTimedOut):
                    await client.get_handle(id_).result()
            async with app.executor(two_shards.config, queues=["unserved"]):
                with pytest.raises(WorkflowTimedOut):
                    await client.get_handle("late").result()
            assert await client.history("late") == EMPTY_HISTORY
            await client.cancel("free")
            cleaned = [entry.name for entry in (await client.history("parent/unlimited-1")).entries]
            assert cleaned[-1] == "file_is_there", "its `finally` ran"

    with two_shards.worker("--park-after", "0.1", "--queue", "default", app=APP) as first:
        wait_until(lambda: all(two_shards.leases(shard) for shard in (1, 2)), "a lease on each shard")
        asyncio.run(start())
        # Where the machine is slow the time of some is over before they are parked.
        wait_until(lambda: sum(status in (2, 4) for status in statuses(two_shards)) >= 4, "most of them parked")
        first.kill()
    with two_shards.worker("--park-after", "0.1", "--queue", "default", app=APP):
        asyncio.run(check())
