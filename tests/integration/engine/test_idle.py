"""What an executor costs that has nothing to do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sharded_wf.dev import EmbeddedServer
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain
from tests.support.processes import wait_until

SECONDS = 10.0
STATEMENTS_PER_SECOND_MAX = 2.0
CORE_SHARE_MAX = 0.01
SETTLED = "select count(*) from wf_control.lease where idle"


def statements_logged(log: Path) -> int:
    """Every execution of a statement that the server logged, whichever protocol brought it."""
    lines = log.read_text(errors="replace").splitlines()
    return sum(line.startswith("sharded_wf") and ("execute " in line or "statement: " in line) for line in lines)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.sampled
def test_an_idle_executor_costs_next_to_nothing(
    make_cluster: Callable[..., TestCluster], server_factory: Callable[..., EmbeddedServer]
) -> None:
    server = server_factory(settings={"log_statement": "all", "log_line_prefix": "%a|"})
    cluster = make_cluster(dsns=[server.create_database("idle")], slots=48)
    with cluster.worker() as worker:
        wait_until(lambda: cluster.ask(SETTLED) == [(1,)], "that the executor says it is idle")

        async def one() -> None:
            async with app.connect(cluster.config) as client:
                assert await (await client.start(chain.bind(1))).result(20) == 1

        asyncio.run(one())  # it is idle, not asleep
        wait_until(lambda: cluster.ask(SETTLED) == [(1,)], "that it is idle again")
        time.sleep(2.0)  # what follows work (a vacuum, the listener of the client) comes to its end
        before, cpu, begun = statements_logged(server.log_path), cpu_seconds(worker.pid), time.monotonic()
        time.sleep(SECONDS)  # the measurement itself
        after, spent = statements_logged(server.log_path), cpu_seconds(worker.pid) - cpu
        took = time.monotonic() - begun
    rate = (after - before) / took
    assert 0.5 < rate <= STATEMENTS_PER_SECOND_MAX, f"{rate:.2f} statements a second"
    assert spent / took < CORE_SHARE_MAX, f"{spent / took:.2%} of a core"
