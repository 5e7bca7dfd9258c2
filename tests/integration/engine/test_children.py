"""Children beside which their parent goes on, on other shards and past killed executors."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from sharded_wf import Bound, WorkflowCancelled
from sharded_wf.cluster.directory import load_map
from sharded_wf.model.status import Status
from tests.support import citus
from tests.support.cluster import TestCluster
from tests.support.flows import app, patient_parent, races_children, starts_children, starts_children_blocking
from tests.support.processes import wait_until

CHILDREN = 4


def start(cluster: TestCluster, id_: str, bound: Bound[Any]) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(bound, id=id_)

    asyncio.run(go())


def expected_statuses(parent: str) -> dict[str, int]:
    ended = [parent, f"{parent}/left", *(f"{parent}/slow_chain-{number}" for number in range(1, CHILDREN + 1))]
    return {**dict.fromkeys(ended, int(Status.SUCCEEDED)), f"{parent}/closed": int(Status.CANCELLED)}


def wait_ended(cluster: TestCluster, expected: dict[str, int]) -> None:
    wait_until(lambda: cluster.statuses() == expected, "the end of all", interval=0.1)


def test_i6_children_on_other_shards_are_awaited_left_and_cancelled(two_shards: TestCluster) -> None:
    """Parked in between: what is awaited, closed or lost is known from the history alone."""

    async def go() -> None:
        async with (
            app.connect(two_shards.config) as client,
            app.executor(two_shards.config, park_after=0.1),
            app.executor(two_shards.config, park_after=0.1),
        ):
            begun = [
                await client.start(starts_children.bind(CHILDREN, 0.4), id="a"),
                await client.start(starts_children_blocking.bind(CHILDREN, 0.4), id="b"),
            ]
            race = await client.start(races_children.bind(), id="race")
            for handle in begun:
                assert await handle.result(30) == [f"{handle.id}/slow_chain-{n}" for n in range(1, CHILDREN + 1)]
            assert await race.result(30) == 2

    expected = {
        **expected_statuses("a"),
        **expected_statuses("b"),
        "race": Status.SUCCEEDED,
        "race/sleeper-1": Status.SUCCEEDED,
        "race/sleeper-2": Status.CANCELLED,
    }
    asyncio.run(go())
    with two_shards.worker():  # the cancelled may end after those who cancelled them
        wait_ended(two_shards, expected)
        two_shards.certify(expected)
    shard_of = load_map(two_shards.config).shard_map.shard_of
    assert len({shard_of(id_) for id_ in expected_statuses("a")}) == 2, "placed on both"


@pytest.mark.skipif(bool(citus.COORDINATOR), reason="Citus hides its tables from these statistics")
def test_outcomes_for_a_parent_held_by_the_same_executor_are_no_messages(cluster: TestCluster) -> None:
    """They are recorded with the flush in which the children end."""

    def inserted(table: str) -> int:
        with psycopg.connect(cluster.direct[0]) as conn:
            row = conn.execute("select sum(n_tup_ins)::int from pg_stat_user_tables where relname = %s", [table])
            return int((row.fetchone() or [0])[0])

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            handle = await client.start(patient_parent.bind(10, 0.2))
            assert await handle.result(30) == 20

    asyncio.run(go())
    wait_until(lambda: inserted("step") >= 40, "three entries of each child and an outcome, in the statistics")
    assert inserted("message") == 0


@pytest.mark.parametrize("workflow", [starts_children, starts_children_blocking], ids=["async", "def"])
def test_a_parent_that_is_cancelled_takes_those_with_it_that_are_to_close(cluster: TestCluster, workflow: Any) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, drain_seconds=0.2):
            handle = await client.start(workflow.bind(1, 60.0), id="w")
            closed = client.get_handle("w/closed")
            await asyncio.to_thread(wait_until, lambda: "w/closed" in cluster.statuses(), "the last child")
            await handle.cancel()
            for one in (handle, closed):
                with pytest.raises(WorkflowCancelled):
                    await one.result(20)
            description = await client.describe("w/left")
            assert description is not None and description.status is not Status.CANCELLED

    asyncio.run(go())
