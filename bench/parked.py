"""What parked workflows cost an executor in memory.

    python -m bench.parked [--workflows 100000] [--dsn DSN]

One executor in a fresh process, 48 slots on one shard. First so many workflows that end by themselves, after a short
wait in memory, all started at once: they bring the process to the size that such a burst makes it. Then as many, in the
same way, that sleep for a day and park. Resident memory is read after each, when nothing is held any more and the
garbage is collected; nothing is given back to the system by hand. Prints one JSON object; the bound that we hold
ourselves to is 20 MB (of 10^6 bytes) more for 100,000 parked workflows.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing as mp
import os
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from bench import speed
from sharded_wf import App, ClusterConfig, ShardConfig, connect
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.dev.embedded import EmbeddedServer

SHORT_SECONDS = 0.01
LONG_SECONDS = 86_400.0
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 600.0

app = App("parked")


@app.workflow
async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "awake"


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(config: ClusterConfig, questions: Connection) -> None:
    """The executor's process: answers each question with what it holds and what it weighs, until there are no more."""

    async def main() -> None:
        async with app.executor(config) as executor:
            while await asyncio.to_thread(questions.recv):
                gc.collect()
                questions.send((executor.statistics()["held"], resident_bytes()))

    asyncio.run(main())


def burst(config: ClusterConfig, shard: str, seconds: float, count: int, status: int, executor: Connection) -> int:
    """Start the workflows, wait until all have come to the status and none is held; the executor's resident bytes."""

    async def start() -> list[str]:
        async with connect(config) as client:
            handles = await client.start_many(sleeper.bind(seconds) for _ in range(count))
            return [handle.id for handle in handles]

    asyncio.run(start())
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(shard, autocommit=True) as conn:
        schemas = [row[0] for row in conn.execute("select nspname from pg_namespace where nspname ~ '^wf_[0-9]+$'")]
        counted = " union all ".join(
            f"select count(*) n from {name}.workflow where status = {status}" for name in schemas
        )
        while time.monotonic() < deadline:
            [(found,)] = conn.execute(f"select sum(n)::int from ({counted}) c".encode()).fetchall()
            executor.send(True)
            held, resident = executor.recv()
            if found == count and held == 0:
                return int(resident)
            time.sleep(POLL_SECONDS)
    raise SystemExit(f"after {PATIENCE_SECONDS:g} s not all workflows had come to status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What parked workflows cost an executor in memory.")
    parser.add_argument("--workflows", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--dsn")
    options = parser.parse_args()
    with ExitStack() as exits:
        dsn = options.dsn
        if dsn is None:
            server = exits.enter_context(EmbeddedServer.create(settings=speed.SERVER_SETTINGS))
            dsn = server.dsn("postgres")
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("drop database if exists parked with (force)")
            conn.execute("create database parked")
        shard = make_conninfo(dsn, dbname="parked")
        config = ClusterConfig("bench", (ShardConfig("main", shard),))
        init_cluster(config, options.slots)
        ours, theirs = mp.get_context("spawn").Pipe()
        process = mp.get_context("spawn").Process(target=serve, args=(config, theirs), daemon=True)
        process.start()
        ours.send(True)
        _, fresh = ours.recv()
        ended = burst(config, shard, SHORT_SECONDS, options.workflows, 3, ours)
        parked = burst(config, shard, LONG_SECONDS, options.workflows, 2, ours)
        ours.send(False)
        process.join()
    figures = {"fresh": fresh, "after_ended": ended, "after_parked": parked, "parked_add": parked - ended}
    print(json.dumps({"workflows": options.workflows, "MB": {name: round(n / 1e6, 1) for name, n in figures.items()}}))


if __name__ == "__main__":
    main()
