"""Many workflows that wait: what do they cost in memory, and what happens when all of them come due together?

1. Executors run a little work, and their memory is read: the beginning.
2. Sleepers are started, in closed loop, all of them due at one moment, far enough away that every one is parked before.
   When as many timers stand in the tables, the memory is read again.
3. Half a minute before the moment an open loop begins to start other workflows, and goes on until the last sleeper has
   woken and ended. Its latency, from the intended start, says what the stampede does to others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import LiteralString

import msgspec
import psycopg
from psycopg import sql

from sharded_wf import Client, connect
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import BenchFailed

from .certificate import Certificate, Expected, certify, slots_of
from .cluster import Cluster
from .conditions import conditions_of
from .percentiles import Latency, latency_of
from .processes import Processes, open_processes
from .run import FROM_CLIENT, Say, drain
from .sampling import rss_bytes
from .workloads import TEXT, sleep, steps

BATCH = 1_000
WARM_UP_WORKFLOWS = 5_000
STARTS_PER_SECOND_GUESSED = 4_000  # low: it only sets the moment when all come due
PARKING_SLACK_SECONDS = 20.0
LEAD_SECONDS = 5.0
POLL_SECONDS = 0.5
NEAR_WORKFLOWS = 2_000
ENDED_SECONDS_MAX = 1800.0
MEGABYTE = 1024 * 1024


class Parked(msgspec.Struct, frozen=True):
    """What ``bench parked`` found. Memory is that of the executor that grew most, in bytes."""

    workflows: int
    shards: int
    executors: int
    rss_before_bytes: int
    rss_parked_bytes: int
    rss_growth_bytes: int
    wakeups_per_second: float
    """Sleepers, from the moment they were due to the end of the last."""
    wakeup_seconds: float
    start_rate: float
    latency_ms: Latency
    """Of the workflows that were started meanwhile."""
    lost: int
    duplicated: int
    misordered: int
    certificate: Certificate
    conditions: dict[str, dict[str, str]]


def measure(cluster: Cluster, count: int, rate: float, executors: int, say: Say) -> Parked:
    """Raises ``BenchFailed`` if they are not all parked in time, or don't end."""
    with open_processes(cluster.config, cluster.ledger) as processes:
        processes.start_executors(executors)
        asyncio.run(start_all(cluster, WARM_UP_WORKFLOWS, None, say))
        _await_finished(processes, WARM_UP_WORKFLOWS, time.monotonic() + 120)
        pids = [process.pid for process in processes.executors]
        before = [rss_bytes(pid) for pid in pids]
        due_at = time.time() + count / STARTS_PER_SECOND_GUESSED + PARKING_SLACK_SECONDS
        asyncio.run(start_all(cluster, count, due_at, say))
        _await_parked(cluster.config, processes, count, due_at, say)
        parked = [rss_bytes(pid) for pid in pids]
        growths = [after - first for first, after in zip(before, parked, strict=True)]
        most = growths.index(max(growths))
        _wait_until(due_at - LEAD_SECONDS, processes, say)
        processes.start_clients(1, "noop", 0, backlog=0, rate=rate)
        _wait_until(due_at, processes, say)
        due_monotonic = time.monotonic()
        last = _await_woken(cluster.config.shards, processes, WARM_UP_WORKFLOWS + count, say)
        woken_monotonic = time.monotonic()
        drained = drain(cluster, processes, say)
        timed = [one.seconds for one in processes.timed() if due_monotonic <= one.intended_at < woken_monotonic]
    certificate = certify(cluster.config, cluster.ledger, Expected({steps.name: 0, sleep.name: 0}, drained))
    seconds = max(0.001, last.timestamp() - due_at)
    return Parked(
        count, len(cluster.config.shards), executors, before[most], parked[most], growths[most],
        round(count / seconds, 1), round(seconds, 2), rate, latency_of(timed, FROM_CLIENT), certificate.count("lost"),
        certificate.count("duplicated"), certificate.count("misordered"), certificate, conditions_of(cluster.first),
    )  # fmt: skip


