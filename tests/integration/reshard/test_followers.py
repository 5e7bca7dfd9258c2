"""Executors and clients meet a move: those that were told, those that were not, and those that could not listen."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from sharded_wf import ShardUnavailable
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig
from sharded_wf.executor.moving import Moving
from sharded_wf.postgres.failures import moved_slot
from sharded_wf.reshard import coordinator
from sharded_wf.reshard.coordinator import Progress
from sharded_wf.reshard.fleet import Wish, new_move, resume_all, unfinished_moves
from sharded_wf.reshard.move import Mover
from tests.integration.reshard.test_interrupted import killed_at
from tests.integration.reshard.test_moves import homes, move
from tests.support.cluster import TestCluster
from tests.support.flows import app, blocking_gated, chain, echo, gated_chain, inbox, sleeper
from tests.support.processes import until


def in_slot(cluster: TestCluster, slot: int, count: int, prefix: str = "w") -> list[str]:
    """IDs of workflows in this slot."""
    from sharded_wf.cluster.directory import load_map

    shard_map = load_map(cluster.config).shard_map
    found = (f"{prefix}-{number}" for number in range(100_000))
    return [id_ for id_, _ in zip((id_ for id_ in found if shard_map.slot_of(id_) == slot), range(count), strict=False)]


@pytest.mark.sampled
def test_i7_every_call_of_a_client_with_an_old_map(two_shards: TestCluster) -> None:
    """The client is idle while the slot moves, and told by nobody: each kind of call finds the slot."""
    ids = in_slot(two_shards, 0, 12)

    async def go() -> None:
        async with app.executor(two_shards.config):
            for call in ("start", "start_many", "send", "describe", "history", "cancel", "list", "result", "refused"):
                id_ = ids.pop()
                async with app.connect(two_shards.config) as client:
                    handle = await client.start(inbox.bind(1), id=id_)
                    await handle.describe()
                    home = client.locate(id_)[1]
                    await asyncio.to_thread(move, two_shards, (0, "pg2" if home == "pg1" else "pg1"))
                    match call:
                        case "start":
                            assert not (await client.start(inbox.bind(1), id=id_)).created
                        case "start_many":
                            made = await client.start_many((f"{{{id_}}}/{n}", echo.bind("x")) for n in range(3))
                            assert [await one.result(20) for one in made] == ["x"] * 3
                        case "send":
                            await client.send(id_, "mail", "hello")
                            assert await handle.result(20) == ["hello"]
                        case "describe":
                            assert (await handle.describe()).id == id_
                        case "history":
                            assert (await client.history(id_)).entries == ()
                        case "cancel":
                            await handle.cancel()
                        case "list":
                            assert id_ in {one.id for one in await client.list(limit=200)}
                        case "result":
                            waiting = asyncio.create_task(handle.result(20))
                            async with app.connect(two_shards.config) as other:
                                await other.send(id_, "mail", "late")
                            assert await waiting == ["late"]
                        case _:
                            pass
                    assert client.locate(id_)[1] != home or call == "refused"

    asyncio.run(go())


def test_i7_a_result_is_waited_for_across_moves(two_shards: TestCluster) -> None:
    (id_,) = in_slot(two_shards, 0, 1)

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            handle = await client.start(inbox.bind(2), id=id_)
            waiting = [asyncio.create_task(handle.result(30)) for _ in range(2)]
            for number, target in enumerate(("pg2", "pg1")):
                await asyncio.to_thread(move, two_shards, (0, target))
                await client.send(id_, "mail", str(number))
            assert await asyncio.gather(*waiting) == [["0", "1"]] * 2

    asyncio.run(go())


def test_i7_who_waits_looks_for_slots_that_were_just_being_moved_at_the_last_look(two_shards: TestCluster) -> None:
    """The map was read in the middle of a switch: that nobody has the slot is no word to stay with."""

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            handle = await client.start(inbox.bind(1), id="w")
            waiting = asyncio.create_task(handle.result(20))
            await handle.describe()
            client._shards.away = frozenset(client._shards.map.placement)
            async with app.connect(two_shards.config) as other:
                await other.send("w", "mail", "hello")
            assert await waiting == ["hello"]
            assert not client._shards.away

    asyncio.run(go())


def test_i7_executors_give_back_what_they_hold_of_the_slot_alone(
    two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is parked, a step that runs comes to its end; other slots of the shard go on; nothing runs twice."""
    monkeypatch.setattr(coordinator, "MOVE_DRAIN_SECONDS", 40.0)
    (held,) = in_slot(two_shards, 0, 1, "held")
    (other,) = in_slot(two_shards, 2, 1, "other")

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            moved = await client.start(sleeper.bind(1.5), id=held)
            stays = await client.start(chain.bind(30), id=other)
            await until(lambda: len(two_shards.bodies()) > 0, "steps")
            begun = time.monotonic()
            (done,) = await asyncio.to_thread(move, two_shards, (0, "pg2"))
            assert time.monotonic() - begun < 20.0, "it was not given back"
            assert done.pause_seconds is not None
            assert await moved.result(20) == 2
            assert await stays.result(20) == 30
            rows = await asyncio.to_thread(two_shards.certify, [held, other])
            assert len([line for line in rows.ledger if line["workflow"] == held]) == 2

    asyncio.run(go())


