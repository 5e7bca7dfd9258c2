"""I7 for what was built on slots: transactions with the user's data, starts in users' transactions, retention."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import psycopg
import pytest

from sharded_wf import Retention, TransactionRefused
from sharded_wf.errors import MoveBlocked, MoveRefused
from sharded_wf.executor import moving
from sharded_wf.executor.watch import Watch
from sharded_wf.reshard import copying
from sharded_wf.reshard.fleet import resume_all, unfinished_moves
from sharded_wf.reshard.members import check_removable, remove_shard
from sharded_wf.store import starts
from tests.integration.reshard.test_followers import in_slot
from tests.integration.reshard.test_moves import homes, move
from tests.integration.reshard.test_splits import split
from tests.support import bank
from tests.support.cluster import TestCluster
from tests.support.processes import wait_until


@pytest.fixture
def money(two_shards: TestCluster) -> TestCluster:
    for dsn in two_shards.direct:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(bank.TABLES)
    return two_shards


def movements(cluster: TestCluster) -> Counter[tuple[str, int]]:
    """How often each movement of each workflow is there, on whichever shard."""
    return Counter(row[:2] for dsn in cluster.direct for row in bank.movements(dsn))


@pytest.mark.sampled
def test_i7_transactions_while_their_slot_moves(money: TestCluster) -> None:
    ids = in_slot(money, 0, 20)

    async def go() -> None:
        async with bank.app.connect(money.config) as client, bank.app.executor(money.config):
            flows = [bank.mover.bind(30, 1), bank.mover_blocking.bind(30, 1)]
            handles = await client.start_many((id_, flows[n % 2]) for n, id_ in enumerate(ids))
            for target in ("pg2", "pg1", "pg2"):
                await asyncio.to_thread(move, money, (0, target))
            async with asyncio.timeout(40):
                assert await asyncio.gather(*(handle.result() for handle in handles)) == [list(range(30))] * 20
            await asyncio.to_thread(money.certify, ids)

    asyncio.run(go())
    assert movements(money) == {(id_, number): 1 for id_ in ids for number in range(30)}


@pytest.mark.sampled
def test_i7_transactions_while_their_slots_are_split(money: TestCluster) -> None:
    ids = in_slot(money, 0, 20)

    async def go() -> None:
        async with bank.app.connect(money.config) as client, bank.app.executor(money.config):
            flows = [bank.mover.bind(30, 1), bank.mover_blocking.bind(30, 1)]
            handles = await client.start_many((id_, flows[n % 2]) for n, id_ in enumerate(ids))
            for slots in ((0,), (6, 12)):
                await asyncio.to_thread(split, money, *slots)
            async with asyncio.timeout(40):
                assert await asyncio.gather(*(handle.result() for handle in handles)) == [list(range(30))] * 20
            await asyncio.to_thread(money.certify, ids)

    asyncio.run(go())
    assert movements(money) == {(id_, number): 1 for id_ in ids for number in range(30)}


def test_i7_a_transaction_that_takes_too_long_writes_nothing_where_the_slot_was(
    money: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body ends after the slot has left."""
    monkeypatch.setattr(moving, "SLOT_DRAIN_SECONDS", 0.3)
    (id_,) = in_slot(money, 0, 1)
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"

    async def go(gate: psycopg.Connection[Any]) -> None:
        async with bank.app.connect(money.config) as client, bank.app.executor(money.config):
            handle = await client.start(bank.waits_for_gate.bind(), id=id_)
            await asyncio.to_thread(wait_until, lambda: money.ask(waiting) == [(1,)], "the body")
            await asyncio.to_thread(move, money, (0, "pg2"))
            assert await handle.result(20) == 0
            gate.execute("select pg_advisory_unlock(4712)")
            await asyncio.to_thread(money.certify, [id_])

    with psycopg.connect(money.direct[0], autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(4712)")
        asyncio.run(go(gate))
    assert [len(bank.movements(dsn)) for dsn in money.direct] == [0, 1]


def test_i7_an_executor_that_was_not_told_commits_nothing_where_the_slot_was(
    money: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body ends after the slot has left, and the commit is what finds out. The workflow's code sees nothing."""

    async def blind(watch: Watch) -> None:
        watch._look = False

    monkeypatch.setattr(moving.Moving, "_request", lambda *_: None)
    monkeypatch.setattr(moving.Moving, "follow_map", lambda _: None)
    monkeypatch.setattr("sharded_wf.reshard.coordinator.MOVE_DRAIN_SECONDS", 0.1)
    (id_,) = in_slot(money, 0, 1)
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"

    async def go(gate: psycopg.Connection[Any]) -> None:
        async with bank.app.connect(money.config) as client:
            async with bank.app.executor(money.config, shards=["pg1"]) as executor:
                handle = await client.start(bank.waits_for_gate.bind(), id=id_)
                await asyncio.to_thread(wait_until, lambda: money.ask(waiting) == [(1,)], "the body")
                monkeypatch.setattr(Watch, "_glance", blind)
                await asyncio.to_thread(move, money, (0, "pg2"))
                assert executor.statistics()["held"] == 1
                gate.execute("select pg_advisory_unlock(4712)")
                await asyncio.to_thread(wait_until, lambda: executor.statistics()["held"] == 0, "that it lets go")
            monkeypatch.undo()
            async with bank.app.executor(money.config):
                assert await handle.result(20) == 0
            await asyncio.to_thread(money.certify, [id_])

    with psycopg.connect(money.direct[0], autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(4712)")
        asyncio.run(go(gate))
    assert [len(bank.movements(dsn)) for dsn in money.direct] == [0, 1]


def test_i7_starts_in_users_transactions(money: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open one keeps the slot; one that meets the move at the worst moment is told to begin again; one on the shard
    where the slot was goes by the outbox."""
    first, second, third = in_slot(money, 0, 3)

    async def go() -> None:
        async with (
            bank.app.connect(money.config) as client,
            await psycopg.AsyncConnection.connect(money.direct[0]) as conn,
        ):
            await client.start_in(conn, bank.inbox.bind(1), id=first)
            with monkeypatch.context() as patched:
                patched.setattr(copying, "MOVE_LOCK_ATTEMPTS", 2)
                with pytest.raises(MoveBlocked):
                    await asyncio.to_thread(move, money, (0, "pg2"))
            assert homes(money)[0] == [1]
            await client.send_in(conn, first, "mail", "hello")
            await conn.commit()

            make = starts.start_statements

            def late(*args: Any) -> Any:
                move_done()
                return make(*args)

            def move_done() -> None:
                resume_all(money.config, [one.move for one in unfinished_moves(money.config)])
                assert homes(money)[0] == [2]

            with monkeypatch.context() as patched:
                patched.setattr(starts, "start_statements", late)
                with pytest.raises(TransactionRefused, match="make the transaction again"):
                    await client.start_in(conn, bank.inbox.bind(1), id=second)
            await conn.rollback()

            for id_ in (second, third):
                await client.start_in(conn, bank.inbox.bind(1), id=id_)
                await client.send_in(conn, id_, "mail", "hello")
            await conn.commit()
            assert money.ask("select count(*) from wf_control.request", 1) == [(4,)]
            async with bank.app.executor(money.config):
                for id_ in (first, second, third):
                    await asyncio.to_thread(wait_until, lambda id_=id_: id_ in money.statuses(), "the start")  # type: ignore[misc]
                    assert await client.get_handle(id_, list[str]).result(20) == ["hello"]
                # While somebody is there who removes what outlives its use.
                await asyncio.to_thread(money.certify, [first, second, third])

    asyncio.run(go())


@pytest.mark.sampled
def test_retention_follows_a_slot(money: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done after the move grows old where the slot is then."""
    monkeypatch.setattr("sharded_wf.retention.RETENTION_AGE_MIN_SECONDS", 1)
    monkeypatch.setattr("sharded_wf.maintenance.retention.RETENTION_LAG_PART", 3.0)  # none has not ended by then
    ids = in_slot(money, 0, 3)

    async def go() -> None:
        async with bank.app.connect(money.config) as client, bank.app.executor(money.config, retention=Retention(2)):
            await asyncio.to_thread(move, money, (0, "pg2"))
            handles = await client.start_many((id_, bank.mover.bind(1, 1)) for id_ in ids)
            await asyncio.gather(*(handle.result(20) for handle in handles))
            await asyncio.to_thread(wait_until, lambda: not money.statuses(), "removal")

    asyncio.run(go())


@pytest.mark.sampled
def test_a_shard_with_requests_in_its_outbox_can_not_be_removed(money: TestCluster) -> None:
    (id_,) = in_slot(money, 0, 1)
    move(money, (1, "pg1"), (3, "pg1"), (5, "pg1"))

    async def go() -> None:
        async with bank.app.connect(money.config) as client:
            async with await psycopg.AsyncConnection.connect(money.direct[1]) as conn:
                await client.start_in(conn, bank.inbox.bind(0), id=id_)
            for refused in (check_removable, remove_shard):
                with pytest.raises(MoveRefused, match="outbox"):
                    await asyncio.to_thread(refused, money.config, "pg2")
            # Those who serve only the other shard carry from the one without slots, too.
            async with bank.app.executor(money.config, shards=["pg1"]):
                assert await asyncio.wait_for(_result(client, money, id_), 60) == []
                await asyncio.to_thread(
                    wait_until, lambda: money.ask("select count(*) from wf_control.request", 2) == [(0,)], "carried"
                )
                await asyncio.to_thread(remove_shard, money.config, "pg2")

    asyncio.run(go())


async def _result(client: Any, cluster: TestCluster, id_: str) -> list[str]:
    await asyncio.to_thread(wait_until, lambda: id_ in cluster.statuses(), "the start")
    found: list[str] = await client.get_handle(id_, list[str]).result(20)
    return found
