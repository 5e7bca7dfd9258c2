"""I7: a slot is split in two while it is in use; no workflow is in both halves or in none, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from sharded_wf import Retention, WorkflowNotFound
from sharded_wf.client import Client, Handle
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ShardConfig
from sharded_wf.errors import ClusterMismatch, MoveBlocked, MoveRefused
from sharded_wf.reshard import coordinator, copying, fleet
from sharded_wf.reshard import plan as planning
from sharded_wf.reshard import verify as verifying
from sharded_wf.reshard.checkup import verify_slot
from sharded_wf.reshard.coordinator import Moved, Progress
from sharded_wf.reshard.fleet import check_splits, check_wishes, driver, move_all, unfinished_moves
from sharded_wf.reshard.tables import ROUTED_BY
from sharded_wf.routing import children_of, hash_of, remainder_of, width_of
from tests.integration.reshard.test_moves import contents, fill_every_table, homes, load, move
from tests.support.cluster import TestCluster
from tests.support.flows import app, blocking_chain, chain, echo, inbox, noted_inbox, outbox, parent
from tests.support.processes import until


def split(cluster: TestCluster, *slots: int, **options: Any) -> list[Moved]:
    """Split slots; fails with the first failure."""
    done, failed = move_all(cluster.config, check_splits(cluster.config, slots), **options)
    for error in failed.values():
        raise error
    return done


def check_slots(cluster: TestCluster) -> None:
    """Every row lies in the slot of its workflow, by the map that a new process reads."""
    shard_map = load_map(cluster.config).shard_map
    live = {slot: f"pg{shards[0]}" for slot, shards in homes(cluster).items() if len(shards) == 1}
    assert live == shard_map.placement
    rows = cluster.rows()
    for table in (rows.workflow, rows.ready, rows.step, rows.message, rows.wake, rows.timer, rows.failed, rows.attempt):
        for row in table:
            slot = shard_map.slot_of(row.get("workflow_id") or row["id"])
            assert row["slot"].endswith(f"wf_{slot:04d}"), row


def test_i7_slots_are_split_and_moved_under_load(two_shards: TestCluster, seed: int) -> None:
    """On both shards at once, one of them twice; a half goes to the other shard meanwhile."""

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            stop = asyncio.Event()
            loading = asyncio.create_task(load(client, stop, seed))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(split, two_shards, 0, 1)
            await asyncio.to_thread(split, two_shards, 6, 3)
            await asyncio.to_thread(move, two_shards, (12, "pg2"))
            assert not loading.done()
            stop.set()
            handles = await loading
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in handles], timeout=30)
            assert client._shards.map == load_map(two_shards.config).shard_map

    asyncio.run(go())
    assert sorted(homes(two_shards)) == [2, 4, 5, 7, 9, 12, 13, 15, 18, 30]
    check_slots(two_shards)


@pytest.mark.parametrize("attempt", range(2))
def test_i7_every_row_of_every_table_is_in_one_half(
    cluster: TestCluster, seed: int, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    """Whatever the tables are, and wherever a chunk ends."""
    chance = random.Random(seed + attempt)
    for module in (copying, verifying):
        monkeypatch.setattr(module, "MOVE_CHUNK_ROWS", chance.choice([1, 2, 7]))
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        fill_every_table(conn, "wf_0000", chance)
        conn.execute("delete from wf_0000.claim")
        before = contents(cluster.direct[0], "wf_0000")
        (done,) = split(cluster, 0, pace=0.0)
        assert done.into == (6, 12)
        assert done.rows == sum(map(len, before.values()))
        halves = [contents(cluster.direct[0], schema) for schema in ("wf_0006", "wf_0012")]
        assert {table: sorted(halves[0][table] + halves[1][table]) for table in before} == before
        for table in before.keys() - {"claim"}:
            column = ROUTED_BY.get(table, "workflow_id")
            for schema, remainder in (("wf_0006", 0), ("wf_0012", 6)):
                ids = conn.execute(f"select {column} from {schema}.{table}".encode()).fetchall()
                assert {hash_of(id_) // 6 % 2 * 6 for (id_,) in ids} <= {(remainder - hash_of("") % 6) % 12} or ids


def in_halves(cluster: TestCluster, slot: int, count: int, prefix: str = "w") -> list[str]:
    """IDs of workflows in this slot, in turn of the one half and of the other that it will be split into."""
    base = load_map(cluster.config).shard_map.base
    found: tuple[list[str], list[str]] = ([], [])
    for number in range(100_000):
        hashed = hash_of(f"{prefix}-{number}")
        if hashed % width_of(slot, base) == remainder_of(slot, base):
            found[hashed // width_of(slot, base) % 2].append(f"{prefix}-{number}")
            if min(map(len, found)) * 2 >= count:
                break
    return [id_ for pair in zip(*found, strict=False) for id_ in pair][:count]


CALLS = ("start", "start_many", "send", "signal", "describe", "history", "cancel", "list", "result", "start_in")


@pytest.mark.parametrize("half", range(2))
def test_i7_every_call_of_a_client_with_an_old_map(
    make_cluster: Callable[..., TestCluster], seed: int, full: bool, half: int
) -> None:
    """The client is idle while its slot is split, and told by nobody: each kind of call finds the half. (A cluster of
    one slot, which is split again for each call.)"""
    cluster = make_cluster(1, slots=1)
    calls = CALLS if full else random.Random(seed).sample(CALLS, len(CALLS))[half::2]

    async def go() -> None:
        slot = 0
        async with app.executor(cluster.config):
            for call in calls:
                id_ = in_halves(cluster, slot, 2, call)[half]
                async with app.connect(cluster.config) as client:
                    handle = await client.start(inbox.bind(1), id=id_)
                    await handle.describe()
                    assert client.locate(id_)[0] == slot
                    await asyncio.to_thread(split, cluster, slot)
                    slot = children_of(slot, 1)[half]
                    await one_call(client, cluster, call, id_)
                    assert client.locate(id_)[0] == slot

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


def test_i7_parents_and_children_in_two_halves(cluster: TestCluster, seed: int) -> None:
    """Outcomes of children, and messages, that cross the split: into the mailbox next door, or by the outbox."""

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.05):
            handles: list[Handle[Any]] = []
            for number in range(10):
                handles.append(await client.start(parent.bind(3, 1), id=f"p{number}"))
                handles.append(await client.start(noted_inbox.bind(3), id=f"r{number}"))
                handles.append(await client.start(outbox.bind([f"r{number}"], 3), id=f"s{number}"))
            await asyncio.to_thread(split, cluster, *random.Random(seed).sample(range(6), 4))
            async with asyncio.timeout(40):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(cluster.certify, [handle.id for handle in handles])

    asyncio.run(go())
    check_slots(cluster)


def test_i4_an_executor_that_could_not_listen_writes_nothing_to_a_half(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop is blocked by a user's code (its lease is kept) while the slot is split. The workflow is given back for
    it, and done by another; what it wants to save then meets no table, and it goes on with the new slots."""
    ids = in_halves(cluster, 0, 2)
    monkeypatch.setattr(coordinator, "MOVE_DRAIN_SECONDS", 0.5)
    with cluster.worker("--concurrency", "5") as blocked:

        async def go() -> None:
            async with app.connect(cluster.config) as client:
                handles = [await client.start(blocking_chain.bind(1, 5.0), id=id_) for id_ in ids]
                await until(lambda: len(cluster.bodies()) >= 1, "the blocking step")
                leases = set(cluster.leases())
                await asyncio.to_thread(split, cluster, 0)
                assert cluster.ask("select count(*) from wf_control.departure") == [(0,)]
                for schema in ("wf_0006", "wf_0012"):
                    rows = cluster.ask(f"select status, claim_id, deaths from {schema}.workflow")
                    assert rows == [(0, None, 0)]  # given back for it, and nobody is blamed
                assert leases <= set(cluster.leases())
                async with app.executor(cluster.config):
                    assert await asyncio.gather(*(handle.result(60) for handle in handles)) == [1, 1]
                    await asyncio.to_thread(cluster.certify, ids, zombies={blocked.pid}, timeout=30)
                late = await client.start(chain.bind(1), id=f"{{{ids[0]}}}/late")
                assert await late.result(30) == 1  # by the one that was blocked

        asyncio.run(go())


