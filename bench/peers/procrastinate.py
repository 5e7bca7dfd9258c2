"""procrastinate: a queue of jobs, without workflows.

Its documentation: "Execute multiple jobs at the same time" (one process per worker, async sub-workers),
https://procrastinate.readthedocs.io/en/stable/howto/production/concurrency.html; "Mind the size of your PostgreSQL
pool" (as many connections as sub-workers, plus one, when jobs are short),
https://procrastinate.readthedocs.io/en/stable/discussions.html; "Batch defer",
https://procrastinate.readthedocs.io/en/stable/howto/basics/batch_defer.html.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psycopg

from .contender import PAUSE_SECONDS, SPAWN, Count, Pace, Process, Shape, Told, Window, query_count

BATCH = 100  # jobs per batch_defer
CONCURRENCY = 10  # sub-workers of a process


def make_app(dsn: str, connections: int, finished: list[int]) -> tuple[Any, Any]:
    procrastinate: Any = import_module("procrastinate")
    connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=connections, max_size=connections)
    app = procrastinate.App(connector=connector)

    async def noop(number: int, text: str) -> dict[str, bool]:
        finished[0] += 1
        return {"ok": True}

    return app, app.task(name="noop")(noop)


def start_for_ever(dsn: str, told: Told) -> None:
    """The client."""

    async def main() -> None:
        app, noop = make_app(dsn, 2, [0])
        pace = Pace(told)
        async with app.open_async():
            while True:
                if pace.may_start(BATCH):
                    await noop.batch_defer_async(*({"number": 1, "text": "hello world"} for _ in range(BATCH)))
                else:
                    await asyncio.sleep(PAUSE_SECONDS)

    asyncio.run(main())


def work_for_ever(dsn: str, concurrency: int, told: Told) -> None:
    async def main() -> None:
        finished = [0]
        app, _ = make_app(dsn, concurrency + 1, finished)
        async with app.open_async():
            await asyncio.gather(
                told.follow(lambda: finished[0]),
                app.run_worker_async(concurrency=concurrency, install_signal_handlers=False),
            )

    import uvloop

    uvloop.run(main())


@dataclass(frozen=True)
class Procrastinate:
    name: str = "procrastinate"
    packages: tuple[str, ...] = ("procrastinate", "uvloop")
    unit: str = "jobs"
    has_steps: bool = False
    not_like_for_like: str = (
        "procrastinate is a queue: a job has no steps and its result is not stored, but every change of its state is a "
        "row of its own."
    )
    concurrency: int = CONCURRENCY

    @property
    def configuration(self) -> dict[str, Any]:
        return {"concurrency": self.concurrency, "pool": self.concurrency + 1, "batch_defer": BATCH, "uvloop": True}

    def prepare(self, dsn: str, shape: Shape) -> None:
        async def main() -> None:
            app, _ = make_app(dsn, 1, [0])
            async with app.open_async():
                await app.schema_manager.apply_schema_async()

        asyncio.run(main())

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        return [
            SPAWN.Process(target=start_for_ever, args=(dsn, told), daemon=True),
            *(
                SPAWN.Process(target=work_for_ever, args=(dsn, self.concurrency, told), daemon=True)
                for _ in range(shape.executors)
            ),
        ]

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count:
        return query_count(
            connection,
            """
            select count(*) filter (where type = 'deferred' and at > b and at <= e),
                count(*) filter (where type = 'succeeded' and at > b and at <= e),
                (select count(*) from procrastinate_jobs where status = 'succeeded'), 0
            from procrastinate_events, (values (to_timestamp(%(begin)s), to_timestamp(%(end)s))) bounds (b, e)
            """,
            window,
        )


PROCRASTINATE = Procrastinate()
