"""I7: a slot is split in two while it is in use; no workflow is in both halves or in none, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.reshard import copying
from sharded_wf.reshard import verify as verifying
from sharded_wf.reshard.coordinator import Moved
from sharded_wf.reshard.fleet import check_splits, move_all
from sharded_wf.reshard.tables import ROUTED_BY
from sharded_wf.routing import hash_of
from tests.integration.reshard.test_moves import contents, fill_every_table, homes, load, move
from tests.support.cluster import TestCluster
from tests.support.flows import app


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


def test_i7_all_slots_are_split_under_load_and_move(two_shards: TestCluster, seed: int) -> None:
    """From 6 slots to 12, and some of them to the other shard meanwhile."""

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            stop = asyncio.Event()
            loading = asyncio.create_task(load(client, stop, seed))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(split, two_shards, *range(6))
            assert not loading.done()
            await asyncio.to_thread(move, two_shards, (6, "pg2"), (13, "pg1"))
            stop.set()
            handles = await loading
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in handles], timeout=30)
            assert client._shards.map == load_map(two_shards.config).shard_map

    asyncio.run(go())
    assert sorted(homes(two_shards)) == list(range(6, 18))
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
