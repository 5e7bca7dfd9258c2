"""Everything that a workflow can say, told at once on two shards, while executors or clients are killed or slots move.

What is told is in ``tests.support.kill_stories``. A *point* is a transaction in the middle of it, on one of the shards:
its COMMIT is held on its way to the server, or its answer on the way back, and whoever made it is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from sharded_wf.client import Handle
from sharded_wf.cluster.directory import load_map
from tests.integration.reshard.test_moves import homes, move
from tests.support import citus
from tests.support.cluster import TestCluster
from tests.support.flows import LEDGER_VARIABLE, chain
from tests.support.kill_flows import app
from tests.support.kill_stories import tell_all
from tests.support.processes import PROJECT, WorkerProcess, wait_until
from tests.support.proxy import COMMIT, Moment, Proxy, Rule

APP = "tests.support.kill_flows:app"
TELL = PROJECT / "tests/support/kill_stories.py"
FLUSH = r"insert into wf_control\.flush"
AT_ONCE = 4
"""So many runs side by side: each waits for a takeover most of the time."""
FLUSHES_AT_LEAST = 40
REQUESTS_AT_LEAST = 10
"""So many transactions of a kind there are on each shard in any run, however many share one."""
MORE_THAN_THERE_ARE = 1000
FULL_ONE_IN = int(os.environ.get("SHARDED_WF_TEST_KILL_ONE_IN", "3"))
"""Of all points, ``full`` tries so many; with 1 in 1, every one of them."""


class Point(NamedTuple):
    number: int
    shard: int
    when: Moment


def points(seed: int, full: bool, below: int) -> list[list[Point]]:
    """Groups of points, to be tried side by side: one group of a number on both shards, or groups of every so manyth.

    Each on one side of the COMMIT, by turns: what is in the database after one is what is in it before the next.
    """
    sides: tuple[Moment, Moment] = ("before", "after")
    chosen = (
        range(seed % FULL_ONE_IN, MORE_THAN_THERE_ARE, FULL_ONE_IN) if full else [random.Random(seed).randrange(below)]
    )
    found = [Point(number, shard, sides[(number + shard + seed) % 2]) for number in chosen for shard in (1, 2)]
    return [found[at : at + AT_ONCE] for at in range(0, len(found), AT_ONCE)]


class Tale:
    """One cluster of two shards with a proxy before each, and who works through these until the point comes."""

    def __init__(self, cluster: TestCluster, point: Point, stack: ExitStack, within: str) -> None:
        self.cluster = cluster
        self._proxies = [stack.enter_context(Proxy(dsn)) for dsn in cluster.direct]
        self.behind = cluster.through(*(proxy.dsn for proxy in self._proxies))
        self._point = point
        self._within = within

    def arm(self) -> Rule:
        shard, when, skip = self._point.shard, self._point.when, self._point.number
        return self._proxies[shard - 1].hold(COMMIT, when=when, within=self._within, skip=skip)

    async def kill(self, victim: WorkerProcess, rule: Rule, ended: Callable[[], bool]) -> bool:
        """Kill it when it has come to the point; False if it ended before."""
        while not rule.count:
            if ended():
                return False
            await asyncio.sleep(0.01)
        await asyncio.to_thread(victim.kill)
        for proxy in self._proxies:
            proxy.release()
        return True


async def kill_executor(cluster: TestCluster, point: Point) -> bool:
    """One executor serves both shards, and is killed at one of its flushes; an heir finishes."""
    with ExitStack() as stack:
        tale = Tale(cluster, point, stack, FLUSH)
        park_after = "0.1" if point.number % 2 else "5"
        victim = stack.enter_context(tale.behind.worker("--park-after", park_after, app=APP))
        await asyncio.to_thread(wait_until, lambda: bool(cluster.leases(1) and cluster.leases(2)), "the leases")
        rule = tale.arm()
        telling = asyncio.create_task(tell_all(cluster.config, cluster.ledger))
        killed = await tale.kill(victim, rule, telling.done)
        if killed:
            stack.enter_context(cluster.worker(app=APP))
        await telling
        await asyncio.to_thread(cluster.certify)
        return killed


async def kill_client(cluster: TestCluster, point: Point) -> bool:
    """The process that asks for everything is killed at one of its transactions; another one asks again."""
    with ExitStack() as stack:
        tale = Tale(cluster, point, stack, "")
        stack.enter_context(cluster.worker("--park-after", "0.1", app=APP))
        rule = tale.arm()
        environment = {LEDGER_VARIABLE: cluster.ledger}
        victim = WorkerProcess(TELL, str(tale.behind.config_file()), environment=environment)
        stack.enter_context(victim)
        killed = await tale.kill(victim, rule, victim.has_ended)
        await tell_all(cluster.config, cluster.ledger)
        await asyncio.to_thread(cluster.certify)
        return killed


@pytest.mark.parametrize(
    ("kill", "below"), [(kill_executor, FLUSHES_AT_LEAST), (kill_client, REQUESTS_AT_LEAST)], ids=["executor", "client"]
)
def test_killed_in_the_middle_of_everything(
    make_cluster: Callable[..., TestCluster],
    seed: int,
    full: bool,
    kill: Callable[[TestCluster, Point], Awaitable[bool]],
    below: int,
) -> None:
    """A sample: one transaction of each shard. Else every one, or every so manyth."""

    async def one(point: Point) -> bool:
        try:
            return await kill(make_cluster(2), point)
        except BaseException as error:
            error.add_note(f"at {point}")
            raise

    async def group(some: list[Point]) -> list[bool]:
        return list(await asyncio.gather(*map(one, some)))

    for some in points(seed, full, below):
        killed = asyncio.run(group(some))
        if not any(killed):
            assert some[0].number >= below, f"nobody was killed at {some}"
            break


@pytest.mark.skipif(bool(citus.COORDINATOR), reason="on Citus, slots move by Citus: tests/integration/citus")
def test_i7_told_while_slots_move(two_shards: TestCluster, full: bool) -> None:
    """Every slot moves to the other shard and back, with a small load beside; once, or again and again."""

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            telling = asyncio.create_task(tell_all(two_shards.config, two_shards.ledger))
            beside: list[Handle[int]] = []
            while len(beside) < 100 or (full and not telling.done()):
                beside += await client.start_many(chain.bind(3) for _ in range(50))
                placement = load_map(two_shards.config).shard_map.placement
                wishes = [(slot, {"pg1": "pg2", "pg2": "pg1"}[shard]) for slot, shard in placement.items()]
                await asyncio.to_thread(move, two_shards, *wishes)
            await telling
            async with asyncio.timeout(30):
                assert {await handle.result() for handle in beside} == {3}
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in beside])

    asyncio.run(go())
    assert [len(shards) for shards in homes(two_shards).values()] == [1] * 6
