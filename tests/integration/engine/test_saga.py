"""Compensations past killed executors, of cancelled workflows, and over shards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from sharded_wf import WorkflowCancelled
from sharded_wf.cluster.directory import load_map
from sharded_wf.model.status import Status
from tests.support.cluster import TestCluster
from tests.support.flows import (
    app,
    saga_flow,
    saga_flow_blocking,
    saga_of_children,
    saga_waits,
    saga_waits_blocking,
)
from tests.support.kill_points import every_point, kill_at
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

STEPS = 3
BOTH: tuple[Moment, Moment] = ("before", "after")
POINTS: list[tuple[Any, int, Moment]] = [
    (workflow, skip, when) for workflow in (saga_flow, saga_flow_blocking) for skip in range(2 * STEPS) for when in BOTH
]


@pytest.mark.sampled
def test_killed_at_every_flush(make_cluster: Callable[..., TestCluster], seed: int, full: bool) -> None:
    """SIGKILL at each recorded step or compensation, on its way to the server or back; a sample, or every one."""
    for workflow, skip, when in POINTS if full else random.Random(seed).sample(POINTS, 1):
        cluster = make_cluster(1)

        async def start(cluster: TestCluster = cluster, workflow: Any = workflow) -> None:
            async with app.connect(cluster.config) as client:
                await client.start(workflow.bind(STEPS), id="w")

        with Proxy(cluster.direct[0]) as proxy:
            with cluster.through(proxy.dsn).worker() as victim:
                wait_until(lambda c=cluster: len(c.leases()) == 1, "the lease")  # type: ignore[misc]
                held = proxy.hold(COMMIT, when=when, within=r"insert into wf_\d+\.step", skip=skip)
                asyncio.run(start())
                held.wait()
                victim.kill()
                proxy.release()
            with cluster.worker():
                wait_until(lambda c=cluster: c.statuses()["w"] == Status.FAILED, "the end", interval=0.1)  # type: ignore[misc]
                cluster.certify(["w"])
        once = list(dict.fromkeys(body[2] for body in cluster.bodies()))
        assert once == [*range(1, STEPS + 1), *range(-STEPS, 0)]


def numbers_of(cluster: TestCluster, id_: str) -> list[int]:
    """What was done and undone, in order; what was made again after a crash counts once."""
    return list(dict.fromkeys(number for workflow_id, _, number, _, _ in cluster.bodies() if workflow_id == id_))


@pytest.mark.sampled
@pytest.mark.parametrize("workflow", [saga_waits, saga_waits_blocking], ids=["async", "def"])
def test_killed_at_every_flush_of_a_cancelled_saga(cluster: TestCluster, seed: int, full: bool, workflow: Any) -> None:
    """From the first step to the outcome: three steps, the request to cancel, three compensations. There is no time at
    all to clean up, and the request is made twice."""
    points = every_point(2 * STEPS + 2)
    points = points if full else random.Random(seed).sample(points, 2)
    ids = [f"w-{at}" for at in range(len(points))]

    def begin(queue: str) -> None:
        async def go() -> None:
            async with app.connect(cluster.config) as client:
                handle = await client.start(workflow.bind(STEPS), id=f"w-{queue[1:]}", queue=queue)
                await asyncio.to_thread(wait_until, lambda: bool(numbers_of(cluster, handle.id)), "the first step")
                await handle.cancel(cleanup=0)
                await handle.cancel(cleanup=0)

        asyncio.run(go())

    kill_at(cluster, points, begin)
    with cluster.worker():
        wait_until(lambda: set(cluster.statuses().values()) == {5}, "all cancelled", 30, 0.1)
        cluster.certify(ids)
    for id_ in ids:
        found = numbers_of(cluster, id_)
        done = [number for number in found if number > 0]
        assert done == [*range(1, len(done) + 1)]
        assert found[len(done) :] == [-number for number in reversed(done)]


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