def test_a_copy_that_differs_is_not_switched(cluster: TestCluster, seed: int) -> None:
    """One row of a half is not as it should be: the comparison finds it, and the slot stays whole."""
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        fill_every_table(conn, "wf_0000", random.Random(seed))

        def spoil(progress: Progress) -> None:
            if progress.phase == "following":
                conn.execute("update wf_0012_incoming_2.workflow set queue = queue || 'x'")

        with pytest.raises(MoveBlocked, match=r"differs from it: workflow"):
            split(cluster, 0, report=spoil)
    assert homes(cluster)[0] == [1]
    found = verify_slot(cluster.config, 0)
    assert (found.well, [check.table for check in found.checks if not check.same]) == (False, ["workflow"])
    (hanging,) = unfinished_moves(cluster.config)
    driver(cluster.config, hanging.move).undo()
    assert unfinished_moves(cluster.config) == []
    split(cluster, 0)
    assert verify_slot(cluster.config, 6).well


def test_what_can_not_be_split_is_refused(make_cluster: Callable[..., TestCluster]) -> None:
    cluster = make_cluster(1, slots=2)
    split(cluster, 0)
    for slot, message in ((0, "was split; what it held is in 2 and 4"), (7, "there is no slot 7"), (-1, "no slot -1")):
        with pytest.raises(MoveRefused, match=message):
            check_splits(cluster.config, [slot])
        with pytest.raises(MoveRefused, match=message):
            check_wishes(cluster.config, [(slot, "pg1")])
        with pytest.raises(MoveRefused, match=message):
            verify_slot(cluster.config, slot)


