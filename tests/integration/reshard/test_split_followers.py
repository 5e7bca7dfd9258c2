"""Clients and executors meet a split: whoever goes by the old map finds the halves, or writes nowhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import psycopg
import pytest

from sharded_wf import WorkflowNotFound
from sharded_wf.client import Client
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import ShardUnavailable, WorkflowTerminated
from sharded_wf.reshard import coordinator
from sharded_wf.routing import children_of
from tests.integration.reshard.test_splits import check_slots, in_halves, split
from tests.support.cluster import TestCluster
from tests.support.flows import app, blocking_gated, chain, echo, inbox
from tests.support.processes import until

CALLS = (
    "start", "start_many", "send", "signal", "describe", "history", "cancel", "terminate", "pause", "attributes",
    "resume", "fork", "list", "result", "start_in",
)  # fmt: skip


@pytest.mark.sampled
@pytest.mark.parametrize("half", range(2))
def test_i7_every_call_of_a_client_with_an_old_map(
    make_cluster: Callable[..., TestCluster], seed: int, full: bool, half: int
) -> None:
    """The client is idle while its slot is split, and told by nobody: each kind of call finds the half. (A cluster of
    two slots, which in turn are split again for each call.)"""
    cluster = make_cluster(1, slots=2)
    calls = CALLS if full else random.Random(seed).sample(CALLS, len(CALLS))[half::2]

    async def go() -> None:
        slots = [0, 1]
        async with app.executor(cluster.config):
            for number, call in enumerate(calls):
                slot = slots[number % 2]
                id_ = in_halves(cluster, slot, 2, call)[half]
                async with app.connect(cluster.config) as client:
                    handle = await client.start(inbox.bind(1), id=id_)
                    await handle.describe()
                    assert client.locate(id_)[0] == slot
                    await asyncio.to_thread(split, cluster, slot)
                    slots[number % 2] = children_of(slot, 2)[half]
                    await one_call(client, cluster, call, id_)
                    assert client.locate(id_)[0] == slots[number % 2]

    asyncio.run(go())
    check_slots(cluster)


async def one_call(client: Client, cluster: TestCluster, call: str, id_: str) -> None:
    """To a workflow that waits for one message, while the client takes it for one of a slot that is gone."""
    match call:
        case "start":
            assert not (await client.start(inbox.bind(1), id=id_)).created
        case "start_many":
            made = await client.start_many((f"{{{id_}}}/{n}", echo.bind("x")) for n in range(3))
            assert [await one.result(20) for one in made] == ["x"] * 3
        case "send":
            await client.send(id_, "mail", "hello")
            assert await client.get_handle(id_).result(20) == ["hello"]
        case "signal":
            assert not (await client.start(inbox.bind(1), id=id_, message=("mail", "hello"))).created
            assert await client.get_handle(id_).result(20) == ["hello"]
        case "describe":
            found = await client.describe(id_)
            assert found is not None
            assert found.id == id_
        case "history":
            assert (await client.history(id_)).entries == ()
        case "cancel":
            await client.cancel(id_)
        case "terminate":
            await client.terminate(id_)
            with pytest.raises(WorkflowTerminated):
                await client.get_handle(id_).result(20)
        case "pause":
            await client.pause(id_)
            await client.unpause(id_)
            await client.send(id_, "mail", "hello")
            assert await client.get_handle(id_).result(20) == ["hello"]
        case "attributes":
            assert await client.attributes(id_) == {}
        case "resume":
            assert not await client.resume(id_)
        case "fork":
            forked = await client.fork(id_, from_step=1, new_id=f"{{{id_}}}/fork")
            await client.send(forked.id, "mail", "hello")
            assert await forked.result(20) == ["hello"]
        case "list":
            assert id_ in {one.id for one in await client.list(limit=200)}
        case "result":
            waiting = asyncio.create_task(client.get_handle(id_).result(20))
            async with app.connect(cluster.config) as other:
                await other.send(id_, "mail", "late")
            assert await waiting == ["late"]
        case _:
            # The slot that it looks for is not in this database: executors carry it to the half.
            async with await psycopg.AsyncConnection.connect(cluster.direct[0]) as conn:
                await client.start_in(conn, echo.bind("x"), id=f"{{{id_}}}/in")
            assert cluster.ask("select count(*) from wf_control.request") in ([(1,)], [(0,)])
            await client.describe(id_)  # which finds the new map
            await until(lambda: f"{{{id_}}}/in" in cluster.statuses(), "the start")
            assert await client.get_handle(f"{{{id_}}}/in").result(20) == "x"


def test_i7_who_never_learns_of_a_split_writes_nowhere(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process whose code knows no splits, and can't read the new map."""

    async def learn_nothing(_: ShardSet) -> None:
        pass

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await asyncio.to_thread(split, cluster, 0)
            monkeypatch.setattr(ShardSet, "reload", learn_nothing)
            for id_ in in_halves(cluster, 0, 2):
                with pytest.raises(ShardUnavailable):
                    await client.start(echo.bind("x"), id=id_, wait_seconds=0.3)
                with pytest.raises(ShardUnavailable):
                    await client._shards.deliver([client.message_of(id_, "mail", "hello", None)], wait_seconds=0.3)

    asyncio.run(go())
    rows = cluster.rows()
    assert (rows.workflow, rows.ready, rows.message) == ([], [], [])


