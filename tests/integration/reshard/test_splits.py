"""I7: a slot is split in two while it is in use; no workflow is in both halves or in none, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from sharded_wf import Retention
from sharded_wf.client import Handle, repair
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ShardConfig
from sharded_wf.errors import ClusterMismatch, MoveBlocked, MoveRefused
from sharded_wf.reshard import copying, fleet
from sharded_wf.reshard import plan as planning
from sharded_wf.reshard import verify as verifying
from sharded_wf.reshard.checkup import verify_slot
from sharded_wf.reshard.coordinator import Moved, Progress
from sharded_wf.reshard.fleet import check_splits, check_wishes, driver, move_all, unfinished_moves
from sharded_wf.reshard.tables import ROUTED_BY
from sharded_wf.routing import hash_of, remainder_of, width_of
from tests.integration.reshard.test_moves import contents, fill_every_table, homes, load, move
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, inbox, noted_inbox, outbox, parent
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


@pytest.mark.sampled
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


@pytest.mark.sampled
def test_a_copy_that_differs_is_not_switched(cluster: TestCluster, seed: int) -> None:
    """One row of a half is not as it should be: the comparison finds it, and the slot stays whole."""
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        fill_every_table(conn, "wf_0000", random.Random(seed))

        def spoil(progress: Progress) -> None:
            if progress.phase == "following":
                for half in ("wf_0006_incoming_2", "wf_0012_incoming_2"):  # all may be in one
                    conn.execute(f"update {half}.workflow set queue = queue || 'x'".encode())

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


@pytest.mark.sampled
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


def test_a_repair_in_bulk_goes_on_in_the_halves(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot is split, and one half again, between two of its pages: none is missed, none counted twice."""
    monkeypatch.setattr(repair, "REPAIR_PAGE_ROWS", 2)
    ids = in_halves(cluster, 0, 12)
    to_split = [0, 6]

    def split_meanwhile(_: repair.Repaired) -> None:
        if to_split:
            split(cluster, to_split.pop(0))

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            async with app.executor(cluster.config):
                handles = await client.start_many((id_, inbox.bind(1)) for id_ in ids)
                for handle in handles:
                    await handle.cancel()
                await asyncio.gather(*(handle.result(20) for handle in handles), return_exceptions=True)
            found = await client.resume_many(repair.Failed(), dry_run=True, progress=split_meanwhile)
            assert (found.matched, to_split) == (12, [])
            assert (await client.resume_many(repair.Failed())).done == 12

    asyncio.run(go())
    check_slots(cluster)


@pytest.mark.sampled
def test_retention_walks_over_the_halves(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in the halves grows old there."""
    monkeypatch.setattr("sharded_wf.retention.RETENTION_AGE_MIN_SECONDS", 1)
    monkeypatch.setattr("sharded_wf.maintenance.retention.RETENTION_LAG_PART", 3.0)  # none has not ended by then
    ids = in_halves(cluster, 0, 4)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, retention=Retention(2)):
            await asyncio.to_thread(split, cluster, 0)
            handles = await client.start_many((id_, chain.bind(1)) for id_ in ids)
            await asyncio.gather(*(handle.result(20) for handle in handles))
            await until(lambda: not cluster.statuses(), "removal")

    asyncio.run(go())
    assert sorted(homes(cluster)) == [1, 2, 3, 4, 5, 6, 12]
