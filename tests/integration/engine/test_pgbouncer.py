"""All of it through PgBouncer, in transaction mode (no notifications, no prepared statements, no own session) and in
session mode, which looks the same from here."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sharded_wf.errors import MoveRefused
from sharded_wf.reshard.fleet import Wish, check_wishes, move_all, new_move
from sharded_wf.reshard.move import Mover
from tests.support import bank, citus
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, gated_chain, inbox, outbox, parent
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.processes import wait_until

pytestmark = [
    pytest.mark.skipif(bool(citus.COORDINATOR), reason="nodes of a Citus cluster are reached without a pooler"),
    pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not on this machine: NOTHING behind a pooler is tested"),
]


@pytest.fixture(params=["transaction", "session"])
def pooled(two_shards: TestCluster, request: pytest.FixtureRequest) -> Iterator[TestCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="sharded_wf-pgbouncer-") as directory,
        PgBouncer(Path(directory), two_shards.direct, request.param) as bouncer,
    ):
        yield two_shards.through(*(bouncer.through(dsn) for dsn in two_shards.direct))


def test_the_engine_knows_that_it_is_pooled(pooled: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(pooled.config) as client:
            await client.start(chain.bind(1), id=pooled.ids_on(1, 1)[0])
            assert client._shards.shards["pg1"].writer.link.pooled

    asyncio.run(go())


def test_start_run_and_results(pooled: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(pooled.config) as client, app.executor(pooled.config, park_after=0.2):
            handles = await client.start_many(chain.bind(2) for _ in range(300))
            receiver = await client.start(inbox.bind(10), id=pooled.ids_on(2, 1, "r")[0])
            sender = await client.start(outbox.bind([receiver.id], 10), id=pooled.ids_on(1, 1, "s")[0])
            family = await client.start(parent.bind(6, 1), id="family")
            async with asyncio.timeout(60):
                assert await asyncio.gather(*(handle.result() for handle in handles)) == [2] * 300
                assert await receiver.result() == [f"{sender.id}#{number}" for number in range(10)]
                assert await family.result() == 6
            ids = [receiver.id, sender.id, "family", *(handle.id for handle in handles)]
            await asyncio.to_thread(pooled.certify, ids)

    asyncio.run(go())
    assert max(Counter(body[:3] for body in pooled.bodies()).values()) == 1


@pytest.mark.sampled
def test_i5_takeover(pooled: TestCluster) -> None:
    ids = [f"w-{number}" for number in range(10)]

    async def start() -> None:
        async with app.connect(pooled.config) as client:
            await client.start_many((id_, gated_chain.bind(1, 1)) for id_ in ids)

    with pooled.closed_gate() as gate, pooled.worker() as victim:
        asyncio.run(start())
        wait_until(lambda: len(pooled.bodies()) == 2 * len(ids), "all steps under way")
        with pooled.worker():
            wait_until(lambda: len(pooled.leases(1)) == len(pooled.leases(2)) == 2, "the leases of both")
            victim.kill()
            gate.close()
            wait_until(lambda: set(pooled.statuses().values()) == {3}, "the end", interval=0.1)
            pooled.certify(ids)


def test_i3_lost_answers(pooled: TestCluster, seed: int) -> None:
    """Backends end under load: nobody can say which was ours, so leases are given up; nothing is lost or recorded
    twice, and nobody is blamed for it."""
    chance = random.Random(seed)
    ids = [f"w-{number}" for number in range(150)]

    def terminate() -> None:
        with psycopg.connect(pooled.direct[0], autocommit=True) as conn:
            found = conn.execute(
                "select pid from pg_stat_activity where datname = current_database() "
                "and pid <> pg_backend_pid() order by 1"
            ).fetchall()
            for (pid,) in chance.sample(found, min(2, len(found))):
                conn.execute("select pg_terminate_backend(%s::int)", (pid,))

    async def go() -> None:
        async with app.connect(pooled.config) as client, app.executor(pooled.config, concurrency=40):
            await client.start_many(((id_, chain.bind(4)) for id_ in ids), wait_seconds=30)
            for _ in range(6):
                await asyncio.to_thread(terminate)
                await asyncio.sleep(0.2)
            async with asyncio.timeout(60):
                await asyncio.gather(*(client.get_handle(id_, int).result() for id_ in ids))
            rows = await asyncio.to_thread(pooled.certify, ids)
            assert {row["status"] for row in rows.workflow} == {3}
            assert {row["deaths"] for row in rows.workflow} == {0}

    asyncio.run(go())


def test_i7_a_slot_moves_while_all_go_through_the_pooler(two_shards: TestCluster, pooled: TestCluster) -> None:
    """Executors and clients need no session of their own to follow a move; its coordinator does, and says so."""
    with pytest.raises(MoveRefused, match="transaction-pooling proxy"):
        Mover(pooled.config, new_move(pooled.config, Wish(0, "pg1", "pg2"))).run()
    ids = pooled.ids_on(1, 40)

    async def go() -> None:
        async with app.connect(pooled.config) as client, app.executor(pooled.config):
            first = [await client.start(chain.bind(3), id=id_) for id_ in ids[:20]]
            for target in ("pg2", "pg1"):
                done, failed = await asyncio.to_thread(
                    move_all, two_shards.config, check_wishes(two_shards.config, [(0, target), (2, target)])
                )
                assert (len(done), failed) == (2, {})
                more = ids[20:30] if target == "pg2" else ids[30:]
                first += [await client.start(chain.bind(2), id=id_) for id_ in more]
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in first))
            await asyncio.to_thread(two_shards.certify, ids)

    asyncio.run(go())


def test_i3_transactions_with_the_users_data(pooled: TestCluster) -> None:
    """A lost answer costs the lease, since nobody can say which backend was ours; nothing is moved twice."""
    for dsn in pooled.direct:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(bank.TABLES)
    ids = pooled.ids_on(1, 10, "m")

    def terminate() -> None:
        with psycopg.connect(pooled.direct[0], autocommit=True) as conn:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                "and pid <> pg_backend_pid() and state <> 'idle'"
            )

    async def go() -> None:
        async with bank.app.connect(pooled.config) as client, bank.app.executor(pooled.config):
            handles = await client.start_many((id_, bank.mover_blocking.bind(6, 1)) for id_ in ids)
            for _ in range(4):
                await asyncio.to_thread(terminate)
                await asyncio.sleep(0.1)  # the time between two disturbances
            async with asyncio.timeout(60):
                assert await asyncio.gather(*(handle.result() for handle in handles)) == [list(range(6))] * len(ids)
            await asyncio.to_thread(pooled.certify, ids)

    asyncio.run(go())
    assert Counter(row[0] for row in bank.movements(pooled.direct[0])) == dict.fromkeys(ids, 6)
