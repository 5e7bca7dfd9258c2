"""Workflows that move money between rows of their own shard, and the tables of that money.

Every movement is an insert beside two updates: so a movement that happened twice, or half, shows in the rows.
``schema`` is a user's own; the engine knows nothing of it.
"""

from __future__ import annotations

import asyncio
from typing import Any, LiteralString

import psycopg

from sharded_wf import App, Retry, current, receive

app = App("bank")

TABLES: LiteralString = """
    create schema if not exists bank;
    create table bank.account (name text primary key, cents bigint not null check (cents >= 0));
    create table bank.movement (
        line bigint generated always as identity, workflow text not null, number int not null, cents bigint not null);
    insert into bank.account values ('a', 100000), ('b', 100000);
"""
MOVE = "insert into bank.movement (workflow, number, cents) values (%s, %s, %s)"
TAKE = "update bank.account set cents = cents - %s where name = 'a'"
GIVE = "update bank.account set cents = cents + %s where name = 'b'"
AsyncConnection = psycopg.AsyncConnection[Any]
Connection = psycopg.Connection[Any]


@app.step
async def look(number: int) -> int:
    return number


@app.transaction
async def move(conn: AsyncConnection, number: int, cents: int) -> int:
    await conn.execute(MOVE, (current().workflow_id, number, cents))
    await conn.execute(TAKE, (cents,))
    await conn.execute(GIVE, (cents,))
    return number


@app.transaction
def move_blocking(conn: Connection, number: int, cents: int) -> int:
    conn.execute(MOVE, (current().workflow_id, number, cents))
    conn.execute(TAKE, (cents,))
    conn.execute(GIVE, (cents,))
    return number


@app.transaction(isolation="serializable")
async def move_serializable(conn: AsyncConnection, number: int, cents: int) -> int:
    await (await conn.execute("select sum(cents) from bank.account")).fetchone()
    moved: int = await move.function(conn, number, cents)
    return moved


@app.transaction(retry=Retry(attempts=3, first=0.01))
async def move_at_last(conn: AsyncConnection, number: int) -> int:
    await conn.execute(MOVE, (current().workflow_id, number, 1))
    if current().attempt < 3:
        raise ConnectionError("not yet")
    return current().attempt


@app.transaction
async def run_sql(conn: AsyncConnection, query: str) -> str:
    await conn.execute(MOVE, (current().workflow_id, 0, 1))
    await conn.execute(query.encode())
    return "done"


@app.transaction(timeout=0.3)
async def too_slow(conn: AsyncConnection) -> None:
    await conn.execute(MOVE, (current().workflow_id, 0, 1))
    await conn.execute("select pg_sleep(30)")


@app.transaction(timeout=0.3)
def too_slow_blocking(conn: Connection) -> None:
    conn.execute(MOVE, (current().workflow_id, 0, 1))
    conn.execute("select pg_sleep(30)")


@app.transaction
async def move_when_open(conn: AsyncConnection, number: int) -> int:
    """Waits, with everything written, for the advisory lock that a test holds."""
    await conn.execute(MOVE, (current().workflow_id, number, 1))
    await conn.execute("select pg_advisory_xact_lock_shared(4712)")
    return number


@app.transaction
async def write_back(conn: AsyncConnection) -> object:
    return object()


@app.workflow
async def mover(count: int, cents: int) -> list[int]:
    """Steps and transactions in turn."""
    done = []
    for number in range(count):
        await look(number)
        done.append(await move(number, cents))
    return done


@app.workflow
def mover_blocking(count: int, cents: int) -> list[int]:
    done = []
    for number in range(count):
        if number % 2:
            done.append(move.blocking(number, cents))
        else:
            done.append(move_blocking(number, cents))
    return done


@app.workflow
async def mover_in_thread(count: int, cents: int) -> list[int]:
    return [await move_blocking.in_thread(number, cents) for number in range(count)]


@app.workflow
async def mover_serializable(count: int) -> list[int]:
    return [await move_serializable(number, 1) for number in range(count)]


@app.workflow
async def mover_concurrent(count: int) -> list[str]:
    """Steps, transactions and timers at once: the order in which they end is what replay must give again."""
    order: list[str] = []

    async def one(number: int) -> None:
        await look(number)
        order.append(f"look {number}")
        await move(number, 1)
        order.append(f"move {number}")
        await asyncio.sleep(0)
        await look(100 + number)
        order.append(f"again {number}")

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    await receive("go on", str)
    return order


@app.workflow
async def mover_with_child(count: int) -> list[int]:
    """Moves here, and has a child move where it lives."""
    return [*[await move(number, 1) for number in range(count)], *await mover(count, 1)]


@app.step
async def look_later(number: int) -> int:
    await asyncio.sleep(0.4)
    return number


@app.workflow
async def race() -> list[str]:
    """A transaction and a step at once: in which order they ended."""
    order: list[str] = []

    async def first() -> None:
        await move(0, 1)
        order.append("move")

    async def second() -> None:
        await look_later(0)
        order.append("look_later")

    await asyncio.gather(first(), second())
    return order


@app.workflow
async def late_mover() -> int:
    return await move_at_last(0)


@app.workflow
async def runs_sql(query: str) -> str:
    return await run_sql(query)


@app.workflow
async def slow(blocking: bool) -> str:
    try:
        await (too_slow_blocking.in_thread() if blocking else too_slow())
    except TimeoutError as error:
        return str(error)
    return "not too slow"


@app.workflow
async def waits_for_gate() -> int:
    return await move_when_open(0)


@app.workflow
async def writes_back() -> object:
    return await write_back()


@app.workflow
async def gives_up() -> str:
    """The transaction is given up before it ends."""
    try:
        await asyncio.wait_for(move_when_open(0), 0.2)
    except TimeoutError:
        return "gave up"
    return "no"


@app.workflow
async def inbox(count: int) -> list[str]:
    return [await receive("mail", str) for _ in range(count)]


def movements(dsn: str) -> list[tuple[str, int, int]]:
    """Every movement: workflow, number, cents."""
    with psycopg.connect(dsn) as conn:
        return conn.execute("select workflow, number, cents from bank.movement order by line").fetchall()


def balances(dsn: str) -> dict[str, int]:
    """Every account."""
    with psycopg.connect(dsn) as conn:
        return dict(conn.execute("select name, cents from bank.account").fetchall())
