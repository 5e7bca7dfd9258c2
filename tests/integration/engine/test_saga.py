"""Compensations past killed executors, of cancelled workflows, and over shards."""

from __future__ import annotations

import asyncio

import pytest

from sharded_wf import WorkflowCancelled
from sharded_wf.cluster.directory import load_map
from tests.support.cluster import TestCluster
from tests.support.flows import (
    app,
    saga_of_children,
    saga_waits,
)
from tests.support.processes import wait_until

STEPS = 3


def numbers_of(cluster: TestCluster, id_: str) -> list[int]:
    """What was done and undone, in order; what was made again after a crash counts once."""
    return list(dict.fromkeys(number for workflow_id, _, number, _, _ in cluster.bodies() if workflow_id == id_))


def test_what_is_done_and_undone_may_be_children_on_other_shards(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            handle = await client.start(saga_of_children.bind(4), id="w")
            with pytest.raises(ValueError, match="on purpose"):
                await handle.result(20)
            await asyncio.to_thread(two_shards.certify, ["w"])

    asyncio.run(go())
    assert [body[2] for body in two_shards.bodies()] == [10, 11, 12, 13, -13, -12, -11, -10]
    shard_of = load_map(two_shards.config).shard_map.shard_of
    for name in ("noted", "undoes"):
        assert {f"w/{name}-{number}" for number in range(1, 5)} < two_shards.statuses().keys()
    assert len({shard_of(id_) for id_ in two_shards.statuses()}) == 2


def test_a_terminated_saga_undoes_nothing(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            handle = await client.start(saga_waits.bind(STEPS), id="w")
            await asyncio.to_thread(wait_until, lambda: len(numbers_of(cluster, "w")) == STEPS, "all steps")
            await handle.terminate()
            with pytest.raises(WorkflowCancelled):
                await handle.result(20)

    asyncio.run(go())
    assert numbers_of(cluster, "w") == [*range(1, STEPS + 1)]
