"""What the removal of a workflow costs: µs per workflow, at 0 and 3 steps, one slot, on its own.

    python -m bench.retention [--rows 100000] [--random-ids] [--dsn DSN]

``postgres_cpu_us`` is the CPU time of the backend that removes them (the pages included that are logged whole after a
checkpoint), ``vacuum_cpu_us`` that of the vacuum which follows: both are known for an embedded server only. They hardly
depend on what else the machine does; ``us``, by the clock, does. IDs are as the engine makes them, in order of time;
with --random-ids in none, as users' own may be. Without --dsn it starts an embedded PostgreSQL 18, with fsync and
synchronous_commit on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from sharded_wf import ClusterConfig, Retention, ShardConfig
from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.maintenance.sweep import Sweep, cutoffs_at
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import Query
from sharded_wf.postgres.session import Statement
from sharded_wf.routing import new_id
from sharded_wf.store.retention import START, vacuums

SLOT = "wf_0000"
_BACKEND = Query("backend", "select pg_backend_pid()")


def fill(dsn: str, rows: int, steps: int, *, random_ids: bool = False) -> None:
    ids = [str(uuid.uuid4()) if random_ids else new_id(SYSTEM_CLOCK) for _ in range(rows)]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            f"""insert into {SLOT}.workflow (created_at, completed_at, status, priority, id, name, capability, queue,
                claims, input, output)
                select now() - interval '3 h' + n * interval '1 ms', now() - interval '2 h', 3,
                0, id, 'bench/steps', 'bench', 'default', 1, '[]', '1'
                from unnest(%s::text[]) with ordinality u(id, n)""".encode(),
            (ids,),
        )
        conn.execute(
            f"""insert into {SLOT}.step select 0, now(), now(), n, n, 0, id, 'add', '1', null
                from {SLOT}.workflow, generate_series(1, {steps}) n""".encode()
        )
        conn.execute(f"vacuum analyze {SLOT}.workflow".encode())
        conn.execute(f"vacuum analyze {SLOT}.step".encode())
        conn.execute("checkpoint")


def cpu_us(pid: int) -> float:
    """CPU time of a process on this machine, finer than in clock ticks."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


async def remove(config: ClusterConfig, *, local: bool) -> tuple[int, float, float]:
    """How many were removed; the seconds that took, this process included; and the µs of CPU of the backend."""
    shards = await ShardSet.open(config)
    shard = shards.shards["main"]
    link = shard.link("bench")
    try:
        pid = binary.read_int((await link.fetch(Statement(_BACKEND, ""))).value() or b"")
        before = cpu_us(pid) if local else 0.0
        sweep = Sweep(link, shards, shard.schemas, None)
        now = shard.clock.now_us()
        cutoffs = cutoffs_at(Retention(3600), now)
        place, more, deleted, begun = START, True, 0, time.perf_counter()
        while more:
            page = await sweep.page(0, place, cutoffs.default, cutoffs)
            place, more, deleted = page.end, page.full, deleted + page.deleted
        return deleted, time.perf_counter() - begun, cpu_us(pid) - before if local else 0.0
    finally:
        link.close()
        await shards.close()


def vacuum(dsn: str) -> float:
    """The µs of CPU that it took."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = cpu_us(conn.info.backend_pid)
        for command in vacuums(SLOT):
            conn.execute(command.encode())
        return cpu_us(conn.info.backend_pid) - before


def main() -> None:
    parser = argparse.ArgumentParser(description="What the removal of a workflow costs.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--random-ids", action="store_true", help="IDs in no order of time")
    parser.add_argument("--dsn")
    options = parser.parse_args()
    with ExitStack() as exits:
        dsn = options.dsn
        if dsn is None:
            settings = {"shared_buffers": "1GB", "max_wal_size": "8GB"}
            dsn = exits.enter_context(EmbeddedServer.create(settings=settings)).dsn("postgres")
        for steps in (0, 3):
            found = measure(dsn, options.rows, steps, random_ids=options.random_ids, local=options.dsn is None)
            print(json.dumps(found), flush=True)


def measure(dsn: str, rows: int, steps: int, *, random_ids: bool, local: bool) -> dict[str, object]:
    """Fill a database, and remove all of it. ``local``: the server's processes are on this machine."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("drop database if exists bench_retention with (force)")
        conn.execute("create database bench_retention")
    shard = make_conninfo(dsn, dbname="bench_retention")
    config = ClusterConfig("bench", (ShardConfig("main", shard),))
    init_cluster(config, 1)
    fill(shard, rows, steps, random_ids=random_ids)
    ours = time.process_time()
    deleted, seconds, removing_us = asyncio.run(remove(config, local=local))
    ours = time.process_time() - ours
    found: dict[str, object] = {
        "steps": steps,
        "deleted": deleted,
        "us": round(seconds / deleted * 1e6, 1),
        "python_cpu_us": round(ours / deleted * 1e6, 1),
    }
    if local:
        vacuuming_us = vacuum(shard)
        found["postgres_cpu_us"] = round(removing_us / deleted, 1)
        found["vacuum_cpu_us"] = round(vacuuming_us / deleted, 1)
    return found


if __name__ == "__main__":
    main()