def test_a_slot_is_split_until_its_share_is_too_small(
    make_cluster: Callable[..., TestCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SLOTS_MAX", 4)
    cluster = make_cluster(1, slots=2)
    split(cluster, 0)
    with pytest.raises(MoveRefused, match="a 4th of all workflows, and less than a 4th is no slot"):
        check_splits(cluster.config, [2])


def test_a_cluster_with_split_slots_grows(two_shards: TestCluster, databases: Callable[[int], list[str]]) -> None:
    """`init` says what there is, a shard that joins learns the map, slots are dealt out, and a shard that was not told
    of a split does not mislead anybody."""
    split(two_shards, 0, 1)
    with psycopg.connect(two_shards.direct[1], autocommit=True) as conn:
        conn.execute("delete from wf_control.shard_map where slot in (6, 12)")
    move(two_shards, (12, "pg2"))
    config = two_shards.config
    placed = load_map(config).shard_map.placement
    assert placed == {2: "pg1", 3: "pg2", 4: "pg1", 5: "pg2", 6: "pg1", 7: "pg2", 12: "pg2", 13: "pg2"}
    alone = replace(config, shards=(replace(config.shards[0], dsn="host=127.0.0.1 port=1"), config.shards[1]))
    assert load_map(alone).shard_map.placement == placed  # slot 6 lies where slot 0 lay
    grown = replace(config, shards=(*config.shards, ShardConfig("pg3", databases(1)[0])))
    made = init_cluster(grown)
    assert (made.joined, made.shard_map.slots) == (("pg3",), 8)
    with pytest.raises(ClusterMismatch, match="made with 6 slots, not 8"):
        init_cluster(grown, slots=8)
    wanted = planning.rebalance(placed, {"pg1": 1, "pg2": 1, "pg3": 1})
    done, failed = move_all(grown, check_wishes(grown, wanted))
    assert (failed, len(done)) == ({}, len(wanted))
    shards = list(load_map(grown).shard_map.placement.values())
    assert sorted(shards.count(shard) for shard in set(shards)) == [2, 3, 3]


def test_retention_walks_over_the_halves(cluster: TestCluster) -> None:
    ids = in_halves(cluster, 0, 4)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, retention=Retention(3600)):
            handles = await client.start_many((id_, chain.bind(1)) for id_ in ids)
            await asyncio.gather(*(handle.result(20) for handle in handles))
            await asyncio.to_thread(split, cluster, 0)
            with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
                for schema in ("wf_0006", "wf_0012"):
                    conn.execute(
                        f"update {schema}.workflow set created_at = created_at - interval '2 hours', "
                        "completed_at = now() - interval '2 hours'".encode()
                    )
            await until(lambda: not cluster.statuses(), "removal")

    asyncio.run(go())
