"""I7: a slot lives on one shard, and moving it under load loses and duplicates nothing."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg

from sharded_wf.client import Client, Handle
from sharded_wf.cluster.directory import load_map
from sharded_wf.reshard.fleet import check_wishes, move_all
from sharded_wf.reshard.move import Moved
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, noted_inbox, outbox, parent, sleeper


def move(cluster: TestCluster, *wishes: tuple[int, str], **options: Any) -> list[Moved]:
    """Move slots; fails with the first failure."""
    done, failed = move_all(cluster.config, check_wishes(cluster.config, wishes), **options)
    for error in failed.values():
        raise error
    return done


def homes(cluster: TestCluster) -> dict[int, list[int]]:
    """Which shards hold each slot live, as the slots' own fences say."""
    found: dict[int, list[int]] = {}
    for number, dsn in enumerate(cluster.direct, 1):
        with psycopg.connect(dsn, autocommit=True) as conn:
            for (name,) in conn.execute("select nspname from pg_namespace where nspname ~ '^wf_[0-9]{4,}$'").fetchall():
                (fence,) = conn.execute(f"select slot, live from {name}.fence".encode()).fetchall()
                if fence[1]:
                    found.setdefault(fence[0], []).append(number)
    return found


async def load(client: Client, stop: asyncio.Event, seed: int) -> list[Handle[Any]]:
    """Start workflows of every kind, send to them, ask for them, until told to stop; no call may fail."""
    chance = random.Random(seed)
    handles: list[Handle[Any]] = []
    number = 0
    while not stop.is_set():
        number += 1
        receiver = await client.start(noted_inbox.bind(3), id=f"r{number}")
        handles.append(receiver)
        handles.append(await client.start(outbox.bind([receiver.id], 2), id=f"s{number}"))
        handles += await client.start_many((f"c{number}-{n}", chain.bind(2)) for n in range(4))
        handles.append(await client.start(sleeper.bind(chance.uniform(0.05, 2.5)), id=f"t{number}"))
        handles.append(await client.start(parent.bind(2, 1), id=f"p{number}"))
        await client.send(receiver.id, "mail", "hello")
        assert await client.describe(receiver.id) is not None
        await client.history(chance.choice(handles).id)
        if number % 5 == 0:
            await client.list(limit=20)
        await asyncio.sleep(0.05)
    return handles


def test_i7_slots_move_back_and_forth_under_load(two_shards: TestCluster, seed: int) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            stop = asyncio.Event()
            loading = asyncio.create_task(load(client, stop, seed))
            await asyncio.sleep(0.5)
            for target in ("pg2", "pg1"):
                await asyncio.to_thread(move, two_shards, (0, target), (2, target))
                assert not loading.done()
            await asyncio.to_thread(move, two_shards, (1, "pg1"))
            stop.set()
            handles = await loading
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in handles], timeout=30)

    asyncio.run(go())
    assert homes(two_shards) == {0: [1], 1: [1], 2: [1], 3: [2], 4: [1], 5: [2]}
    assert load_map(two_shards.config).shard_map.placement == ("pg1", "pg1", "pg1", "pg2", "pg1", "pg2")
