"""PgQueuer: a queue of jobs, without workflows.

Its documentation: "Benchmarks" (asyncpg is its fastest driver), https://janbjorge.github.io/pgqueuer/comparisons/benchmarks/;
"Performance Tuning" (larger batches for short jobs, `pgq autovac`, a single connection for the queue manager),
https://janbjorge.github.io/pgqueuer/guides/performance-tuning/. Durability stays at its default, `durable`: what is
faster there loses jobs in a crash.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .contender import PAUSE_SECONDS, SPAWN, Count, Pace, Process, Shape, Told, Window, query_count

ENQUEUE_BATCH = 1_000  # jobs per enqueue
MANAGERS = 1  # queue managers of a process, each with a connection of its own
DEQUEUE_BATCH = 1_000  # jobs per dequeue


async def connect(dsn: str) -> Any:
    asyncpg: Any = import_module("asyncpg")
    parts = conninfo_to_dict(dsn)
    known = {"host": "host", "port": "port", "user": "user", "password": "password", "dbname": "database"}
    return await asyncpg.connect(**{known[key]: value for key, value in parts.items() if key in known})


def make_queries(connection: Any) -> Any:
    queries: Any = import_module("pgqueuer.queries")
    drivers: Any = import_module("pgqueuer.db")
    return queries.Queries(drivers.AsyncpgDriver(connection))


def start_for_ever(dsn: str, batch: int, told: Told) -> None:
    """The client."""

    async def main() -> None:
        queries = make_queries(await connect(dsn))
        pace = Pace(told)
        payload = b'{"args": [1, "hello world"]}'
        while True:
            if pace.may_start(batch):
                await queries.enqueue(["noop"] * batch, [payload] * batch, [0] * batch)
            else:
                await asyncio.sleep(PAUSE_SECONDS)

    import uvloop

    uvloop.run(main())


def work_for_ever(dsn: str, managers: int, batch: int, told: Told) -> None:
    async def main() -> None:
        pgqueuer: Any = import_module("pgqueuer")
        drivers: Any = import_module("pgqueuer.db")
        finished = 0

        async def noop(job: Any) -> None:
            nonlocal finished
            finished += 1

        async def work() -> None:
            manager = pgqueuer.PgQueuer(drivers.AsyncpgDriver(await connect(dsn)))
            manager.entrypoint("noop")(noop)
            await manager.run(batch_size=batch)

        await asyncio.gather(told.follow(lambda: finished), *(work() for _ in range(managers)))

    import uvloop

    uvloop.run(main())


@dataclass(frozen=True)
class PgQueuer:
    name: str = "PgQueuer"
    packages: tuple[str, ...] = ("pgqueuer", "asyncpg", "uvloop")
    unit: str = "jobs"
    has_steps: bool = False
    not_like_for_like: str = (
        "PgQueuer is a queue: a job has no steps and no result; its row is deleted when it is done, and log rows stay."
    )
    managers: int = MANAGERS
    dequeue_batch: int = DEQUEUE_BATCH
    enqueue_batch: int = ENQUEUE_BATCH

    @property
    def configuration(self) -> dict[str, Any]:
        return {
            "driver": "asyncpg", "managers": self.managers, "batch_size": self.dequeue_batch,
            "enqueue": self.enqueue_batch, "autovac": True, "durability": "durable", "uvloop": True,
        }  # fmt: skip

    def prepare(self, dsn: str, shape: Shape) -> None:
        async def main() -> None:
            connection = await connect(dsn)
            queries = make_queries(connection)
            await queries.install()
            await queries.optimize_autovacuum()
            await connection.close()

        asyncio.run(main())

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        return [
            SPAWN.Process(target=start_for_ever, args=(dsn, self.enqueue_batch, told), daemon=True),
            *(
                SPAWN.Process(target=work_for_ever, args=(dsn, self.managers, self.dequeue_batch, told), daemon=True)
                for _ in range(shape.executors)
            ),
        ]

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count:
        return query_count(
            connection,
            """
            select count(*) filter (where status = 'queued' and created > b and created <= e),
                count(*) filter (where status = 'successful' and created > b and created <= e),
                count(*) filter (where status = 'successful'), 0
            from pgqueuer_log, (values (to_timestamp(%(begin)s), to_timestamp(%(end)s))) bounds (b, e)
            """,
            window,
        )


PGQUEUER = PgQueuer()
