"""Code that changes while workflows are open, and workflows that continue as new; executors are really killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sharded_wf.cluster.versions import open_versions
from sharded_wf.model.history import EntryKind, History
from sharded_wf.testing import decode_history, replay
from tests.support.cluster import TestCluster
from tests.support.evolving_flows import first, second
from tests.support.processes import wait_until

ONE, TWO = "tests.support.evolving_flows:first", "tests.support.evolving_flows:second"


def do(cluster: TestCluster, work: Callable[[Any], Any]) -> Any:
    async def go() -> Any:
        async with first.connect(cluster.config) as client:
            return await work(client)

    return asyncio.run(go())


def bodies(cluster: TestCluster) -> Counter[tuple[str, int]]:
    return Counter((workflow, number) for workflow, _, number, _, _ in cluster.bodies())


@pytest.mark.sampled
def test_versions_change_under_open_workflows(
    two_shards: TestCluster,
) -> None:
    """The executor of version 1 is killed; version 2 goes on with what may be upgraded and leaves what is pinned."""
    path = str(two_shards.config_file())
    orders = [*two_shards.ids_on(1, 2, "o"), *two_shards.ids_on(2, 2, "o")]

    async def start(client: Any) -> None:
        await client.start_many((id_, first.workflows["evolving/order"].bind()) for id_ in orders)
        await client.start(first.workflows["evolving/audit"].bind(), id="audit")

    async def go_on(client: Any) -> list[Any]:
        for id_ in orders:
            await client.send(id_, "go", 1)
        return [await client.get_handle(id_).result(30) for id_ in orders]

    async def finish(client: Any) -> Any:
        await client.send("audit", "go", 1)
        return await client.get_handle("audit").result(30)

    async def start_new(client: Any) -> Any:
        handle = await client.start(second.workflows["evolving/order"].bind(), id="new")
        await client.send("new", "go", 1)
        return await handle.result(30)

    with two_shards.worker(app=ONE) as old:
        do(two_shards, start)
        wait_until(lambda: len(two_shards.bodies()) == 5, "five first steps")
        found = {(one.version, one.function): one for one in open_versions(two_shards.config)}
        assert (found["1", None].open, found["1", "audit"].open) == (4, 1)
        assert len(found["1", None].executors) == 1 and not found["1", None].stranded
        old.kill()
    with two_shards.worker(app=TWO) as new:
        assert do(two_shards, go_on) == [["2", "2"]] * 4
        assert do(two_shards, start_new) == ["2", "2"]
        counted = bodies(two_shards)
        assert [counted[id_, 1] for id_ in orders] == [1] * 4, "what is recorded never runs again"
        assert all(counted[id_, 20] == 1 and counted[id_, 2] == 0 for id_ in orders)
        shown = subprocess.run(
            [sys.executable, "-m", "sharded_wf", "versions", "--cluster", path], capture_output=True, text=True
        )
        assert shown.returncode == 1, shown.stdout + shown.stderr
        assert "evolving/audit (pinned)" in shown.stdout and "1 open of 'evolving' of version '1'" in shown.stdout
        assert new.pid in {body[4] for body in two_shards.bodies()}
    with two_shards.worker(app=ONE):
        assert do(two_shards, finish) == "1"
    assert {row["capability"] for row in two_shards.rows().workflow if row["id"] != "audit"} == {"evolving@2"}


@pytest.mark.sampled
def test_continue_as_new_survives_kills(cluster: TestCluster, seed: int) -> None:
    """Killed wherever it happens to be: each run's step is recorded once, each message received once, in order."""
    until = 12
    ids = [f"steady-{number}" for number in range(5)]

    async def start(client: Any) -> None:
        await client.start_many((id_, first.workflows["evolving/steady"].bind(1, until)) for id_ in ids)
        for _ in range(until):
            for id_ in ids:
                await client.send(id_, "go", 1)

    async def results(client: Any) -> list[Any]:
        return [await client.get_handle(id_).result(40) for id_ in ids]

    async def histories(client: Any) -> list[History]:
        return [await client.history(id_) for id_ in ids]

    with cluster.worker(app=ONE) as victim:
        do(cluster, start)
        wait_until(lambda: len(cluster.bodies()) >= 5 + seed % 35, "some runs", interval=0.001)
        victim.kill()
    with cluster.worker(app=ONE):
        assert do(cluster, results) == [[until, until]] * 5
    counted = bodies(cluster)
    assert set(counted) == {(id_, number) for id_ in ids for number in range(1, until + 1)}
    assert all(sum(counted[id_, n] for n in range(1, until + 1)) <= until + 1 for id_ in ids), "one was under way"
    keys = {(workflow, number, key) for workflow, _, number, key, _ in cluster.bodies()}
    assert len(keys) == len(ids) * until, "each run's step has one key, in both processes"
    for history in do(cluster, histories):
        assert [entry.kind for entry in history.entries] == [EntryKind.CONTINUED, EntryKind.STEP, EntryKind.MESSAGE]
    assert cluster.rows().message == []


@pytest.mark.sampled
def test_the_same_start_is_still_the_same(cluster: TestCluster) -> None:
    """I2: a workflow that has continued with other arguments is known by those that it was started with."""

    async def main() -> None:
        bound = first.workflows["evolving/steady"].bind(1, 3)
        async with first.connect(cluster.config) as client, first.executor(cluster.config):
            handle = await client.start(bound, id="steady")
            for _ in range(3):
                await client.send("steady", "go", 1, idempotency_key=None)
            assert await handle.result(20) == [3, 3]
            again = await client.start(bound, id="steady")
            assert again.created is False and await again.result(5) == [3, 3]

    asyncio.run(main())
    command = [sys.executable, "-m", "sharded_wf", "workflow", "export", "--cluster", str(cluster.config_file())]
    for chosen in (["steady"], ["--name", "evolving/steady", "--status", "succeeded"]):
        exported = subprocess.run([*command, *chosen], capture_output=True)
        assert exported.returncode == 0, exported.stderr
        assert replay(first, [decode_history(line) for line in exported.stdout.splitlines()]) == 1
