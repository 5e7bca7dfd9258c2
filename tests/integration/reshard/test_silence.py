"""I7 and I8 when the network falls silent in the middle of a switch: no answer, and no error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.errors import ShardUnavailable
from sharded_wf.reshard import move as moving
from sharded_wf.reshard.copying import Copier
from sharded_wf.reshard.cutover import Cutover
from sharded_wf.reshard.fleet import driver, new_move
from tests.integration.reshard.test_interrupted import MOVE, fill, finish, settle
from tests.integration.reshard.test_moves import homes
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Proxy, Rule

START_SECONDS = 6.0
"""The source lets go of the slot some ``MOVE_IDLE_SECONDS`` after it heard of the coordinator last."""


def test_i7_i8_the_target_falls_silent_in_the_switch(two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source has the slot locked for it: it lets go long before the coordinator gives up."""
    ids = fill(two_shards)
    slot_of = load_map(two_shards.config).shard_map.slot_of
    late = next(id_ for id_ in two_shards.ids_on(1, 60, "late") if slot_of(id_) == 0)
    held: list[Rule] = []

    async def start() -> None:
        async with app.connect(two_shards.config) as client:
            await client.start(chain.bind(1), id=late, wait_seconds=START_SECONDS)

    retire = Cutover._retire
    with Proxy(two_shards.direct[1]) as proxy, ThreadPoolExecutor(1) as threads, monkeypatch.context() as patch:

        def retire_and_hold(self: Cutover, copier: Copier, then: Callable[[], None], seconds: float) -> float:
            held.append(proxy.hold(COMMIT, when="before"))
            return retire(self, copier, then, seconds)

        patch.setattr(Cutover, "_retire", retire_and_hold)
        patch.setattr(moving, "MOVE_CUTOVER_DEADLINE_SECONDS", START_SECONDS + 2.0)
        through = two_shards.through(two_shards.direct[0], proxy.dsn)
        moved = threads.submit(driver(through.config, new_move(two_shards.config, MOVE.wish)).run)
        wait_until(lambda: bool(held), "the switch begins")
        held[0].wait()
        asyncio.run(start())
        assert not moved.done()
        with pytest.raises(ShardUnavailable, match="pg"):
            moved.result(30)
    assert homes(two_shards)[0] == [1]
    settle(two_shards)
    MOVE.check_done(two_shards)
    finish(two_shards, [*ids, late])
