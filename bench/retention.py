"""What the removal of a workflow costs: µs in Postgres per workflow, at 0 and 3 steps, one slot, on its own.

    python -m bench.retention [--rows 100000] [--dsn DSN]

Without --dsn it starts an embedded PostgreSQL 18, with fsync and synchronous_commit on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import ExitStack

import psycopg
from psycopg.conninfo import make_conninfo

from sharded_wf import ClusterConfig, Retention, ShardConfig
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.maintenance.sweep import Sweep, cutoffs_at
from sharded_wf.store.retention import START

SLOT = "wf_0000"


def fill(dsn: str, rows: int, steps: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            f"""insert into {SLOT}.workflow (created_at, completed_at, status, priority, id, name, capability, queue,
                claims, input, output)
                select now() - interval '3 h' + n * interval '1 ms', now() - interval '2 h', 3,
                0, gen_random_uuid()::text, 'bench/steps', 'bench', 'default', 1, '[]', '1'
                from generate_series(1, {rows}) n""".encode()
        )
        conn.execute(
            f"""insert into {SLOT}.step select 0, now(), now(), n, n, 0, id, 'add', '1', null
                from {SLOT}.workflow, generate_series(1, {steps}) n""".encode()
        )
        conn.execute(f"vacuum analyze {SLOT}.workflow".encode())
        conn.execute(f"vacuum analyze {SLOT}.step".encode())
        conn.execute("checkpoint")


async def remove(config: ClusterConfig) -> tuple[int, float]:
    """How many were removed, and the seconds that took, this process included."""
    shards = await ShardSet.open(config)
    shard = shards.shards["main"]
    link = shard.link("bench")
    try:
        sweep = Sweep(link, shards, shard.schemas, None)
        now = shard.clock.now_us()
        cutoffs = cutoffs_at(Retention(3600), now)
        place, more, deleted, begun = START, True, 0, time.perf_counter()
        while more:
            page = await sweep.page(0, place, cutoffs.default, cutoffs)
            place, more, deleted = page.end, page.full, deleted + page.deleted
        return deleted, time.perf_counter() - begun
    finally:
        link.close()
        await shards.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What the removal of a workflow costs.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dsn")
    options = parser.parse_args()
    with ExitStack() as exits:
        dsn = options.dsn
        if dsn is None:
            dsn = exits.enter_context(EmbeddedServer.create(settings={"shared_buffers": "1GB"})).dsn("postgres")
        for steps in (0, 3):
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("drop database if exists bench_retention with (force)")
                conn.execute("create database bench_retention")
            shard = make_conninfo(dsn, dbname="bench_retention")
            config = ClusterConfig("bench", (ShardConfig("main", shard),))
            init_cluster(config, 1)
            fill(shard, options.rows, steps)
            clock = time.process_time()
            deleted, seconds = asyncio.run(remove(config))
            ours = time.process_time() - clock
            print(
                json.dumps(
                    {
                        "steps": steps,
                        "deleted": deleted,
                        "us_per_workflow": round(seconds / deleted * 1e6, 1),
                        "of_which_python_us": round(ours / deleted * 1e6, 1),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