@pytest.mark.sampled
def test_i7_results_are_waited_for_across_splits(cluster: TestCluster) -> None:
    """Of workflows in both halves, by one client; and a second time in a half that is split again."""
    ids = in_halves(cluster, 0, 6)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            handles = [await client.start(inbox.bind(2), id=id_) for id_ in ids]
            waiting = [asyncio.create_task(handle.result(30)) for handle in handles for _ in range(2)]
            missing = asyncio.create_task(client.get_handle(in_halves(cluster, 0, 1, "none")[0]).result(30))
            for number, slot in enumerate((0, 6)):
                await asyncio.sleep(0)
                await asyncio.to_thread(split, cluster, slot)
                for id_ in ids:
                    await client.send(id_, "mail", str(number))
            assert await asyncio.gather(*waiting) == [["0", "1"]] * 12
            with pytest.raises(WorkflowNotFound):
                await missing
            await asyncio.to_thread(cluster.certify, ids)

    asyncio.run(go())
    check_slots(cluster)


@pytest.mark.sampled
def test_i4_an_executor_that_could_not_listen_writes_nothing_to_a_half(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop is blocked by a user's code (its lease is kept) while the slot is split. The workflow is given back for
    it, and done by another; what it wants to save then meets no table, and it goes on with the new slots."""
    ids = in_halves(cluster, 0, 2)
    monkeypatch.setattr(coordinator, "MOVE_DRAIN_SECONDS", 0.5)
    with cluster.closed_gate() as gate, cluster.worker("--concurrency", "5") as blocked:

        async def go() -> None:
            async with app.connect(cluster.config) as client:
                handles = [await client.start(blocking_gated.bind(), id=id_) for id_ in ids]
                await until(lambda: len(cluster.bodies()) >= 1, "the blocking step")
                leases = set(cluster.leases())
                await asyncio.to_thread(split, cluster, 0)
                assert cluster.ask("select count(*) from wf_control.departure") == [(0,)]
                for schema in ("wf_0006", "wf_0012"):
                    rows = cluster.ask(f"select status, claim_id, deaths from {schema}.workflow")
                    assert rows == [(0, None, 0)]  # given back for it, and nobody is blamed
                assert leases <= set(cluster.leases())
                gate.close()
                async with app.executor(cluster.config):
                    assert await asyncio.gather(*(handle.result(60) for handle in handles)) == [1, 1]
                    await asyncio.to_thread(cluster.certify, ids, zombies={blocked.pid}, timeout=30)
                late = await client.start(chain.bind(1), id=f"{{{ids[0]}}}/late")
                assert await late.result(30) == 1  # by the one that was blocked

        asyncio.run(go())
