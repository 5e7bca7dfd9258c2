"""I7 and I8 when a server freezes, or the network falls silent, in the middle of a move: no answer, and no error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.dev import EmbeddedServer
from sharded_wf.errors import ShardUnavailable
from sharded_wf.postgres.connect import connection
from sharded_wf.reshard import pulse
from sharded_wf.reshard.coordinator import Progress
from sharded_wf.reshard.copying import Copier
from sharded_wf.reshard.cutover import Cutover
from sharded_wf.reshard.fleet import driver, new_move
from tests.integration.reshard.conftest import Apart
from tests.integration.reshard.test_interrupted import MOVE, SPLIT, Kind, chosen, fill, finish, settle
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
        patch.setattr(pulse, "MOVE_SILENCE_SECONDS", START_SECONDS + 2.0)
        through = two_shards.through(two_shards.direct[0], proxy.dsn)
        moved = threads.submit(driver(through.config, new_move(two_shards.config, MOVE.wish)).run)
        wait_until(lambda: bool(held), "the switch begins")
        held[0].wait()
        asyncio.run(start())
        assert not moved.done()
        with pytest.raises(ShardUnavailable, match=r"'pg2' .*has not answered for 8 s"):
            moved.result(30)
    assert homes(two_shards)[0] == [1]
    settle(two_shards)
    MOVE.check_done(two_shards)
    finish(two_shards, [*ids, late])


def test_i7_i8_a_server_freezes_while_a_slot_is_copied(
    apart: Apart, monkeypatch: pytest.MonkeyPatch, seed: int, full: bool
) -> None:
    """The command ends, says who does not answer and what to do, and that is all there is to do."""
    for case in chosen(("source of a move", "target of a move", "shard of a split"), seed, full=full, count=1):
        victim, kind = "pg2" if case.startswith("target") else "pg1", SPLIT if case.endswith("split") else MOVE
        with monkeypatch.context() as patch:
            patch.setattr(pulse, "MOVE_SILENCE_SECONDS", 1.5)
            patch.setattr(pulse, "MOVE_BEAT_SECONDS", 0.2)
            a_server_freezes(*apart(victim), victim, kind)


def a_server_freezes(server: EmbeddedServer, cluster: TestCluster, victim: str, kind: Kind) -> None:
    ids = fill(cluster)
    begun = 0.0

    def freeze(progress: Progress) -> None:
        nonlocal begun
        if progress.phase == "copying" and progress.rows:
            server.pause()
            begun = time.monotonic()

    try:
        with pytest.raises(ShardUnavailable) as raised:
            driver(cluster.config, new_move(cluster.config, kind.wish), freeze).run()
        assert time.monotonic() - begun < 6.0
    finally:
        server.resume()
    command = "split" if kind is SPLIT else "move"
    assert raised.value.shard == victim
    assert raised.value.reason == (
        "it has not answered for 1.5 s: its server, its machine or the network hangs. Nothing is lost. When "
        f"{victim!r} answers again, run: sharded-wf shards {command} --resume 0"
    )
    assert homes(cluster)[0] == [1]
    settle(cluster)
    kind.check_done(cluster)
    finish(cluster, ids)


def test_i8_a_slow_server_is_waited_for(two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a statement takes, and however long the coordinator rests. One that is never answered, though the
    server has done with it, ends."""
    monkeypatch.setattr(pulse, "MOVE_SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(pulse, "MOVE_BEAT_SECONDS", 0.1)
    with (
        Proxy(two_shards.direct[0]) as proxy,
        connection(proxy.dsn, purpose="slow", deadline_seconds=None) as conn,
        pulse.pulse_of(proxy.dsn, conn, "slow") as felt,
    ):
        conn.execute("select pg_sleep(2)")
        conn.execute("begin")
        idle = "select 1 from pg_stat_activity where pid = %s and clock_timestamp() - state_change > '1.5 s'"
        wait_until(lambda: two_shards.ask(idle, 1, conn.info.backend_pid) != [], "it has rested for long")
        lost = proxy.hold("lost", when="after")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 'lost'")
        lost.cancel()
        assert "has not answered for 1 s" in str(felt.stopped)
