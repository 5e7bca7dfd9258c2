"""Start → result through an idle system, beside what one commit costs on the same server.

One executor process, one client, on one shard; each workflow (no step) is started when the last one's result has come.
The bound that we hold ourselves to is p50 ≤ 3 commits + 3 ms, and p99 ≤ 3 times that.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
import psycopg

from sharded_wf import ClusterConfig, connect

from .certificate import Certificate, Expected, certify
from .cluster import Cluster
from .conditions import conditions_of
from .percentiles import Latency, latency_of
from .processes import open_processes
from .run import Say
from .workloads import OK, TEXT, steps

WARM_UP_ROUNDS = 50
RESULT_SECONDS_MAX = 30
COMMITS_BOUND = 3
EXTRA_BOUND_MS = 3.0
P99_BOUND_FACTOR = 3


class Bound(msgspec.Struct, frozen=True):
    """Milliseconds that p50 and p99 may have."""

    p50: float
    p99: float


class Idle(msgspec.Struct, frozen=True):
    """What ``bench latency`` found."""

    rounds: int
    commit_ms: Latency
    start_to_result_ms: Latency
    bound_ms: Bound
    within: bool
    certificate: Certificate
    conditions: dict[str, dict[str, str]]


def measure(cluster: Cluster, rounds: int, say: Say) -> Idle:
    """Measure both, one after the other: while one is measured nothing else goes on."""
    say("what one commit costs")
    commit = latency_of(_commits(cluster.bare, rounds), "one insert of one row, committed")
    say("start to result, one at a time")
    with open_processes(cluster.config, cluster.ledger) as processes:
        processes.start_executors(1)
        seconds = asyncio.run(_results(cluster.config, cluster.ledger, rounds))
        processes.end(processes.executors)
    result = latency_of(seconds, "start to result in the client's hand, one at a time")
    assert commit.p50 is not None and result.p50 is not None and result.p99 is not None
    p50 = round(COMMITS_BOUND * commit.p50 + EXTRA_BOUND_MS, 3)
    bound = Bound(p50, round(P99_BOUND_FACTOR * p50, 3))
    certificate = certify(cluster.config, cluster.ledger, Expected({steps.name: 0}))
    within = result.p50 <= bound.p50 and result.p99 <= bound.p99
    return Idle(rounds, commit, result, bound, within, certificate, conditions_of(cluster.first))


def _commits(dsn: str, rounds: int) -> list[float]:
    taken: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table if not exists commits (number int)")
        for number in range(rounds + WARM_UP_ROUNDS):
            begun = time.perf_counter()
            conn.execute("insert into commits values (%s)", (number,), prepare=True)
            taken.append(time.perf_counter() - begun)
    return taken[WARM_UP_ROUNDS:]


async def _results(config: ClusterConfig, ledger: str, rounds: int) -> list[float]:
    taken: list[float] = []
    ids: list[str] = []
    async with connect(config) as client:
        for _ in range(rounds + WARM_UP_ROUNDS):
            begun = time.perf_counter()
            handle = await client.start(steps.bind(0, TEXT))
            answer = await handle.result(RESULT_SECONDS_MAX)
            taken.append(time.perf_counter() - begun)
            assert answer == OK
            ids.append(handle.id)
    with psycopg.connect(ledger, autocommit=True) as conn:
        conn.execute(
            "insert into acknowledged (client, ids) values (0, %s::text::uuid[])", ("{" + ",".join(ids) + "}",)
        )
    return taken[WARM_UP_ROUNDS:]