def test_i7_a_step_that_takes_too_long_is_given_back(two_shards: TestCluster) -> None:
    """The gate holds the step back for longer than a move waits: the workflow goes on where the slot is then."""
    (id_,) = in_slot(two_shards, 0, 1)

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            with two_shards.closed_gate():
                handle = await client.start(gated_chain.bind(1, 1), id=id_)
                await until(lambda: len(two_shards.bodies()) == 2, "the gated step")
                await asyncio.to_thread(move, two_shards, (0, "pg2"))
                assert homes(two_shards)[0] == [2]
            assert await handle.result(30) == 3
            await asyncio.to_thread(two_shards.certify, [id_])

    asyncio.run(go())


@pytest.mark.sampled
def test_i4_an_executor_that_could_not_listen_writes_nothing_to_a_slot_that_left(
    two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop is blocked by a user's code (its lease is kept) while the slot leaves *and comes back*: what it wants to
    save then is refused, for its lease on that shard was ended before the slot was live there again."""
    (id_,) = in_slot(two_shards, 0, 1)
    monkeypatch.setattr(coordinator, "MOVE_DRAIN_SECONDS", 0.5)
    with two_shards.closed_gate() as gate, two_shards.worker("--shard", "pg1", "--concurrency", "5") as blocked:

        async def go() -> None:
            async with app.connect(two_shards.config) as client:
                handle = await client.start(blocking_gated.bind(), id=id_)
                await until(lambda: len(two_shards.bodies()) == 1, "the blocking step")
                leases = set(two_shards.leases(1))
                await asyncio.to_thread(move, two_shards, (0, "pg2"))
                assert two_shards.ask("select count(*) from wf_control.departure", 1) == [(1,)]
                held = two_shards.ask("select status, claim_id, deaths from wf_0000.workflow where id = %s", 2, id_)
                assert held == [(0, None, 0)]  # given back for it, and nobody is blamed
                await asyncio.to_thread(move, two_shards, (0, "pg1"))
                assert not leases & set(two_shards.leases(1))
                gate.close()
                async with app.executor(two_shards.config, shards=["pg1"]):
                    assert await handle.result(60) == 1
                    await asyncio.to_thread(two_shards.certify, [id_], zombies={blocked.pid}, timeout=30)

        asyncio.run(go())


def test_i7_a_new_shard_is_found_by_those_that_run(
    make_cluster: Callable[..., TestCluster], databases: Callable[[int], list[str]]
) -> None:
    """Client and executor began with a file of one shard. The file grows, the shard joins, a slot moves there."""
    cluster = make_cluster(1)
    path = cluster.config_file()
    (new,) = databases(1)
    (id_,) = in_slot(cluster, 0, 1)

    async def go() -> None:
        async with app.connect(path) as client, app.executor(path):
            assert await (await client.start(chain.bind(1), id=id_)).result(20) == 1
            with path.open("a") as file:
                file.write(f'[[shard]]\nname = "pg2"\ndsn = "{new}"\n')
            config = ClusterConfig.from_file(path)
            grown = replace(cluster, config=config, direct=(*cluster.direct, new))
            await asyncio.to_thread(init_cluster, config)
            await asyncio.to_thread(move, grown, (0, "pg2"))
            again = in_slot(grown, 0, 3)
            handles = [await client.start(chain.bind(2), id=one, wait_seconds=20) for one in again[1:]]
            assert [await handle.result(20) for handle in handles] == [2, 2]
            assert client.locate(id_)[1] == "pg2"
            assert await client.get_handle(id_, int).result(20) == 1
            await asyncio.to_thread(grown.certify, again)

    asyncio.run(go())


def test_i7_a_slot_that_comes_while_an_executor_begins_is_served(
    two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor has read the map, and does not watch it yet."""
    (id_,) = in_slot(two_shards, 0, 1)
    watch, begin = Moving.run, asyncio.Event()

    async def watch_late(moving: Moving) -> None:
        await begin.wait()
        await watch(moving)

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, shards=["pg2"]):
            await asyncio.to_thread(move, two_shards, (0, "pg2"))
            begin.set()
            assert await (await client.start(chain.bind(1), id=id_)).result(20) == 1

    with monkeypatch.context() as patch:
        patch.setattr(Moving, "run", watch_late)
        asyncio.run(go())


