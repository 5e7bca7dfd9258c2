"""I7 on Citus: its rebalancer moves rows, and slots are handed over after them; nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

import psycopg
import pytest

from sharded_wf import Client
from sharded_wf.cluster.citus import move_rows
from sharded_wf.cluster.directory import load_map
from sharded_wf.errors import MoveRefused
from sharded_wf.reshard.checkup import verify_slot
from sharded_wf.reshard.citus import CitusMover, astray, rebalancing
from sharded_wf.reshard.coordinator import Moved, Progress
from sharded_wf.reshard.fleet import check_wishes, driver, move_all, new_move, unfinished_moves
from tests.integration.reshard.test_moves import load
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain


@contextlib.contextmanager
def at_coordinator(cluster: TestCluster) -> Generator[psycopg.Connection[tuple[object, ...]]]:
    assert cluster.config.coordinator is not None
    with psycopg.connect(cluster.config.coordinator, autocommit=True, cursor_factory=psycopg.RawCursor) as conn:
        yield conn


def carry_out(cluster: TestCluster, *wanted: tuple[int, str]) -> list[Moved]:
    done, failed = move_all(cluster.config, check_wishes(cluster.config, wanted))
    for error in failed.values():
        raise error
    return done


def move_behind_our_back(cluster: TestCluster, slot: int, shard: int) -> None:
    """As Citus' rebalancer does when somebody else starts it."""
    with at_coordinator(cluster) as conn:
        move_rows(conn, slot, cluster.config.shards[shard - 1])


async def finish(client: Client, id_: str) -> None:
    handle = await client.start(chain.bind(2), id=id_)
    assert await handle.result(30) == 2


def placement(cluster: TestCluster) -> dict[int, str]:
    return dict(load_map(cluster.config).shard_map.placement)


def test_i7_slots_move_under_load_with_us_and_behind_our_back(two_shards: TestCluster, seed: int) -> None:
    first, second = two_shards.name(1), two_shards.name(2)
    before = placement(two_shards)
    there = [slot for slot, shard in before.items() if shard == first]
    ids = two_shards.ids_on(2, 1)
    back = load_map(two_shards.config).shard_map.slot_of(ids[0])

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            stop = asyncio.Event()
            loading = asyncio.create_task(load(client, stop, seed))
            await finish(client, f"{{{ids[0]}}}/before")
            await asyncio.to_thread(carry_out, two_shards, (there[0], second), (there[1], second))
            await asyncio.to_thread(carry_out, two_shards, (there[0], first))
            await asyncio.to_thread(move_behind_our_back, two_shards, back, 1)
            await finish(client, f"{{{ids[0]}}}/over the hop")
            assert not loading.done(), loading
            shard_map = load_map(two_shards.config).shard_map
            assert astray(two_shards.config, shard_map) == {back: first}
            assert "over a hop" in verify_slot(two_shards.config, back).verdict
            wanted = [one for one in rebalancing(two_shards.config, shard_map) if one[0] == back]
            await asyncio.to_thread(carry_out, two_shards, *wanted)
            await finish(client, f"{{{ids[0]}}}/after")
            stop.set()
            handles = await loading
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in handles], timeout=30)

    asyncio.run(go())
    assert placement(two_shards) == before | {there[1]: second, back: first}
    for slot in range(6):
        assert verify_slot(two_shards.config, slot).well
    assert not unfinished_moves(two_shards.config)


class _Cut(Exception):
    pass


PHASES = ("planned", "copying", "draining", "retired", "live", "told")


@pytest.mark.parametrize("number", range(2))
def test_i7_a_move_that_was_cut_off_anywhere_is_finished_or_undone(
    two_shards: TestCluster, seed: int, full: bool, number: int
) -> None:
    first, second = two_shards.name(1), two_shards.name(2)
    phases = PHASES if full else [PHASES[(seed + number * 3) % len(PHASES)]]
    (here,) = two_shards.ids_on(1, 1)
    slot = load_map(two_shards.config).shard_map.slot_of(here)

    def cut_at(phase: str) -> Any:
        def report(progress: Progress) -> None:
            if progress.phase == phase:
                raise _Cut

        return report

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            for at, phase in enumerate(phases):
                (wish,) = check_wishes(two_shards.config, [(slot, second)])
                with pytest.raises(_Cut):
                    await asyncio.to_thread(
                        CitusMover(two_shards.config, new_move(two_shards.config, wish), cut_at(phase)).run
                    )
                (hanging,) = unfinished_moves(two_shards.config)
                if phase in ("planned", "copying", "draining") and (at + number) % 2:
                    await asyncio.to_thread(driver(two_shards.config, hanging.move).undo)
                    assert placement(two_shards)[slot] == first
                else:
                    if phase == "retired":
                        with pytest.raises(MoveRefused, match="--resume"):
                            await asyncio.to_thread(driver(two_shards.config, hanging.move).undo)
                    await asyncio.to_thread(driver(two_shards.config, hanging.move).run)
                    assert placement(two_shards)[slot] == second
                assert not unfinished_moves(two_shards.config)
                assert verify_slot(two_shards.config, slot).well
                await finish(client, f"{{{here}}}/{phase}")
                if placement(two_shards)[slot] == second:
                    await asyncio.to_thread(carry_out, two_shards, (slot, first))
            await asyncio.to_thread(two_shards.certify)

    asyncio.run(go())
