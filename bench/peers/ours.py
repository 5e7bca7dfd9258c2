"""sharded_wf itself, with everything on that is on by default."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import psycopg

from sharded_wf import App, ClusterConfig, Executor, ShardConfig, connect
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.executor.worker import run_fast
from sharded_wf.model.status import Status

from .contender import PAUSE_SECONDS, SPAWN, Count, Pace, Process, Shape, Told, Window, query_count

BATCH = 1_000  # workflows per start_many
STARTERS = 2  # calls of start_many that the client has under way at once

app = App("compare")


@app.step
async def add(number: int) -> dict[str, int]:
    return {"n": number}


@app.workflow
async def steps(count: int, _text: str) -> dict[str, bool]:
    for number in range(count):
        await add(number)
    return {"ok": True}


def cluster(dsn: str) -> ClusterConfig:
    return ClusterConfig("compare", (ShardConfig("main", dsn),))


def start_for_ever(dsn: str, count: int, told: Told) -> None:
    """The client."""

    async def main() -> None:
        pace = Pace(told)
        async with connect(cluster(dsn)) as client:

            async def start() -> None:
                while True:
                    if pace.may_start(BATCH):
                        await client.start_many(steps.bind(count, "hello world") for _ in range(BATCH))
                    else:
                        await asyncio.sleep(PAUSE_SECONDS)

            await asyncio.gather(*(start() for _ in range(STARTERS)))

    asyncio.run(main())


def execute_for_ever(dsn: str, told: Told) -> None:
    """An executor, as `sharded-wf worker` runs it."""

    async def main() -> None:
        async with Executor(app, cluster(dsn)) as executor:
            await told.follow(lambda: executor.statistics()["finished"])

    run_fast(main())


@dataclass(frozen=True)
class ShardedWf:
    name: str = "sharded_wf"
    packages: tuple[str, ...] = ("sharded-wf", "uvloop")
    unit: str = "workflows"
    has_steps: bool = True
    not_like_for_like: str = ""
    configuration: dict[str, Any] = field(default_factory=lambda: {"start_many": BATCH, "uvloop": True})

    def prepare(self, dsn: str, shape: Shape) -> None:
        init_cluster(cluster(dsn), shape.slots)

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        return [
            SPAWN.Process(target=start_for_ever, args=(dsn, shape.steps, told), daemon=True),
            *(SPAWN.Process(target=execute_for_ever, args=(dsn, told), daemon=True) for _ in range(shape.executors)),
        ]

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count:
        rows = " union all ".join(
            f"""
            select count(*) filter (where created_at > b and created_at <= e),
                count(*) filter (where status = {Status.SUCCEEDED.value} and completed_at > b and completed_at <= e),
                count(*) filter (where status = {Status.SUCCEEDED.value}), (select count(*) from wf_{slot:04d}.step)
            from wf_{slot:04d}.workflow, (values (to_timestamp(%(begin)s), to_timestamp(%(end)s))) bounds (b, e)
            """
            for slot in range(shape.slots)
        )
        return query_count(connection, f"select sum(a), sum(b), sum(c), sum(d) from ({rows}) t (a, b, c, d)", window)


SHARDED_WF = ShardedWf()
