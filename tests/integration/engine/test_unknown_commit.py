"""The connection breaks exactly at COMMIT: nothing is lost, nothing is done twice, everybody goes on by themselves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from sharded_wf.limits import WRITE_DEADLINE_SECONDS
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, echo
from tests.support.proxy import COMMIT, Moment, Proxy

START = r"insert into wf_\d+\.workflow"
CLAIM = r"insert into wf_\d+\.claim"
FLUSH = r"insert into wf_control\.flush"
MESSAGE = r"insert into wf_\d+\.message"
OUTCOME = r"set status = 3"

WORKFLOWS = 40
STEPS = 2


async def run_chains(
    cluster: TestCluster, proxied: TestCluster, at: str, when: Moment, *, hold: bool = False
) -> list[str]:
    """Run chains while the proxy cuts (or holds) the wire at some commits; the IDs that were acknowledged."""
    with Proxy(cluster.direct[0]) as proxy:
        behind = proxied.through(proxy.dsn)
        async with app.executor(behind.config, drain_seconds=1.0) as executor, app.connect(behind.config) as client:
            warm = await client.start(chain.bind(1))
            await warm.result(30)
            place = proxy.hold if hold else proxy.cut
            rules = [place(COMMIT, when=when, within=at, skip=number) for number in ((0,) if hold else (0, 1, 1))]
            starting = asyncio.gather(*(client.start(chain.bind(STEPS)) for _ in range(WORKFLOWS)))
            if hold:
                await asyncio.to_thread(rules[0].wait)
                await asyncio.sleep(0.5)  # the time that the answer is late
                proxy.release()
            handles = await starting
            async with asyncio.timeout(60):
                assert await asyncio.gather(*(handle.result() for handle in handles)) == [STEPS] * WORKFLOWS
            assert sum(rule.count for rule in rules) >= 1
            assert executor.statistics()["taken_over"] == 0
            assert all(handle.created for handle in handles)
            ids = [warm.id, *(handle.id for handle in handles)]
            await asyncio.to_thread(cluster.certify, ids)
        return ids


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [START, CLAIM, FLUSH, OUTCOME], ids=["start", "claim", "flush", "outcome"])
def test_i1_i3_connection_cut_at_commit(cluster: TestCluster, at: str, when: Moment) -> None:
    ids = asyncio.run(run_chains(cluster, cluster, at, when))
    # The executor lived and kept its lease: no body may run twice, whatever became of the answer.
    runs = Counter((workflow, number) for workflow, _, number, _, _ in cluster.bodies())
    assert set(runs.values()) == {1}
    assert len(runs) == 1 + WORKFLOWS * STEPS
    assert len(ids) == 1 + WORKFLOWS


@pytest.mark.parametrize("at", [START, CLAIM, FLUSH], ids=["start", "claim", "flush"])
def test_i1_i3_answer_to_commit_delayed(cluster: TestCluster, at: str) -> None:
    asyncio.run(run_chains(cluster, cluster, at, "after", hold=True))
    runs = Counter((workflow, number) for workflow, _, number, _, _ in cluster.bodies())
    assert set(runs.values()) == {1}


@pytest.mark.parametrize("when", ["before", "after"])
def test_i2_created_is_right_after_a_lost_answer(cluster: TestCluster, when: Moment) -> None:
    async def go() -> None:
        with Proxy(cluster.direct[0]) as proxy:
            async with app.connect(cluster.through(proxy.dsn).config) as client:
                await client.start(echo.bind("warm"))
                cut = proxy.cut(COMMIT, when=when, within=START)
                first = await client.start(echo.bind("x"), id="only")
                assert cut.count == 1
                again = await client.start(echo.bind("x"), id="only")
                assert (first.created, again.created) == (True, False)

    asyncio.run(go())
    assert [row["id"] for row in cluster.rows().workflow].count("only") == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_i1_a_connection_that_dies_silently_costs_seconds_and_no_start(cluster: TestCluster, when: Moment) -> None:
    """No packet says that it is dead. The same rows go out again on another connection, though the backend of the
    first may still hold their locks."""

    async def go() -> None:
        with Proxy(cluster.direct[0]) as proxy:
            async with app.connect(cluster.through(proxy.dsn).config) as client:
                await client.start(echo.bind("warm"))
                dead = proxy.hold(COMMIT, when=when, within=START)
                begun = time.monotonic()
                first = await client.start(echo.bind("x"), id="only")  # with the default wait
                assert dead.count == 1
                assert first.created
                assert time.monotonic() - begun < WRITE_DEADLINE_SECONDS

    asyncio.run(go())
    assert [row["id"] for row in cluster.rows().workflow].count("only") == 1


def test_i6_a_connection_that_dies_silently_costs_no_message(cluster: TestCluster) -> None:
    async def go() -> None:
        with Proxy(cluster.direct[0]) as proxy:
            async with app.connect(cluster.through(proxy.dsn).config) as client:
                handle = await client.start(echo.bind("x"), id="receiver")
                dead = proxy.hold(COMMIT, when="after", within=MESSAGE)
                await client.send(handle.id, "mail", "once")
                assert dead.count == 1

    asyncio.run(go())
    assert len(cluster.rows().message) == 1
