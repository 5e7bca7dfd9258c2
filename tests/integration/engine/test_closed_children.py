"""Children that end with their parent: resumed with it, and none is left behind by a parent that is terminated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from sharded_wf import Client, Status, WorkflowCancelled
from sharded_wf.model.history import EntryKind
from tests.support import citus
from tests.support.certificate import slot_schemas
from tests.support.closing_flows import app, closes_one, guardian, sync_closes_one, sync_guardian, waits_for_one
from tests.support.cluster import TestCluster
from tests.support.kill_points import every_point, kill_at
from tests.support.processes import WAIT_SECONDS, wait_until
from tests.support.proxy import COMMIT, Moment, Proxy
from tests.support.repair_flows import Refused, mend

CLOSING_APP = "tests.support.closing_flows:app"


async def resumed(client: Client, id_: str) -> bool:
    """Whether a workflow was resumed, and runs."""
    found = await client.describe(id_)
    entries = (await client.history(id_)).entries
    return found is not None and found.status < 3 and any(entry.kind is EntryKind.RESUME for entry in entries)


async def was_told(client: Client, id_: str) -> bool:
    """Whether a request to cancel has reached a workflow."""
    return any(entry.kind is EntryKind.CANCEL for entry in (await client.history(id_)).entries)


async def fail(client: Client, workflow: Any, parent: str, queue: str) -> None:
    """Until its children have heard of it, and clean up."""
    with pytest.raises(Refused):
        await (await client.start(workflow.bind(queue), id=parent, queue=queue)).result(20)
    for name in ("a", "b"):
        await until(lambda name=name: was_told(client, f"{parent}/{name}"), "request")  # type: ignore[misc]


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"no {what}"
        await asyncio.sleep(0.05)


async def finish(client: Client, parent: str) -> None:
    """The children that its failure had cancelled go on; what somebody else cancels since stays cancelled."""
    for name in ("a", "b"):
        await until(lambda name=name: resumed(client, f"{parent}/{name}"), "resume of the child")  # type: ignore[misc]
    await client.cancel(f"{parent}/b")
    with pytest.raises(WorkflowCancelled):
        await client.get_handle(f"{parent}/b").result(20)
    await client.send(f"{parent}/a", "word", "went on")
    assert await client.get_handle(f"{parent}/a", str).result(20) == "went on"
    await client.send(parent, "end", "over")
    assert await client.get_handle(parent, str).result(20) == "over"
    found = await client.describe(f"{parent}/b")
    assert found is not None
    assert found.status is Status.CANCELLED, "its parent was replayed, and did not resume it once more"


@pytest.mark.parametrize("workflow", [guardian, sync_guardian], ids=["async", "def"])
def test_children_that_its_failure_cancelled_are_resumed_with_their_parent(
    two_shards: TestCluster, workflow: Any
) -> None:
    """Resumed at once, while one of them still cleans up and another has not even been taken up."""
    shard_of = two_shards.shard_of
    parent = next(id_ for id_ in two_shards.ids_on(1, 100) if [shard_of(f"{id_}/{n}") for n in "ab"] == [2, 1])

    async def go() -> None:
        async with (
            app.executor(two_shards.config, park_after=0.1, queues=["default"]),
            app.connect(two_shards.config) as client,
        ):
            await fail(client, workflow, parent, "default")
            await asyncio.to_thread(mend, two_shards.ledger)
            assert await client.resume(parent)
            await finish(client, parent)
            second = [(f"{parent}/unserved", f"{parent}\x1f1")]
            await asyncio.to_thread(wait_until, lambda: cancels() == second, "a request, of the second end only")

    def cancels() -> list[tuple[str, str]]:
        return [(row[0], row[2]) for row in two_shards.ask_all("message", "topic = '$cancel'")]

    asyncio.run(go())
    assert two_shards.statuses()[f"{parent}/unserved"] == Status.PENDING


@pytest.mark.skipif(bool(citus.COORDINATOR), reason="Citus knows no triggers on distributed tables")
def test_children_that_a_refused_row_cancelled_are_resumed_with_their_parent(cluster: TestCluster) -> None:
    def each_slot(command: LiteralString) -> None:
        with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
            conn.execute(
                "create or replace function refuse() returns trigger language plpgsql as "
                "$$ begin raise 'refused'; end $$"
            )
            for schema in slot_schemas(conn):
                conn.execute(sql.SQL(command).format(sql.Identifier(schema)))

    async def go() -> None:
        async with app.executor(cluster.config, queues=["default"]), app.connect(cluster.config) as client:
            handle = await client.start(guardian.bind("default"), id="p")
            with pytest.raises(ValueError, match="refused"):
                await handle.result(20)
            for name in ("a", "b"):
                await until(lambda name=name: was_told(client, f"p/{name}"), "request")  # type: ignore[misc]
            await asyncio.to_thread(each_slot, "drop trigger refuse on {}.step")
            assert await client.resume("p")
            await finish(client, "p")

    mend(cluster.ledger)
    each_slot(
        "create trigger refuse before insert on {}.step for each row when (new.name like '%%fragile_note') "
        "execute function refuse()"
    )
    asyncio.run(go())


@pytest.mark.sampled
def test_killed_at_the_flushes_of_a_resumed_parent(cluster: TestCluster, seed: int, full: bool) -> None:
    points = every_point(2)
    points = points if full else random.Random(seed).sample(points, 1)
    ids = [f"w-{at}" for at in range(len(points))]

    async def fail_all() -> None:
        async with app.executor(cluster.config), app.connect(cluster.config) as client:
            for at, id_ in enumerate(ids):
                await fail(client, guardian, id_, f"q{at}")

    def resume(queue: str) -> None:
        async def go() -> None:
            async with app.connect(cluster.config) as client:
                assert await client.resume(f"w-{queue[1:]}")

        asyncio.run(go())

    async def check() -> None:
        async with app.connect(cluster.config) as client:
            for id_ in ids:
                await finish(client, id_)

    asyncio.run(fail_all())
    mend(cluster.ledger)
    kill_at(cluster, points, resume, "--park-after", "0.1", app=CLOSING_APP)
    with cluster.worker("--park-after", "0.1", app=CLOSING_APP):
        asyncio.run(check())
        cluster.certify(ids)


CASES: list[tuple[Any, str, Moment, bool]] = [
    (workflow, name, when, dies)
    for workflow, name in ((closes_one, "child"), (sync_closes_one, "child"), (waits_for_one, "sleeper-1"))
    for when in ("before", "after")
    for dies in (True, False)
]


def test_a_child_that_is_just_being_started_when_its_parent_is_terminated(
    make_cluster: Callable[..., TestCluster], seed: int, full: bool
) -> None:
    """On another shard; the executor that starts it goes on, or dies. However that comes out, it is cancelled."""
    for workflow, name, when, dies in CASES if full else random.Random(seed).sample(CASES, 1):
        cluster = make_cluster(2)
        parent = next(id_ for id_ in cluster.ids_on(1, 100) if cluster.shard_of(f"{id_}/{name}") == 2)

        async def ask(
            terminate: bool, c: TestCluster = cluster, parent: str = parent, workflow: Any = workflow
        ) -> None:
            async with app.connect(c.config) as client:
                await (client.terminate(parent) if terminate else client.start(workflow.bind(), id=parent))

        def ended(c: TestCluster = cluster, parent: str = parent, name: str = name) -> bool:
            return c.statuses() == {parent: Status.CANCELLED, f"{parent}/{name}": Status.CANCELLED}

        with Proxy(cluster.direct[1]) as proxy:
            with cluster.through(cluster.direct[0], proxy.dsn).worker(app=CLOSING_APP) as victim:
                wait_until(lambda c=cluster: bool(c.leases(1) and c.leases(2)), "the leases")  # type: ignore[misc]
                held = proxy.hold(COMMIT, when=when, within=r"insert into wf_\d+\.workflow")
                asyncio.run(ask(terminate=False))
                held.wait()
                asyncio.run(ask(terminate=True))
                if dies:
                    victim.kill()
                proxy.release()
                if not dies:
                    wait_until(ended, "the end of both", interval=0.1)
            if dies:
                with cluster.worker(app=CLOSING_APP):
                    wait_until(ended, "the end of both", interval=0.1)
                    cluster.certify([parent])
