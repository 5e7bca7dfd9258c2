"""What a cluster costs on which nothing happens: ``python -m bench.idle [--shards 1 8] [--slots 6 48]``.

For each number of shards, and of slots on each: the CPU of one idle executor process and of one shard's Postgres, in
milliseconds a second (10 is one percent of a core), and how many transactions a second the shard commits. Postgres
without any executor is measured first, and subtracted. CPU is counted by the kernel in nanoseconds and hardly depends
on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import psycopg

from sharded_wf.dev.supervisor import process_family

from .cluster import Cluster, Shape, open_cluster
from .processes import open_processes
from .sampling import postmaster_of

SETTLE_SECONDS = 8.0


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes, with all their threads; of those that are gone, nothing."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def servers(cluster: Cluster) -> list[int]:
    return [pid for server in cluster.servers.values() for pid in process_family(postmaster_of(server))]


def commits(cluster: Cluster) -> int:
    total = 0
    for shard in cluster.config.shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            row = conn.execute("select xact_commit from pg_stat_database where datname = current_database()").fetchone()
            total += 0 if row is None else row[0]
    return total


def measure(shards: int, slots: int, seconds: float) -> None:
    """One line."""
    with open_cluster(Shape(shards, None, slots * shards)) as cluster:
        time.sleep(SETTLE_SECONDS)
        before = cpu_seconds(pids := servers(cluster))
        time.sleep(seconds)
        bare = (cpu_seconds(pids) - before) / seconds
        with open_processes(cluster.config, cluster.ledger) as processes:
            processes.start_executors(1)
            time.sleep(SETTLE_SECONDS)
            executor = [process.pid for process in processes.executors]
            pids, counted = servers(cluster), commits(cluster)
            theirs, ours = cpu_seconds(pids), cpu_seconds(executor)
            time.sleep(seconds)
            theirs, ours = cpu_seconds(pids) - theirs, cpu_seconds(executor) - ours
            counted = commits(cluster) - counted - shards
            processes.end(processes.executors)
    added = theirs / seconds - bare
    print(
        f"{shards:2} shards, {slots:3} slots on each: executor {ours / seconds * 1000:6.2f} ms/s "
        f"({ours / seconds / shards * 1000:5.2f} a shard), "
        f"Postgres {added / shards * 1000:6.2f} ms/s a shard (without us {bare / shards * 1000:.2f}), "
        f"{counted / seconds / shards:.1f} transactions/s a shard",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--slots", type=int, nargs="+", default=[6, 48], help="on each shard")
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, one idle executor")
    for shards in options.shards:
        for slots in options.slots:
            measure(shards, slots, options.seconds)


if __name__ == "__main__":
    main()
