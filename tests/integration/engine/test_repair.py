"""Resume and fork: what was finished is kept, what failed runs again, wherever the executor dies meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from sharded_wf import (
    App,
    Client,
    Failed,
    IdConflict,
    NonDeterminismError,
    Repaired,
    Status,
    StepNotFound,
    WorkflowCancelled,
    WorkflowNotFound,
    attr,
    connect_blocking,
    receive,
)
from sharded_wf.cluster.directory import load_map
from sharded_wf.model.history import EntryKind
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, inbox
from tests.support.processes import wait_until
from tests.support.repair_flows import (
    Refused,
    fragile_chain,
    fragile_fan,
    fragile_inbox,
    fragile_parent,
    fragile_post,
    hasty,
    mend,
    sync_fragile,
)

REPAIR_APP = "tests.support.repair_flows:app"


@asynccontextmanager
async def running(cluster: TestCluster, **options: float) -> AsyncGenerator[Client]:
    async with app.executor(cluster.config, **options), app.connect(cluster.config) as client:
        yield client


def runs(cluster: TestCluster) -> Counter[tuple[str, int]]:
    return Counter((workflow, number) for workflow, _, number, _, _ in cluster.bodies())


def test_a_resume_keeps_what_was_finished_and_runs_again_what_failed(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster) as client:
            handle = await client.start(fragile_chain.bind(2, 2), id="w")
            with pytest.raises(RuntimeError, match="the chain broke"):
                await handle.result(30)
            assert await client.resume("w")
            with pytest.raises(RuntimeError):  # nothing was mended yet
                await handle.result(30)
            await asyncio.to_thread(mend, cluster.ledger)
            assert await client.resume("w")
            assert await handle.result(30) == 5
            assert not await client.resume("w")
            with pytest.raises(WorkflowNotFound):
                await client.resume("nobody")
            kinds = Counter(entry.kind for entry in (await client.history("w")).entries)
            assert kinds[EntryKind.RESUME] == 2
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())
    assert [runs(cluster)["w", number] for number in range(5)] == [1, 1, 3, 1, 1]


def test_what_ran_beside_the_failure_is_kept_and_what_came_of_it_is_put_by(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster) as client:
            handle = await client.start(fragile_fan.bind(4), id="w")
            with pytest.raises(Refused):
                await handle.result(30)
            await asyncio.to_thread(mend, cluster.ledger)
            await client.resume("w")
            assert await handle.result(30) == 4
            await asyncio.to_thread(cluster.certify, ["w"])
            # And the history replays: a fork from its very end runs nothing again.
            count = len((await client.history("w")).entries)
            assert await (await client.fork("w", from_step=count + 1)).result(30) == 4

    asyncio.run(go())
    counted = runs(cluster)
    assert {number: counted["w", number] for number in (0, 1, 2, 3, 101, 102, 103, 1000, 2000)} == {
        0: 2, 1: 1, 2: 1, 3: 1, 101: 1, 102: 1, 103: 1, 1000: 1, 2000: 1,
    }  # fmt: skip
    assert sum(counted.values()) == 10


def test_a_timeout_begins_anew(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster) as client:
            handle = await client.start(hasty.bind())
            with pytest.raises(TimeoutError):
                await handle.result(30)
            await asyncio.to_thread(mend, cluster.ledger)
            await client.resume(handle.id)
            assert await handle.result(30)

    asyncio.run(go())


def test_def_workflows_are_resumed(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster) as client:
            handle = await client.start(sync_fragile.bind("x"))
            with pytest.raises(Refused):
                await handle.result(30)
            await asyncio.to_thread(mend, cluster.ledger)
            await client.resume(handle.id)
            assert await handle.result(30) == "x"

    asyncio.run(go())


def test_a_cancelled_workflow_goes_on(cluster: TestCluster) -> None:
    async def go() -> None:
        async with running(cluster) as client:
            waiting = await client.start(inbox.bind(2), id="w")
            await client.send("w", "mail", "one")
            await asyncio.to_thread(
                wait_until, lambda: len(cluster.rows().step) == 1 and not cluster.rows().message, "the first message"
            )
            await client.cancel("w")
            with pytest.raises(Exception, match="cancelled"):
                await waiting.result(30)
            await client.send("w", "mail", "two")  # waits for whatever may come
            assert await client.resume("w")
            assert await waiting.result(30) == ["one", "two"]
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_one_that_was_cancelled_before_it_ran_runs(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            handle = await client.start(chain.bind(1), id="w")
            await client.cancel("w")
            assert await handle.status() is Status.CANCELLED
            assert await client.resume("w")
            async with app.executor(cluster.config):
                assert await handle.result(30) == 1
                await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_a_parent_is_resumed_with_its_child_on_another_shard(two_shards: TestCluster) -> None:
    shard_map = load_map(two_shards.config).shard_map
    parent = next(
        id_ for id_ in two_shards.ids_on(1, 50) if shard_map.shard_of(f"{id_}/fragile_chain-1") == two_shards.name(2)
    )

    async def go() -> None:
        async with running(two_shards) as client:
            handle = await client.start(fragile_parent.bind(1, 1), id=parent)
            with pytest.raises(RuntimeError):
                await handle.result(30)
            await asyncio.to_thread(mend, two_shards.ledger)
            await client.resume(parent)
            assert await handle.result(30) == 3
            await asyncio.to_thread(two_shards.certify, [parent])

    asyncio.run(go())
    assert runs(two_shards)[f"{parent}/fragile_chain-1", 0] == 1
    assert runs(two_shards)[parent, 5000] == 1


def test_a_child_that_was_resumed_alone_tells_its_resumed_parent(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with running(two_shards) as client:
            handle = await client.start(fragile_parent.bind(1, 1), id="p")
            with pytest.raises(RuntimeError):
                await handle.result(30)
            await asyncio.to_thread(mend, two_shards.ledger)
            child = client.get_handle("p/fragile_chain-1", int)
            await client.resume(child.id)
            assert await child.result(30) == 3
            await client.resume("p")
            assert await handle.result(30) == 3

    asyncio.run(go())


def test_messages_after_a_resume_are_numbered_anew(two_shards: TestCluster) -> None:
    (receiver,) = two_shards.ids_on(1, 1, "r")
    (sender,) = two_shards.ids_on(2, 1, "s")

    async def go() -> None:
        async with running(two_shards) as client:
            inbound = await client.start(inbox.bind(3), id=receiver)
            outbound = await client.start(fragile_post.bind(receiver), id=sender)
            with pytest.raises(Refused):
                await outbound.result(30)
            await asyncio.to_thread(mend, two_shards.ledger)
            await client.resume(sender)
            await outbound.result(30)
            assert await inbound.result(30) == ["before", "clean-up", "after"]
            await asyncio.to_thread(two_shards.certify, [receiver, sender])

    asyncio.run(go())


def test_messages_sent_while_it_had_failed_are_received(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with running(two_shards) as client:
            handle = await client.start(fragile_inbox.bind(), id="w")
            await client.send("w", "mail", "one")
            with pytest.raises(Refused):
                await handle.result(30)
            await client.send("w", "mail", "two")
            await asyncio.to_thread(mend, two_shards.ledger)
            await client.resume("w")
            assert await handle.result(30) == ["one", "two"]

    asyncio.run(go())


def test_forks_begin_with_the_results_before_their_step(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with running(two_shards) as client:
            done = await client.start(chain.bind(4), id="w")
            await done.result(30)
            third = await client.fork("w", from_step=3, new_id="fork-3")
            again = await client.fork("w", from_step=3, new_id="fork-3")
            assert (third.created, again.created) == (True, False)
            named = await client.fork("w", from_step="note")
            assert [await handle.result(30) for handle in (third, named)] == [4, 4]
            for bad in (0, 6, "nothing"):
                with pytest.raises(StepNotFound):
                    await client.fork("w", from_step=bad)
            with pytest.raises(IdConflict):
                await client.fork("w", from_step=3, new_id="w")
            counted = await asyncio.to_thread(runs, two_shards)
            assert [counted["fork-3", number] for number in range(4)] == [0, 0, 1, 1]
            assert [counted[named.id, number] for number in range(4)] == [1, 1, 1, 1]

    asyncio.run(go())


def test_i2_two_resumes_at_once_make_one(make_cluster: Callable[..., TestCluster]) -> None:
    cluster = make_cluster(1)

    async def go() -> None:
        async with running(cluster) as client, app.connect(cluster.config) as other:
            handle = await client.start(fragile_chain.bind(0, 0), id="w")
            with pytest.raises(RuntimeError):
                await handle.result(30)
            await asyncio.to_thread(mend, cluster.ledger)
            answers = await asyncio.gather(client.resume("w"), other.resume("w"))
            assert sum(answers) == 1
            assert await handle.result(30) == 1
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_what_failed_of_code_that_changed_goes_on_with_the_old_code(cluster: TestCluster) -> None:
    old, new = App("changing"), App("changing")

    @old.workflow(name="order")
    async def first_order() -> list[str]:
        return [await first("a"), await receive("mail", str), await first("b")]

    @old.step(name="first")
    async def first(text: str) -> str:
        return text

    @new.workflow(name="order")
    async def second_order() -> list[str]:
        return [await second("a"), await receive("mail", str)]

    @new.step(name="second")
    async def second(text: str) -> str:
        return text

    async def go() -> None:
        async with old.connect(cluster.config) as client:
            async with old.executor(cluster.config, park_after=0.05):
                handle = await client.start(first_order.bind(), id="w")
                await asyncio.to_thread(wait_until, lambda: cluster.statuses()["w"] == 2, "the parking")
            async with new.executor(cluster.config):
                await client.send("w", "mail", "x")
                with pytest.raises(NonDeterminismError):
                    await handle.result(20)
            assert await client.resume("w")
            async with old.executor(cluster.config):
                assert await handle.result(20) == ["a", "x", "b"]
                await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_the_blocking_client(cluster: TestCluster) -> None:
    with cluster.worker(app=REPAIR_APP), connect_blocking(cluster.config) as client:
        handle = client.start(fragile_chain.bind(1, 0), id="w", attributes={"customer": "c-42"})
        with pytest.raises(RuntimeError):
            handle.result(20)
        wanted = Failed(name="engine/fragile_chain")
        assert client.resume_many(wanted, dry_run=True) == Repaired(1, 0)
        mend(cluster.ledger)
        assert client.fork_many(wanted, from_step=1) == Repaired(1, 1)
        assert client.get_handle("w-fork", int).result(20) == 2
        assert client.resume("w")
        assert handle.result(20) == 2
        assert client.fork("w", from_step=1, new_id="other").result(20) == 2
        assert client.attributes("w") == {"customer": "c-42"}
        assert [one.id for one in client.list(where=attr("customer") == "c-42")] == ["w"]
        for end in (client.cancel, client.terminate):
            waiting = client.start(inbox.bind(1))
            waiting.pause()
            client.unpause(waiting.id)
            end(waiting.id)
            with pytest.raises(WorkflowCancelled):
                waiting.result(20)
