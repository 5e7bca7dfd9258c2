"""Start → result through an idle system, beside what one commit costs on the same server.

    python -m bench.latency [--rounds 500] [--dsn DSN]

One executor process, one client, 48 slots on one shard; each workflow (no step) is started when the last one's result
has come. Prints one JSON object, times in milliseconds: the bound that we hold ourselves to is p50 ≤ 3 commits + 3 ms,
and p99 ≤ 3 times that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import time
from contextlib import ExitStack

import psycopg
from psycopg.conninfo import make_conninfo

from bench import speed
from sharded_wf import ClusterConfig, ShardConfig, connect
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.dev.embedded import EmbeddedServer

WARM_UP_ROUNDS = 50


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] * 1000, 2) for p in (50, 95, 99)}


def measure_commits(dsn: str, rounds: int) -> dict[str, float]:
    """What inserting one row costs, committed."""
    taken = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table if not exists commits (number int)")
        for number in range(rounds + WARM_UP_ROUNDS):
            begun = time.perf_counter()
            conn.execute("insert into commits values (%s)", (number,), prepare=True)
            taken.append(time.perf_counter() - begun)
    return percentiles(taken[WARM_UP_ROUNDS:])


def measure_results(config: ClusterConfig, rounds: int) -> dict[str, float]:
    """Start → result, one at a time."""

    async def main() -> list[float]:
        taken = []
        async with connect(config) as client:
            for number in range(rounds + WARM_UP_ROUNDS):
                begun = time.perf_counter()
                handle = await client.start(speed.steps.bind(0, str(number)))
                await handle.result(30)
                taken.append(time.perf_counter() - begun)
        return taken[WARM_UP_ROUNDS:]

    return percentiles(asyncio.run(main()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Start → result through an idle system.")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--dsn")
    options = parser.parse_args()
    with ExitStack() as exits:
        dsn = options.dsn
        if dsn is None:
            server = exits.enter_context(EmbeddedServer.create(settings=speed.SERVER_SETTINGS))
            dsn = server.dsn("postgres")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("drop database if exists latency with (force)")
            conn.execute("create database latency")
        shard = make_conninfo(dsn, dbname="latency")
        config = ClusterConfig("bench", (ShardConfig("main", shard),))
        init_cluster(config, options.slots)
        commit = measure_commits(shard, options.rounds)
        executor = mp.Process(target=speed.execute_for_ever, args=(config, mp.Value("q", 0)), daemon=True)
        executor.start()
        result = measure_results(config, options.rounds)
        executor.terminate()
        executor.join()
        bound = 3 * commit["p50"] + 3
        print(
            json.dumps(
                {
                    "commit_ms": commit,
                    "start_to_result_ms": result,
                    "bound_ms": {"p50": round(bound, 2), "p99": round(3 * bound, 2)},
                    "within": result["p50"] <= bound and result["p99"] <= 3 * bound,
                }
            )
        )


if __name__ == "__main__":
    main()
