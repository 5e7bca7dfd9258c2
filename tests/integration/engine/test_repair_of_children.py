"""Resume and fork meet children beside which their parent goes on, and compensations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from sharded_wf import Client, CompensationFailed, Failed, ResumeRefused, WorkflowCancelled, WorkflowTimedOut
from sharded_wf.clock import SystemClock
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.model.history import EntryKind
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import OUTCOME_TOPIC, Message, Outcome
from sharded_wf.routing import slot_schema
from sharded_wf.serialization import encode_outcome
from tests.support.cluster import TestCluster
from tests.support.flows import app
from tests.support.processes import wait_until
from tests.support.repair_flows import (
    Refused,
    fragile_saga,
    fragile_starter,
    mend,
    patient_starter,
    saga_ends,
    sync_fragile_starter,
    sync_saga_ends,
)

CLAIMS_COUNTED = 32_000
"""In sql/queries/claims.sql."""


@pytest.mark.parametrize("workflow", [fragile_starter, sync_fragile_starter], ids=["async", "def"])
def test_a_child_that_was_started_is_resumed_with_its_parent(two_shards: TestCluster, workflow: Any) -> None:
    """The parent, the child, and a fork that begins after the start: its child is its own."""
    shard_of = load_map(two_shards.config).shard_map.shard_of
    parent = next(id_ for id_ in two_shards.ids_on(1, 100) if shard_of(f"{id_}/fragile_leaf-1") == two_shards.name(2))

    async def go() -> None:
        async with (
            app.executor(two_shards.config, park_after=0.1),
            app.connect(two_shards.config) as client,
        ):
            handle = await client.start(workflow.bind(), id=parent)
            with pytest.raises(Refused):
                await handle.result(20)
            await asyncio.to_thread(mend, two_shards.ledger)
            last = (await client.history(parent)).entries[-1]
            assert last.kind is EntryKind.CHILD
            assert await client.resume(parent)
            assert await handle.result(20) == f"{parent}/fragile_leaf-1"
            assert two_shards.statuses()[f"{parent}/fragile_leaf-1"] == Status.SUCCEEDED
            await asyncio.to_thread(two_shards.certify, [parent])
            fork = await client.fork(parent, from_step=last.ordinal, new_id="fork")
            assert await fork.result(20) == f"{parent}/fragile_leaf-1", "what was recorded stays as it is"
            assert two_shards.statuses()["fork/fragile_leaf-1"] == Status.SUCCEEDED
            earlier = await client.fork(parent, from_step="fragile_leaf", new_id="named")
            assert await earlier.result(20) == "named/fragile_leaf-1", "a child is named by its function"

    asyncio.run(go())
    noted = [(workflow_id, number) for workflow_id, _, number, _, _ in two_shards.bodies()]
    assert noted.count((parent, 0)) == 1
    assert noted.count((f"{parent}/fragile_leaf-1", 1)) == 2


def test_a_parent_hears_no_outcome_that_its_child_had_before_they_were_resumed(two_shards: TestCluster) -> None:
    """The child's first failure is delivered again, as after a crash of who relayed it, while the parent waits, parked,
    for the child to run once more. It fails again: the parent hears that, and doesn't have it run a third time."""
    parent = next(id_ for id_ in two_shards.ids_on(1, 100) if two_shards.shard_of(f"{id_}/fragile_leaf-1") == 2)
    child = f"{parent}/fragile_leaf-1"

    def times() -> int:
        return sum(body[0] == child for body in two_shards.bodies())

    async def until(condition: Callable[[], bool], what: str) -> None:
        await asyncio.to_thread(wait_until, condition, what)

    async def redeliver(message: Message) -> None:
        shards = await ShardSet.open(two_shards.config)
        try:
            await shards.deliver([message], wait_seconds=10)
        finally:
            await shards.close()

    async def go(client: Client) -> None:
        def executor(queue: str) -> Any:
            return app.executor(two_shards.config, park_after=0.1, queues=[queue])

        async with executor("slow"), executor("default"):
            handle = await client.start(patient_starter.bind("slow"), id=parent)
            with pytest.raises(Refused):
                await handle.result(20)
        (row,) = [row for row in two_shards.rows().workflow if row["id"] == child]
        assert (row["claims"], times()) == (1, 1)
        failure = encode_outcome(Outcome(Status.FAILED, None, msgspec.json.encode(row["error"])))
        stale = Message(parent, OUTCOME_TOPIC, child, 1, failure, SystemClock().now_us())
        assert await client.resume(parent)
        await redeliver(stale)
        async with executor("default"):
            ready = {parent: Status.PARKED, child: Status.PENDING}
            await until(lambda: two_shards.statuses() == ready and not two_shards.rows().wake, "both wait")
            await redeliver(stale)
            await until(lambda: two_shards.statuses() == ready and not two_shards.rows().wake, "both wait still")
            async with executor("slow"):
                with pytest.raises(Refused):
                    await handle.result(20)
                assert times() == 2
                await asyncio.to_thread(mend, two_shards.ledger)
                await asyncio.to_thread(age, two_shards, child)
                assert await client.resume(parent)
                await redeliver(msgspec.structs.replace(stale, seq=CLAIMS_COUNTED))
                assert await handle.result(20)
                await asyncio.to_thread(two_shards.certify, [parent])
        assert times() == 3

    async def main() -> None:
        async with app.connect(two_shards.config) as client:
            await go(client)

    asyncio.run(main())


