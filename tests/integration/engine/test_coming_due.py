"""Many timers that come due together: they become ready only as fast as they are claimed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
from psycopg import sql

from sharded_wf.clock import Clock, SystemClock
from sharded_wf.executor.intake import Intake
from sharded_wf.executor.watch import Watch
from sharded_wf.limits import TIMERS_HELD_BACK_SECONDS, TIMERS_PER_BATCH_MAX
from sharded_wf.postgres import binary
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.listen import Listener
from sharded_wf.routing import slot_schema
from tests.support.cluster import TestCluster

SLOTS = range(6)


class StoppedClock(SystemClock):
    """Its monotonic time passes only when it is told to."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def fill(cluster: TestCluster, parked: int, dead: int = 0) -> None:
    """Every slot: so many parked workflows that are due, and before them timers that nobody waits for."""
    for slot in SLOTS:
        schema = sql.Identifier(slot_schema(slot))
        with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
            conn.execute(
                sql.SQL(
                    "with parked as (insert into {}.workflow"
                    " (created_at, status, priority, id, name, capability, queue, claims, input)"
                    " select now(), 2, 0, 'w' || n, 'engine/echo', 'engine', 'default', 1, '[]'"
                    " from generate_series(1, %s) n returning id)"
                    " insert into {}.timer select now(), id from parked"
                ).format(schema, schema),
                (parked,),
            )
            conn.execute(
                sql.SQL("insert into {}.timer select now() - interval '1 h', 'd' || n from generate_series(1, %s) n")
                .format(schema), (dead,),
            )  # fmt: skip


def watch_of(cluster: TestCluster, link: Link, clock: Clock, intake: Intake, work: Callable[[], None]) -> Watch:
    """Of an executor that claims nothing, and believes that it would be notified."""
    listener = Listener(cluster.direct[0], [], lambda channel, payload: None)
    listener.works = True
    return Watch(
        "pg1", link, listener, clock,
        {slot: slot_schema(slot) for slot in SLOTS}, lambda error: None, intake, work,
        lambda slots: None, lambda slots: None, lambda slots: None, lambda: None, lambda: None,
    )  # fmt: skip


def test_what_nobody_waits_for_does_not_hold_up_what_is_due(cluster: TestCluster) -> None:
    fill(cluster, 1, dead=2_000)

    async def go() -> None:
        link, looks = Link(cluster.direct[0], "watch"), asyncio.Semaphore(0)
        watch = watch_of(cluster, link, SystemClock(), Intake(["engine"], None), looks.release)
        watching = asyncio.create_task(watch.run(binary.new_uuid()))
        async with asyncio.timeout(40):
            while len(await asyncio.to_thread(cluster.ask_all, "ready", "true")) < len(SLOTS):
                await looks.acquire()
        watching.cancel()
        link.close()

    asyncio.run(go())


def test_what_is_due_waits_for_what_came_due_before(cluster: TestCluster) -> None:
    fill(cluster, 600)

    async def go() -> None:
        clock, intake, looks = StoppedClock(), Intake(["engine"], None), asyncio.Semaphore(0)
        link = Link(cluster.direct[0], "watch")
        watch = watch_of(cluster, link, clock, intake, looks.release)

        async def ready_after_looks() -> int:
            for _ in range(3):
                while not looks.locked():
                    await looks.acquire()
                watch.look()
                await looks.acquire()
            return len(await asyncio.to_thread(cluster.ask_all, "ready", "true"))

        async def fired_after(before: int) -> int:
            while (ready := await ready_after_looks()) == before:
                pass
            return ready

        watching = asyncio.create_task(watch.run(binary.new_uuid()))
        async with asyncio.timeout(40):
            first = await fired_after(0)
            assert first <= TIMERS_PER_BATCH_MAX
            assert await ready_after_looks() == first, "nobody has claimed anything, and no time has passed"

            for pick in intake.picks(100_000, 0.0):  # all of them: a claim is under way
                intake.came(pick, 0, None)
            second = await fired_after(first)
            assert second - first <= TIMERS_PER_BATCH_MAX
            assert await ready_after_looks() == second

            clock.seconds += TIMERS_HELD_BACK_SECONDS
            third = await fired_after(second)
            assert third - second <= TIMERS_PER_BATCH_MAX, "whoever claims nothing holds nobody up"
        watching.cancel()
        link.close()

    asyncio.run(go())
