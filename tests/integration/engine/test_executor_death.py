"""I3 to I5: executors that are killed, frozen or blocked; what is recorded stays, what is not is done by others."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from sharded_wf import Bound
from sharded_wf.limits import LEASE_SECONDS
from tests.support.cluster import TestCluster
from tests.support.flows import app, blocking_chain, chain, gated_chain, sleeper, slow_chain
from tests.support.processes import WAIT_SECONDS, wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

TAKEOVER_SECONDS = 20.0
"""Ten, on a machine that is not busy with something else."""


def start(cluster: TestCluster, *pairs: tuple[str, Bound[Any]]) -> None:
    """Start workflows, given as (ID, bound)."""

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start_many(pairs)

    asyncio.run(go())


def wait_bodies(cluster: TestCluster, step: str, count: int) -> None:
    wait_until(lambda: sum(body[1] == step for body in cluster.bodies()) >= count, f"{count} runs of {step}")


def wait_finished(cluster: TestCluster, count: int, timeout: float = WAIT_SECONDS) -> None:
    wait_until(
        lambda: [status >= 3 for status in cluster.statuses().values()].count(True) == count,
        f"{count} outcomes",
        timeout,
        0.1,
    )


def test_i3_i5_killed_in_the_middle_of_steps(two_shards: TestCluster) -> None:
    """With default settings: what is recorded never runs again, the rest goes on elsewhere within seconds."""
    ids = [f"w-{number}" for number in range(20)]
    with two_shards.closed_gate() as gate, two_shards.worker() as victim:
        start(two_shards, *((id_, gated_chain.bind(2, 2)) for id_ in ids))
        wait_bodies(two_shards, "gated_note", len(ids))
        with two_shards.worker() as heir:
            wait_until(lambda: len(two_shards.leases(1)) == len(two_shards.leases(2)) == 2, "the leases of both")
            killed_pid = victim.pid
            victim.kill()
            killed_at = time.monotonic()
            gate.close()
            wait_finished(two_shards, len(ids))
            took = time.monotonic() - killed_at
            two_shards.certify(ids)
            bodies = two_shards.bodies()
            assert took < TAKEOVER_SECONDS, f"the takeover took {took:.1f} s\n{heir.output()}"
    runs = Counter((workflow, number) for workflow, _, number, _, _ in bodies)
    for id_ in ids:
        assert [runs[id_, number] for number in range(5)] == [1, 1, 2, 1, 1]
        keys = {key for workflow, _, number, key, _ in bodies if (workflow, number) == (id_, 2)}
        assert len(keys) == 1, "the second attempt was given another idempotency key"
    assert {pid for *_, pid in bodies if pid != killed_pid} == {heir.pid}


@pytest.mark.sampled
def test_i4_two_executors_on_one_slot_under_load(make_cluster: Callable[..., TestCluster]) -> None:
    cluster = make_cluster(1, slots=1)
    ids = [f"w-{number}" for number in range(600)]

    async def go() -> None:
        async with (
            app.connect(cluster.config) as client,
            app.executor(cluster.config, concurrency=100),
            app.executor(cluster.config, concurrency=100),
        ):
            handles = await client.start_many((id_, chain.bind(2)) for id_ in ids)
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(cluster.certify, ids)

    asyncio.run(go())
    assert len(cluster.bodies()) == 2 * len(ids)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "within", [r"insert into wf_control\.flush", r"insert into wf_\d+\.claim"], ids=["flush", "claim"]
)
def test_i4_frozen_with_its_transaction_open(cluster: TestCluster, within: str) -> None:
    """A frozen executor whose backend holds the fence's lock in an open transaction: the takeover ends that backend,
    and the executor, woken again, writes nothing."""
    ids = [f"w-{number}" for number in range(10)]
    with Proxy(cluster.direct[0]) as proxy:
        behind = cluster.through(proxy.dsn)
        with behind.worker() as frozen:
            wait_until(lambda: len(cluster.leases()) == 1, "the first lease")
            (lease,) = cluster.leases()
            held = proxy.hold(COMMIT, when="before", within=within)
            start(cluster, *((id_, chain.bind(3)) for id_ in ids))
            held.wait()
            frozen.freeze()
            with cluster.worker() as heir:
                wait_until(lambda: lease not in cluster.leases(), "the end of the frozen executor's lease")
                wait_finished(cluster, len(ids))
                before = cluster.certify(ids, zombies={frozen.pid})
                frozen.thaw()
                proxy.release()
                # Its new lease says that it has noticed, and serves again.
                wait_until(lambda: len(cluster.leases()) == 2, "the new lease of the thawed executor")
                start(cluster, ("later", chain.bind(1)))
                wait_finished(cluster, len(ids) + 1)
                after = cluster.certify([*ids, "later"], zombies={frozen.pid})
                assert [row for row in after.step if row["workflow_id"] != "later"] == before.step
                assert heir.pid in {body[4] for body in cluster.bodies()}


@pytest.mark.sampled
def test_i4_frozen_past_its_lease_under_load(cluster: TestCluster) -> None:
    ids = [f"w-{number}" for number in range(150)]
    with cluster.worker("--concurrency", "40") as frozen, cluster.worker("--concurrency", "40") as heir:
        wait_until(lambda: len(cluster.leases()) == 2, "two leases")
        start(cluster, *((id_, slow_chain.bind(4, 0.2)) for id_ in ids))
        wait_until(lambda: len({body[4] for body in cluster.bodies()}) == 2, "bodies in both processes")
        frozen.freeze()
        wait_finished(cluster, len(ids))
        before = cluster.certify(ids, zombies={frozen.pid})
        frozen.thaw()
        wait_until(lambda: len(cluster.leases()) == 2, "the new lease of the thawed executor")
        after = cluster.certify(ids, zombies={frozen.pid})
        assert after.step == before.step
        assert heir.pid in {body[4] for body in cluster.bodies()}


@pytest.mark.sampled
def test_i4_a_blocking_step_does_not_lose_the_lease(cluster: TestCluster) -> None:
    with cluster.worker() as blocked, cluster.worker("--queue", "none"):
        wait_until(lambda: len(cluster.leases()) == 2, "two leases")
        leases = set(cluster.leases())
        start(cluster, ("w", blocking_chain.bind(1, LEASE_SECONDS + 3)))
        wait_finished(cluster, 1)
        cluster.certify(["w"])
        assert set(cluster.leases()) == leases
        assert [body[4] for body in cluster.bodies()] == [blocked.pid]


BOTH: tuple[Moment, Moment] = ("before", "after")
KILL_POINTS: list[tuple[str, Moment]] = [
    (within, when)
    for within in (r"insert into wf_\d+\.claim", r"insert into wf_\d+\.step", r"set status = 3", r"set status = 2")
    for when in BOTH
]


def test_i3_killed_exactly_at_commit(make_cluster: Callable[..., TestCluster], seed: int, full: bool) -> None:
    """SIGKILL while a COMMIT is on its way to the server, or its answer on the way back; a sample, or every point."""
    points = KILL_POINTS if full else random.Random(seed).sample(KILL_POINTS, 2)
    for within, when in points:
        cluster = make_cluster(1)
        ids = [f"w-{number}" for number in range(20)]
        with Proxy(cluster.direct[0]) as proxy, cluster.worker("--queue", "none"):
            with cluster.through(proxy.dsn).worker("--park-after", "0.1") as victim:
                wait_until(lambda c=cluster: len(c.leases()) == 2, "two leases")  # type: ignore[misc]
                held = proxy.hold(COMMIT, when=when, within=within)
                start(cluster, *((id_, sleeper.bind(1.0)) for id_ in ids))
                held.wait()
                victim.kill()
                proxy.release()
            with cluster.worker():
                wait_finished(cluster, len(ids))
                cluster.certify(ids)


@pytest.mark.sampled
def test_i5_new_processes_disturb_nobody(cluster: TestCluster) -> None:
    ids = [f"w-{number}" for number in range(60)]
    with cluster.worker() as steady:
        wait_until(lambda: len(cluster.leases()) == 1, "the first lease")
        (lease,) = cluster.leases()
        start(cluster, *((id_, slow_chain.bind(12, 0.3)) for id_ in ids))
        wait_until(
            lambda: len({body[0] for body in cluster.bodies()}) == len(ids), "all begun, by the one that is there"
        )
        for ending in ("kill", "terminate"):
            with cluster.worker() as visitor:
                pid = f":{visitor.pid}"
                wait_until(lambda end=pid: any(name.endswith(end) for name in cluster.leases().values()), "its lease")  # type: ignore[misc]
                if ending == "kill":
                    visitor.kill()
                else:
                    visitor.terminate()
                    assert visitor.wait() == 0
        wait_finished(cluster, len(ids))
        cluster.certify(ids)
        assert lease in cluster.leases()
        bodies = cluster.bodies()
    assert max(Counter(body[:3] for body in bodies).values()) == 1
    assert {body[4] for body in bodies} == {steady.pid}


@pytest.mark.sampled
def test_i5_a_lone_executor_finishes_what_one_left_that_nobody_watched(cluster: TestCluster) -> None:
    with cluster.closed_gate() as gate:
        with cluster.worker() as victim:
            start(cluster, ("w", gated_chain.bind(1, 1)))
            wait_bodies(cluster, "gated_note", 1)
            victim.kill()
        gate.close()
    killed_at = time.monotonic()
    with cluster.worker():
        wait_finished(cluster, 1)
        assert time.monotonic() - killed_at < TAKEOVER_SECONDS + 3  # and the start of a process
        cluster.certify(["w"])
    assert [body[2] for body in cluster.bodies()] == [0, 1, 1, 2]


def test_the_gate_holds(cluster: TestCluster) -> None:
    """The tests above would prove nothing if the gate were open."""
    with cluster.closed_gate(), psycopg.connect(cluster.ledger, autocommit=True) as conn:
        assert conn.execute("select pg_try_advisory_lock_shared(4711)").fetchone() == (False,)
