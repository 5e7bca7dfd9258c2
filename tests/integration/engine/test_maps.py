"""Maps on several shards, past a killed executor, and how far they have come."""

from __future__ import annotations

import asyncio

import pytest

from sharded_wf import WorkflowNotFound
from sharded_wf.cluster.directory import load_map
from sharded_wf.model.status import Status
from tests.support.cluster import TestCluster
from tests.support.flows import app, maps
from tests.support.processes import wait_until


@pytest.mark.sampled
def test_i3_a_map_goes_on_after_its_executor_was_killed(two_shards: TestCluster) -> None:
    async def start() -> None:
        async with app.connect(two_shards.config) as client:
            await client.start(maps.bind(), id="w")

    async def finish() -> None:
        async with app.connect(two_shards.config) as client:
            found = await client.map_progress("w/map-1")
            assert found.read >= 20 and found.succeeded < 59
            with two_shards.worker():
                assert await client.get_handle("w", int).result(60) == 59
                await asyncio.to_thread(two_shards.certify, ["w"])
            found = await client.map_progress("w/map-1")
            assert (found.status, found.read, found.succeeded, found.failed) == (Status.SUCCEEDED, 60, 59, 1)
            try:
                await client.map_progress("w")
            except WorkflowNotFound:
                pass
            else:
                raise AssertionError("a workflow that is no map")

    with two_shards.worker() as victim:
        asyncio.run(start())
        wait_until(lambda: len(two_shards.bodies()) >= 25, "items in the middle of it")
        victim.kill()
    asyncio.run(finish())
    items = [f"w/map-1/item-{number}" for number in range(60)]
    assert {id_ for id_ in two_shards.statuses() if "/item-" in id_} == set(items)
    shard_of = load_map(two_shards.config).shard_map.shard_of
    assert len({shard_of(id_) for id_ in items}) == 2
