"""DBOS (the open package only), twice: workflows that each process starts for itself, and workflows from a queue.

Its documentation: "Workflows" (asynchronous workflows and steps; starting them in the background),
https://docs.dbos.dev/python/tutorials/workflow-tutorial; "DBOS Configuration" (`sys_db_pool_size`, `executor_id`,
`max_executor_threads`), https://docs.dbos.dev/python/reference/configuration; "DBOS Client" (`enqueue_in_transaction`:
many enqueues, one commit), https://docs.dbos.dev/python/reference/client; "Queues" (`polling_interval_sec`,
`worker_concurrency`), https://docs.dbos.dev/python/reference/queues.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .contender import PAUSE_SECONDS, SPAWN, TOLD_SECONDS, Count, Pace, Process, Shape, Told, Window, query_count

QUEUE = "compare"
ENQUEUE_BATCH = 100  # workflows per transaction of the client
POLL_SECONDS = 0.05


def url(dsn: str) -> str:
    """The DSN as SQLAlchemy wants it."""
    parts: dict[str, Any] = dict(conninfo_to_dict(dsn))
    login = quote(str(parts.pop("user", "postgres")), safe="")
    if password := parts.pop("password", None):
        login += ":" + quote(str(password), safe="")
    database = quote(str(parts.pop("dbname")), safe="")
    return f"postgresql://{login}@/{database}?{urlencode(parts)}"


def launch(dsn: str, executor: str, pool: int, threads: int | None, finished: list[int]) -> tuple[Any, Any, Any]:
    """DBOS, running in this process, and its workflow: asynchronous, and as a plain function."""
    dbos: Any = import_module("dbos").DBOS
    config: dict[str, Any] = {
        "name": "compare", "system_database_url": url(dsn), "sys_db_pool_size": pool, "executor_id": executor,
        "application_version": "1", "log_level": "WARNING",
    }  # fmt: skip
    if threads is not None:
        config["max_executor_threads"] = threads
    dbos(config=config)

    async def return_async(number: int) -> dict[str, int]:
        return {"n": number}

    def return_number(number: int) -> dict[str, int]:
        return {"n": number}

    add_async: Any = dbos.step(name="add_async")(return_async)
    add: Any = dbos.step(name="add")(return_number)

    async def steps_async(count: int, text: str) -> dict[str, bool]:
        for number in range(count):
            await add_async(number)
        finished[0] += 1
        return {"ok": True}

    def steps(count: int, text: str) -> dict[str, bool]:
        for number in range(count):
            add(number)
        finished[0] += 1
        return {"ok": True}

    registered = dbos.workflow(name="steps_async")(steps_async), dbos.workflow(name="steps")(steps)
    dbos.launch()
    return dbos, *registered


def run_direct(dsn: str, number: int, variant: DbosDirect, count: int) -> None:
    """A process that starts workflows and runs them itself: no queue in between."""
    threads = None if variant.asynchronous else variant.concurrency
    _, steps_async, steps = launch(dsn, f"e{number}", variant.pool, threads, [0])
    if variant.asynchronous:

        async def main() -> None:
            async def again() -> None:
                while True:
                    await steps_async(count, "hello world")

            await asyncio.gather(*(again() for _ in range(variant.concurrency)))

        import uvloop

        uvloop.run(main())
        return

    def again_in_thread() -> None:
        while True:
            steps(count, "hello world")

    for _ in range(variant.concurrency):
        threading.Thread(target=again_in_thread, daemon=True).start()
    threading.Event().wait()


def enqueue_for_ever(dsn: str, variant: DbosQueue, count: int, told: Told) -> None:
    """The client."""
    sqlalchemy: Any = import_module("sqlalchemy")
    engine = sqlalchemy.create_engine(url(dsn).replace("postgresql:", "postgresql+psycopg:", 1))
    client: Any = import_module("dbos").DBOSClient(system_database_engine=engine, application_name="compare")
    options = {"queue_name": QUEUE, "workflow_name": variant.workflow, "app_version": "1"}
    pace = Pace(told)
    while True:
        if not pace.may_start(ENQUEUE_BATCH):
            time.sleep(PAUSE_SECONDS)
            continue
        with engine.begin() as connection:
            for _ in range(ENQUEUE_BATCH):
                client.enqueue_in_transaction(connection, options, count, "hello world")


def work_for_ever(dsn: str, number: int, variant: DbosQueue, told: Told) -> None:
    finished = [0]
    threads = None if variant.asynchronous else variant.worker_concurrency
    dbos, _, _ = launch(dsn, f"e{number}", variant.pool, threads, finished)
    dbos.register_queue(QUEUE, worker_concurrency=variant.worker_concurrency, polling_interval_sec=POLL_SECONDS)
    before = 0
    while True:
        time.sleep(TOLD_SECONDS)
        now = finished[0]
        told.add(now - before)
        before = now


def prepare(dsn: str) -> None:
    """Lets DBOS make its tables, in a process of its own: it is one per process, and leaves threads behind."""
    process = SPAWN.Process(target=migrate, args=(dsn,), daemon=True)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"DBOS could not make its tables: exit code {process.exitcode}, its words are above")


def migrate(dsn: str) -> None:
    dbos, _, _ = launch(dsn, "prepare", 5, None, [0])
    dbos.destroy()


def count_rows(connection: psycopg.Connection[Any], window: Window) -> Count:
    return query_count(
        connection,
        """
        select count(*) filter (where created_at > b and created_at <= e),
            count(*) filter (where status = 'SUCCESS' and completed_at > b and completed_at <= e),
            count(*) filter (where status = 'SUCCESS'),
            (select count(*) from dbos.operation_outputs where function_name like 'add%%')
        from dbos.workflow_status, (values (%(begin)s * 1000, %(end)s * 1000)) bounds (b, e)
        where name like 'steps%%'
        """,
        window,
    )


@dataclass(frozen=True)
class DbosDirect:
    name: str = "DBOS"
    packages: tuple[str, ...] = ("dbos", "uvloop")
    unit: str = "workflows"
    has_steps: bool = True
    not_like_for_like: str = (
        "DBOS runs each workflow in the process that started it: there is no client, no queue and no claim, so it owes "
        "less than the others do."
    )
    asynchronous: bool = False
    concurrency: int = 20
    pool: int = 20

    @property
    def configuration(self) -> dict[str, Any]:
        return {"asynchronous": self.asynchronous, "concurrency": self.concurrency, "sys_db_pool_size": self.pool}

    def prepare(self, dsn: str, shape: Shape) -> None:
        prepare(dsn)

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        return [
            SPAWN.Process(target=run_direct, args=(dsn, number, self, shape.steps), daemon=True)
            for number in range(shape.executors)
        ]

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count:
        return count_rows(connection, window)


@dataclass(frozen=True)
class DbosQueue:
    name: str = "DBOS, queued"
    packages: tuple[str, ...] = ("dbos", "uvloop")
    unit: str = "workflows"
    has_steps: bool = True
    not_like_for_like: str = (
        "DBOS with a queue owes what sharded_wf owes: a client enqueues, other processes claim, run and finish."
    )
    asynchronous: bool = False
    worker_concurrency: int = 100
    pool: int = 20

    @property
    def workflow(self) -> str:
        return "steps_async" if self.asynchronous else "steps"

    @property
    def configuration(self) -> dict[str, Any]:
        return {
            "asynchronous": self.asynchronous, "worker_concurrency": self.worker_concurrency,
            "sys_db_pool_size": self.pool, "polling_interval_sec": POLL_SECONDS,
            "enqueue_in_transaction": ENQUEUE_BATCH,
        }  # fmt: skip

    def prepare(self, dsn: str, shape: Shape) -> None:
        prepare(dsn)

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        return [
            SPAWN.Process(target=enqueue_for_ever, args=(dsn, self, shape.steps, told), daemon=True),
            *(
                SPAWN.Process(target=work_for_ever, args=(dsn, number, self, told), daemon=True)
                for number in range(shape.executors)
            ),
        ]

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count:
        return count_rows(connection, window)


DBOS_DIRECT = DbosDirect()
DBOS_QUEUE = DbosQueue()