def test_i8_a_move_that_hangs_delays_its_slot_alone(two_shards: TestCluster) -> None:
    """The coordinator died between the two sides: nobody holds the slot, everything else works, and when the move is
    finished what waited goes on."""
    here, there = in_slot(two_shards, 0, 2), in_slot(two_shards, 2, 3)
    killed_at(two_shards, "retired")
    assert homes(two_shards).get(0) is None

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            with pytest.raises(ShardUnavailable, match="slot 0 is being moved"):
                await client.start(echo.bind("x"), id=here[0], wait_seconds=0.5)
            waiting = asyncio.create_task(client.start(chain.bind(1), id=here[1], wait_seconds=60))
            for id_ in there:
                assert await (await client.start(chain.bind(1), id=id_)).result(20) == 1
            made = [await client.start(echo.bind("x")) for _ in range(20)]
            assert {client.locate(handle.id)[0] for handle in made} & {0} == set()
            assert not waiting.done()
            _, failed = await asyncio.to_thread(
                resume_all, two_shards.config, [one.move for one in unfinished_moves(two_shards.config)]
            )
            assert failed == {}
            assert await (await waiting).result(20) == 1

    asyncio.run(go())


def test_a_long_transaction_delays_the_move_and_writers_hardly(two_shards: TestCluster) -> None:
    """Somebody's transaction holds the slot's tables: the move waits in short turns, and is made when it ends."""
    holder = psycopg.connect(two_shards.direct[0])
    holder.execute("select 1 from wf_0000.workflow")
    (id_,) = in_slot(two_shards, 0, 1)
    draining, released = threading.Event(), threading.Event()

    def follow(progress: Progress) -> None:
        if progress.phase == "draining":
            draining.set()

    planned = new_move(two_shards.config, Wish(0, "pg1", "pg2"))
    mover = threading.Thread(target=Mover(two_shards.config, planned, follow).run)
    mover.start()

    async def go() -> None:
        async with app.connect(two_shards.config) as client:
            begun, written = math.inf, 0  # since when the move waits in its turns, and what was written meanwhile
            for number in itertools.count():
                await client.start(echo.bind("x"), id=f"{{{id_}}}/{number}")
                if draining.is_set() and begun == math.inf:
                    begun = time.monotonic()
                written += time.monotonic() - begun > 0.5
                if written >= 20 and time.monotonic() - begun > 1.5 and not released.is_set():
                    released.set()  # writers that waited for as long as the holder would never come here
                    holder.rollback()
                if not mover.is_alive():
                    break

    try:
        asyncio.run(asyncio.wait_for(go(), 60))
    finally:
        holder.close()
        mover.join()
    assert released.is_set()
    assert homes(two_shards)[0] == [2]


def test_concurrent_moves_between_several_pairs(make_cluster: Callable[..., TestCluster]) -> None:
    cluster = make_cluster(3, slots=9)
    done = move(cluster, (0, "pg2"), (1, "pg3"), (2, "pg1"), (3, "pg2"), (4, "pg3"))
    assert len(done) == 5
    assert {slot: home for slot, home in homes(cluster).items() if slot < 5} == {0: [2], 1: [3], 2: [1], 3: [2], 4: [3]}


def test_the_slot_is_read_from_the_error(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        for statement in ("select from wf_0042.ready", "alter schema wf_0042 rename to x", "select wf_0042.f()"):
            with pytest.raises(psycopg.Error) as caught:
                conn.execute(statement.encode())
            assert moved_slot(caught.value) == 42
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("select from wf_control.lease")
        assert moved_slot(caught.value) is None
