"""The engine against the bare loop, side by side: same server, interpreter, slots and executor processes, in one run.

    python -m bench.speed [--seconds 20] [--steps 0 1 3] [--slots 48] [--executors 2] [--rounds 1] [--dsn DSN] [--json
    FILE]

Without --dsn it starts an embedded PostgreSQL 18, with fsync and synchronous_commit on. Rounds alternate bare loop and
engine, so that a drift of the machine hits both. The engine's figure counts workflows that were started *and* finished
within the time; afterwards the rows themselves are counted, and the run fails if they disagree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import multiprocessing.sharedctypes
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from sharded_wf import App, ClusterConfig, Executor, ShardConfig, connect
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.executor.worker import calm_garbage_collector

BATCH = 1_000  # workflows per start_many
BACKLOG = 30_000  # how far the starter may run ahead, as the bare loop's
WARM_UP_SECONDS = 3.0
SERVER_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "max_connections": "300"}

app = App("bench")


@app.step
async def add(number: int) -> dict[str, int]:
    return {"n": number}


@app.workflow
async def steps(count: int, _text: str) -> dict[str, bool]:
    for number in range(count):
        await add(number)
    return {"ok": True}


Counter = multiprocessing.sharedctypes.Synchronized


def start_for_ever(config: ClusterConfig, count: int, finished: Counter[int]) -> None:
    """The client: keeps the backlog full."""

    async def main() -> None:
        started = 0
        async with connect(config) as client:

            async def start() -> None:
                nonlocal started
                while True:
                    if started - finished.value > BACKLOG:
                        await asyncio.sleep(0.005)
                        continue
                    started += BATCH
                    await client.start_many(steps.bind(count, "hello world") for _ in range(BATCH))

            await asyncio.gather(start(), start())

    asyncio.run(main())


def execute_for_ever(config: ClusterConfig, finished: Counter[int]) -> None:
    """An executor, as `sharded-wf worker` runs it; it tells how many workflows it has finished."""

    async def main() -> None:
        async with Executor(app, config) as executor:
            told = 0
            while True:
                await asyncio.sleep(0.05)
                now = executor.statistics()["finished"]
                with finished.get_lock():
                    finished.value += now - told
                told = now

    import uvloop

    calm_garbage_collector()

    uvloop.run(main())


def run_engine(dsn: str, seconds: float, count: int, slots: int, executors: int) -> float:
    """Workflows per second, started and finished."""
    database = "speed_engine"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"drop database if exists {database} with (force)")
        conn.execute(f"create database {database}")
    shard = make_conninfo(dsn, dbname=database)
    config = ClusterConfig("bench", (ShardConfig("main", shard),))
    init_cluster(config, slots)
    finished: Counter[int] = mp.Value("q", 0)
    processes = [
        mp.Process(target=start_for_ever, args=(config, count, finished), daemon=True),
        *(mp.Process(target=execute_for_ever, args=(config, finished), daemon=True) for _ in range(executors)),
    ]
    for process in processes:
        process.start()
    time.sleep(WARM_UP_SECONDS)
    rates: list[float] = []
    for _ in range(max(1, round(seconds / 5))):
        first, begun = finished.value, time.perf_counter()
        time.sleep(5)
        rates.append((finished.value - first) / (time.perf_counter() - begun))
    counted = finished.value
    for process in processes:
        process.terminate()
    with psycopg.connect(shard) as conn:
        parts = " union all ".join(
            f"select count(*) filter (where status = 3), "
            f"(select count(*) from wf_{slot:04d}.step) from wf_{slot:04d}.workflow"
            for slot in range(slots)
        )
        counted_rows = conn.execute(f"select sum(a), sum(b) from ({parts}) t (a, b)".encode()).fetchone()
        assert counted_rows is not None
        done, recorded = counted_rows
    if done < counted or recorded < done * count:
        sys.exit(f"wrong: {counted} were counted, but {done} rows have finished, with {recorded} steps")
    print("    every 5 s:", " ".join(f"{rate:,.0f}" for rate in rates), file=sys.stderr)
    return statistics.fmean(rates)


def run_ceiling(dsn: str, seconds: float, count: int, slots: int, executors: int) -> float:
    """The bare loop's workflows per second."""
    script = Path(__file__).with_name("ceiling.py")
    command = [
        sys.executable, str(script), dsn, "--seconds", str(seconds), "--steps", str(count),
        "--slots", str(slots), "--executors", str(executors),
    ]  # fmt: skip
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(answer.stdout)["workflows_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine against the bare loop, side by side.")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dsn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shape = (options.slots, options.executors)
    results = []
    with ExitStack() as exits:
        dsn = options.dsn
        if dsn is None:
            server = exits.enter_context(EmbeddedServer.create(settings=SERVER_SETTINGS))
            dsn = server.dsn("postgres")
        for count in options.steps:
            for _ in range(options.rounds):
                before = run_ceiling(dsn, options.seconds / 2, count, *shape)
                engine = run_engine(dsn, options.seconds, count, *shape)
                after = run_ceiling(dsn, options.seconds / 2, count, *shape)
                ceiling = (before + after) / 2
                row = {
                    "steps": count,
                    "workflows_per_second": round(engine),
                    "ceiling_workflows_per_second": round(ceiling),
                    "ratio_to_ceiling": round(engine / ceiling, 2),
                }
                results.append(row)
                print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