def age(cluster: TestCluster, child: str) -> None:
    """As if it had been claimed so often that claims are not counted any more."""
    schema = slot_schema(load_map(cluster.config).shard_map.slot_of(child))
    with psycopg.connect(cluster.direct[1], autocommit=True) as conn:
        query = sql.SQL("update {}.workflow set claims = %s where id = %s").format(sql.Identifier(schema))
        assert conn.execute(query, (CLAIMS_COUNTED, child)).rowcount == 1


def test_only_the_compensations_that_failed_are_made_again(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.executor(cluster.config), app.connect(cluster.config) as client:
            handle = await client.start(fragile_saga.bind(), id="w")
            with pytest.raises(CompensationFailed, match="2 of the compensations failed"):
                await handle.result(20)
            await asyncio.to_thread(mend, cluster.ledger)
            assert await client.resume("w")
            with pytest.raises(ValueError, match="on purpose"):
                await handle.result(20)
            await asyncio.to_thread(cluster.certify, ["w"])
            with pytest.raises(ResumeRefused, match="fork it from step 1,"):
                await client.resume("w")  # now all of it is undone

    asyncio.run(go())
    assert [body[2] for body in cluster.bodies()] == [1, 2, 3, -3, -2, -1, -3, -1]


@pytest.mark.parametrize("workflow", [saga_ends, sync_saga_ends], ids=["async", "def"])
def test_what_has_undone_its_work_is_forked_and_not_resumed(two_shards: TestCluster, workflow: Any) -> None:
    """However the saga came to its end: by an error, a request to cancel, its time; but not if the code went on."""
    ends = ("fails", "is cancelled", "has no time")

    async def go() -> None:
        async with app.executor(two_shards.config), app.connect(two_shards.config) as client:
            for end in ends:
                limit = 2.5 if end == "has no time" else None
                handle = await client.start(workflow.bind(end), id=end, timeout=limit)
                if end == "is cancelled":
                    await asyncio.to_thread(
                        wait_until, lambda: ("is cancelled", 2) in numbers(two_shards), "the last step"
                    )
                    await handle.cancel(cleanup=0)
                with pytest.raises((Refused, WorkflowCancelled, WorkflowTimedOut)):
                    await handle.result(20)
            later = await client.start(workflow.bind("goes on"), id="goes on")
            with pytest.raises(Refused):
                await later.result(20)
            wanted = Failed(name=workflow.name)
            assert (await client.resume_many(wanted, dry_run=True)).skipped == 3
            await asyncio.to_thread(mend, two_shards.ledger)
            for end in ends:
                with pytest.raises(ResumeRefused, match="fork it from step 2, where that work began"):
                    await client.resume(end)
            total = await client.resume_many(wanted)
            assert (total.matched, total.done, set(total.reasons)) == (4, 1, set(ends))
            assert await later.result(20) == "went on"
            forked = await client.fork("fails", from_step=2, new_id="again")
            assert await forked.result(20) == "done"

    asyncio.run(go())
    found = numbers(two_shards)
    assert [number for id_, number in found if id_ == "fails"] == [0, 1, 2, 5, -2, -1]
    assert [number for id_, number in found if id_ == "again"] == [1, 2, 5]


def numbers(cluster: TestCluster) -> list[tuple[str, int]]:
    return [(body[0], body[2]) for body in cluster.bodies()]
