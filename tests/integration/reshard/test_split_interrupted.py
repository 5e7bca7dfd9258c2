"""I7 when a split is cut off, as far as it differs from a move (the rest is in ``test_interrupted``): the coordinator
killed at every change of state, its shard killed.

The slot is whole, or it is in two; nothing is between. Whoever comes finishes the split, or takes it back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from sharded_wf.dev import EmbeddedServer
from sharded_wf.errors import MoveRefused, ShardUnavailable
from sharded_wf.reshard.coordinator import Progress
from sharded_wf.reshard.fleet import Wish, driver, new_move, unfinished_moves
from sharded_wf.routing import children_of
from tests.integration.reshard.test_interrupted import SPLIT, chosen, fill, finish, killed_at, leftovers, settle
from tests.integration.reshard.test_moves import homes, move
from tests.integration.reshard.test_splits import check_slots
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, sleeper

STATES = (
    "planned", "advancing to copying", "copying", "following", "verifying", "advancing to draining", "draining",
    "advancing to live", "live", "told", "cleaned",
)  # fmt: skip
HERE = Wish(0, "pg1", "pg1")


def halves_of(cluster: TestCluster, *slots: int) -> None:
    """These slots are live, on pg1, instead of slot 0; and nothing is left of how that came to be."""
    lives = homes(cluster)
    assert lives.keys() - set(range(1, 6)) == set(slots)
    assert all(shards == [1] for slot, shards in lives.items() if slot in slots)
    assert (leftovers(cluster), unfinished_moves(cluster.config)) == ([], [])


@pytest.mark.parametrize("part", range(3))
def test_i7_a_coordinator_is_killed_and_the_split_is_finished(
    two_shards: TestCluster, seed: int, full: bool, part: int
) -> None:
    ids = fill(two_shards)
    for state in chosen(STATES[part::3], seed, full=full, count=1):
        lives = homes(two_shards)
        slot = min(slot for slot in lives if lives[slot] == [1])
        whole, split = set(lives), lives.keys() - {slot} | set(children_of(slot, 6))
        killed_at(two_shards, state, target="pg1")
        assert set(homes(two_shards)) == (whole if state in SPLIT.before_live else split)
        settle(two_shards)
        assert set(homes(two_shards)) == split
        assert leftovers(two_shards) == []
    finish(two_shards, ids)
    check_slots(two_shards)


@pytest.mark.sampled
def test_i7_a_coordinator_is_killed_at_each_state_in_turn(two_shards: TestCluster, seed: int, full: bool) -> None:
    """Each goes on where the last one was killed, while workflows are started, run and end."""

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            ids: list[str] = []
            for number, state in enumerate(sorted(chosen(STATES[:-1], seed, full=full, count=5), key=STATES.index)):
                handles = await client.start_many((f"c{number}-{n}", chain.bind(2)) for n in range(40))
                handles.append(await client.start(sleeper.bind(1.0), id=f"s{number}"))
                ids += [handle.id for handle in handles]
                await asyncio.to_thread(killed_at, two_shards, state, target="pg1")
            await asyncio.to_thread(settle, two_shards)
            async with asyncio.timeout(60):
                await asyncio.gather(*(client.get_handle(id_).result() for id_ in ids))
            await asyncio.to_thread(two_shards.certify, ids, timeout=30)

    asyncio.run(go())
    halves_of(two_shards, 6, 12)
    check_slots(two_shards)


def test_i7_what_is_split_is_not_undone(two_shards: TestCluster) -> None:
    killed_at(two_shards, "live", target="pg1")
    (hanging,) = unfinished_moves(two_shards.config)
    assert hanging.live
    with pytest.raises(MoveRefused, match="is split already"):
        driver(two_shards.config, hanging.move).undo()
    move(two_shards, (6, "pg2"))  # what hangs concerns slot 0 alone, and that is there no more
    settle(two_shards)
    assert (homes(two_shards)[6], homes(two_shards)[12], leftovers(two_shards)) == ([2], [1], [])


def test_i7_the_shard_is_killed(
    make_cluster: Callable[..., TestCluster],
    databases: Callable[[int], list[str]],
    server_factory: Callable[..., EmbeddedServer],
    seed: int,
) -> None:
    server = server_factory()
    cluster = make_cluster(dsns=[server.create_database("away"), *databases(1)])
    ids = fill(cluster)
    state = random.Random(seed).choice(["copying", "draining", "live"])

    def kill(progress: Progress) -> None:
        if progress.phase == state:
            server.kill()

    split = driver(cluster.config, new_move(cluster.config, HERE), kill)
    if state == "live":  # it is cleaned up later; and the other shard knows
        done = split.run()
        assert (done.cleaned, done.untold) == (False, ("pg1",))
    else:
        with pytest.raises(ShardUnavailable):
            split.run()
    server.start()
    settle(cluster)
    halves_of(cluster, 6, 12)
    finish(cluster, ids)
