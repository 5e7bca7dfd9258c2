"""Compensations past killed executors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from sharded_wf.model.status import Status
from tests.support.cluster import TestCluster
from tests.support.flows import app, saga_flow, saga_flow_blocking
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

STEPS = 3
BOTH: tuple[Moment, Moment] = ("before", "after")
POINTS: list[tuple[Any, int, Moment]] = [
    (workflow, skip, when) for workflow in (saga_flow, saga_flow_blocking) for skip in range(2 * STEPS) for when in BOTH
]


def test_killed_at_every_flush(make_cluster: Callable[..., TestCluster], seed: int, full: bool) -> None:
    """SIGKILL at each recorded step or compensation, on its way to the server or back; a sample, or every one."""
    for workflow, skip, when in POINTS if full else random.Random(seed).sample(POINTS, 1):
        cluster = make_cluster(1)

        async def start(cluster: TestCluster = cluster, workflow: Any = workflow) -> None:
            async with app.connect(cluster.config) as client:
                await client.start(workflow.bind(STEPS), id="w")

        with Proxy(cluster.direct[0]) as proxy:
            with cluster.through(proxy.dsn).worker() as victim:
                wait_until(lambda c=cluster: len(c.leases()) == 1, "the lease")  # type: ignore[misc]
                held = proxy.hold(COMMIT, when=when, within=r"insert into wf_\d+\.step", skip=skip)
                asyncio.run(start())
                held.wait()
                victim.kill()
                proxy.release()
            with cluster.worker():
                wait_until(lambda c=cluster: c.statuses()["w"] == Status.FAILED, "the end", interval=0.1)  # type: ignore[misc]
                cluster.certify(["w"])
        once = list(dict.fromkeys(body[2] for body in cluster.bodies()))
        assert once == [*range(1, STEPS + 1), *range(-STEPS, 0)]