async def start_all(cluster: Cluster, count: int, due_at: float | None, say: Say) -> None:
    """Start so many sleepers that are due then (or, without a moment, workflows that do nothing), and tell the
    ledger."""
    async with (
        connect(cluster.config) as client,
        await psycopg.AsyncConnection.connect(cluster.ledger, autocommit=True) as ledger,
    ):
        for first in range(0, count, BATCH):
            ids = await _start_batch(client, min(BATCH, count - first), due_at)
            await ledger.execute(
                "insert into acknowledged (client, ids) values (-1, %s::text::uuid[])", ("{" + ",".join(ids) + "}",)
            )
            say(f"starting {count:,} workflows: {first:,}")


async def _start_batch(client: Client, count: int, due_at: float | None) -> list[str]:
    bound = steps.bind(0, TEXT) if due_at is None else sleep.bind(max(1.0, due_at - time.time()))
    return [handle.id for handle in await client.start_many(bound for _ in range(count))]


def _await_finished(processes: Processes, count: int, deadline: float) -> None:
    while processes.finished() < count:
        processes.check()
        if time.monotonic() > deadline:
            raise BenchFailed(f"{count:,} workflows without steps did not end in time")
        time.sleep(POLL_SECONDS)


def _count(shards: Sequence[ShardConfig], query: LiteralString) -> int:
    total = 0
    for shard in shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            for schema in slots_of(conn):
                composed = sql.SQL(query).format(s=sql.Identifier(schema))
                row = conn.execute(composed).fetchone()
                assert row is not None
                total += row[0]
    return total


def _await_parked(config: ClusterConfig, processes: Processes, count: int, due_at: float, say: Say) -> None:
    while (parked := _count(config.shards, "select count(*) from {s}.timer")) < count:
        processes.check()
        say(f"parking: {parked:,} of {count:,}")
        if time.time() > due_at - LEAD_SECONDS:
            raise BenchFailed(
                f"only {parked:,} of {count:,} workflows were parked when they came due: this machine starts fewer "
                f"than {STARTS_PER_SECOND_GUESSED:,} a second; choose fewer workflows"
            )
        time.sleep(POLL_SECONDS)


def _wait_until(moment: float, processes: Processes, say: Say) -> None:
    while (left := moment - time.time()) > 0:
        processes.check()
        say(f"all come due in {left:.0f} s")
        time.sleep(min(left, POLL_SECONDS))


def _await_woken(shards: Sequence[ShardConfig], processes: Processes, besides: int, say: Say) -> datetime:
    """Wait until every sleeper has ended; the moment when the last one did, by its row. ``besides``: how many workflows
    were started by others than the clients."""
    deadline = time.monotonic() + ENDED_SECONDS_MAX
    # Counting a million rows, again and again, would take from Postgres what is measured: only when the end is near.
    while (left := besides + processes.started() - processes.finished()) > NEAR_WORKFLOWS:
        processes.check()
        say(f"waking: some {left:,} to go")
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    query: LiteralString = "select count(*) from {s}.workflow where name = 'bench/sleep' and status < 3"
    while left := _count(shards, query):
        processes.check()
        say(f"waking: {left:,} to go")
        if time.monotonic() > deadline:
            raise BenchFailed(f"{left:,} workflows had not ended {ENDED_SECONDS_MAX:g} s after they came due")
        time.sleep(POLL_SECONDS)
    last = datetime.fromtimestamp(0, UTC)
    for shard in shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            for schema in slots_of(conn):
                row = conn.execute(
                    sql.SQL("select max(completed_at) from {}.workflow where name = 'bench/sleep'").format(
                        sql.Identifier(schema)
                    )
                ).fetchone()
                if row is not None and row[0] is not None:
                    last = max(last, row[0])
    return last
