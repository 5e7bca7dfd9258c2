"""I3 for transactions with the user's data: what a body writes and the record of its result are one commit."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import psycopg
import pytest

from sharded_wf import Bound, Status, TransactionRefused, UnstorableValue
from tests.support import bank
from tests.support.bank import app, balances, movements
from tests.support.cluster import TestCluster
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

OWN_COMMIT = r"^(?-i:COMMIT)"
"""The commit of a transaction with the user's data, as psycopg writes it; the engine's own are in small letters."""
FLUSH = r"insert into wf_control\.flush"
MOMENTS: tuple[Moment, ...] = ("before", "after")
APP = "tests.support.bank:app"


@pytest.fixture
def money(cluster: TestCluster) -> TestCluster:
    """One shard with a bank on it."""
    return with_bank(cluster)


def with_bank(cluster: TestCluster) -> TestCluster:
    for dsn in cluster.direct:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(bank.TABLES)
    return cluster


async def results(cluster: TestCluster, *bound: tuple[str, Bound[Any]], **options: Any) -> list[Any]:
    """Run workflows to their ends, in this process."""
    async with app.connect(cluster.config) as client, app.executor(cluster.config, **options):
        handles = await client.start_many(bound)
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)
        await asyncio.to_thread(cluster.certify, [handle.id for handle in handles])
        return found


def check_bank(cluster: TestCluster, expected: dict[str, int], shard: int = 0) -> None:
    """Each workflow moved so often, each number once, and the accounts agree."""
    found = movements(cluster.direct[shard])
    assert len({row[:2] for row in found}) == len(found)
    assert Counter(row[0] for row in found) == Counter(expected)
    moved = sum(row[2] for row in found)
    assert balances(cluster.direct[shard]) == {"a": 100_000 - moved, "b": 100_000 + moved}


def test_i3_every_kind_of_workflow(money: TestCluster) -> None:
    found = asyncio.run(
        results(
            money,
            ("async", bank.mover.bind(5, 3)),
            ("def", bank.mover_blocking.bind(6, 2)),
            ("thread", bank.mover_in_thread.bind(3, 1)),
            *((f"serial-{number}", bank.mover_serializable.bind(4)) for number in range(6)),
        )
    )
    assert found == [list(range(5)), list(range(6)), list(range(3)), *([list(range(4))] * 6)]
    check_bank(money, {"async": 5, "def": 6, "thread": 3, **{f"serial-{number}": 4 for number in range(6)}})


def test_i3_across_shards(two_shards: TestCluster) -> None:
    """A workflow moves money on its shard, and its child on the other; the connections to both are cut at commits."""
    with_bank(two_shards)
    parents = [id_ for id_ in two_shards.ids_on(1, 40, "p") if two_shards.shard_of(f"{id_}/mover-1") == 2][:4]

    async def go() -> None:
        with Proxy(two_shards.direct[0]) as first, Proxy(two_shards.direct[1]) as second:
            behind = two_shards.through(first.dsn, second.dsn)
            cuts = [proxy.cut(OWN_COMMIT, when=when, skip=2) for proxy in (first, second) for when in MOMENTS]
            found = await results(behind, *((id_, bank.mover_with_child.bind(3)) for id_ in parents))
            assert found == [[0, 1, 2, 0, 1, 2]] * len(parents)
            assert all(cut.count for cut in cuts)

    asyncio.run(go())
    check_bank(two_shards, dict.fromkeys(parents, 3), 0)
    check_bank(two_shards, {f"{id_}/mover-1": 3 for id_ in parents}, 1)


def test_a_body_that_fails_leaves_nothing_but_its_error(money: TestCluster) -> None:
    found = asyncio.run(
        results(
            money,
            ("poor", bank.mover.bind(1, 200_000)),
            ("object", bank.writes_back.bind()),
            ("late", bank.late_mover.bind()),
            ("slow", bank.slow.bind(False)),
            ("slow-def", bank.slow.bind(True)),
            ("bad", bank.runs_sql.bind("select 1/0")),
        )
    )
    assert isinstance(found[0], psycopg.errors.CheckViolation)
    assert isinstance(found[1], UnstorableValue)
    assert found[2] == 3
    assert found[3] == "step 'too_slow' took longer than 0.3 s"
    assert found[4] == "step 'too_slow_blocking' took longer than 0.3 s"
    assert isinstance(found[5], psycopg.errors.DivisionByZero)
    assert [row[:2] for row in movements(money.direct[0])] == [("late", 0)]
    assert len(money.rows().attempt) == 2


@pytest.mark.parametrize("query", ["commit", "/* x */ ROLLBACK", "select 1; end", "begin", "rollback and chain"])
def test_a_body_can_not_end_its_transaction(money: TestCluster, query: str) -> None:
    (found,) = asyncio.run(results(money, ("w", bank.runs_sql.bind(query))))
    assert isinstance(found, TransactionRefused)
    assert movements(money.direct[0]) == []


def test_savepoints_are_the_body_s_own(money: TestCluster) -> None:
    query = "savepoint s; select 'commit'; rollback to savepoint s; do $$ begin perform 1; end $$"
    assert asyncio.run(results(money, ("w", bank.runs_sql.bind(query)))) == ["done"]
    check = movements(money.direct[0])
    assert len(check) == 1


def test_a_transaction_that_was_given_up_writes_nothing(money: TestCluster) -> None:
    with psycopg.connect(money.direct[0], autocommit=True) as conn:
        conn.execute("select pg_advisory_lock(4712)")
        assert asyncio.run(results(money, ("w", bank.gives_up.bind()))) == ["gave up"]
    assert movements(money.direct[0]) == []


def test_settings_do_not_leak(money: TestCluster) -> None:
    found = asyncio.run(
        results(
            money, ("w", bank.runs_sql.bind("set search_path = nowhere; create temporary table t (x int)")),
            concurrency=1,
        )
    )  # fmt: skip
    assert found == ["done"]

    async def again() -> None:
        async with app.connect(money.config) as client, app.executor(money.config):
            for _ in range(3):
                handle = await client.start(bank.runs_sql.bind("create temporary table t (x int)"))
                assert await handle.result(20) == "done"

    asyncio.run(again())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["mover", "mover_blocking"])
def test_i3_the_connection_is_cut_at_commit(money: TestCluster, when: Moment, name: str) -> None:
    async def go() -> None:
        with Proxy(money.direct[0]) as proxy:
            behind = money.through(proxy.dsn)
            cut = [proxy.cut(OWN_COMMIT, when=when, skip=number) for number in (0, 2, 4)]
            ids = [f"w-{number}" for number in range(8)]
            bound = app.workflows[f"bank/{name}"].bind(3, 1)
            found = await results(behind, *((id_, bound) for id_ in ids))
            assert found == [[0, 1, 2]] * 8
            assert sum(rule.count for rule in cut) >= 2

    asyncio.run(go())
    check_bank(money, {f"w-{number}": 3 for number in range(8)})
    rows = money.certify()
    assert {row["deaths"] for row in rows.workflow} == {0}


@pytest.mark.sampled
def test_i3_killed_at_every_commit(money: TestCluster, full: bool, seed: int) -> None:
    """The executor dies exactly at a commit, of a flush or of a transaction, in the middle of a run."""
    places: list[tuple[bool, int, Moment]] = [
        (own, skip, at) for own in (True, False) for skip in range(4) for at in MOMENTS
    ]
    chosen = places if full else random.Random(seed).sample(places, 1)
    ids = [f"killed-{own}-{skip}-{at}" for own, skip, at in chosen]
    for id_, (own, skip, at) in zip(ids, chosen, strict=True):

        async def start(id_: str = id_) -> None:
            async with app.connect(money.config) as client:
                await client.start(bank.mover.bind(4, 1), id=id_)

        with Proxy(money.direct[0]) as proxy:
            hold = proxy.hold(OWN_COMMIT if own else COMMIT, when=at, within="" if own else FLUSH, skip=skip)
            with money.through(proxy.dsn).worker(app=APP) as victim:
                asyncio.run(start())
                hold.wait()
                victim.kill()
    with money.worker(app=APP):
        wait_until(lambda: [money.statuses()[id_] for id_ in ids] == [3] * len(ids), "the ends", interval=0.1)
        rows = money.certify(ids)
    check_bank(money, dict.fromkeys(ids, 4))
    # Nobody who is blameless is blamed.
    assert all(row["deaths"] <= 1 for row in rows.workflow)


def test_i3_replay_gives_the_order_of_delivery(money: TestCluster) -> None:
    """Concurrent steps and transactions; then the run is parked and replayed by another executor."""
    ids = [f"w-{number}" for number in range(6)]

    async def first() -> None:
        async with app.connect(money.config) as client:
            await client.start_many((id_, bank.mover_concurrent.bind(8)) for id_ in ids)
            async with app.executor(money.config, park_after=0.2):
                parked = lambda: set(money.statuses().values()) == {Status.PARKED}  # noqa: E731
                await asyncio.to_thread(wait_until, parked, "that all are parked")

    async def second() -> None:
        async with app.connect(money.config) as client, app.executor(money.config):
            for id_ in ids:
                await client.send(id_, "go on", "now")
            for id_ in ids:
                order = await client.get_handle(id_, list[str]).result(20)
                history = await client.history(id_)
                recorded = [entry.name for entry in history.entries if entry.name in ("look", "move")]
                told = [line.split()[0].replace("again", "look") for line in order]
                assert told == recorded  # the code saw them in the order of the ordinals
            await asyncio.to_thread(money.certify)

    asyncio.run(first())
    asyncio.run(second())
    check_bank(money, dict.fromkeys(ids, 8))


def test_i3_a_step_that_ends_during_a_commit_comes_after_it(money: TestCluster) -> None:
    async def go() -> None:
        with Proxy(money.direct[0]) as proxy:
            behind = money.through(proxy.dsn)
            async with app.connect(money.config) as client, app.executor(behind.config):
                hold = proxy.hold(OWN_COMMIT, when="before")
                handle = await client.start(bank.race.bind())
                await asyncio.to_thread(hold.wait)
                await asyncio.sleep(0.8)  # the time in which the step ends, and would be saved
                proxy.release()
                order = await handle.result(20)
                history = await client.history(handle.id)
                assert order == [entry.name for entry in history.entries] == ["move", "look_later"]

    asyncio.run(go())


@pytest.mark.sampled
def test_i4_the_lease_is_lost_in_the_middle(money: TestCluster) -> None:
    """Another executor ends the lease while a body runs: what it wrote is gone, and is written once by the other."""
    with psycopg.connect(money.direct[0], autocommit=True) as gate:
        gate.execute("select pg_advisory_lock(4712)")

        async def start() -> None:
            async with app.connect(money.config) as client:
                await client.start(bank.waits_for_gate.bind(), id="w")

        with money.worker(app=APP) as victim:
            asyncio.run(start())
            waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            wait_until(lambda: money.ask(waiting) == [(1,)], "that the body waits")
            victim.freeze()
            with money.worker(app=APP):
                wait_until(lambda: money.statuses()["w"] == 1 and len(money.leases()) == 1, "takeover")
                gate.execute("select pg_advisory_unlock(4712)")
                wait_until(lambda: money.statuses()["w"] == 3, "the end")
                victim.thaw()
                money.certify(["w"])
    assert [row[:2] for row in movements(money.direct[0])] == [("w", 0)]
