"""Judged by type checkers, never run: what users write, what is inferred, and what must be flagged.

``reveal: T`` on a line says what ``reveal_type`` must give there; ``error`` says that a checker must complain.
"""

from __future__ import annotations

from datetime import timedelta
from typing import reveal_type

import psycopg

from sharded_wf import (
    App,
    Bound,
    Handle,
    Retry,
    map_workflow,
    receive,
    saga,
    send,
    set_event,
    sleep_blocking,
    start_child,
    wait_event,
    wait_until,
)

app = App("typing")


@app.step(retry=Retry(attempts=5), timeout=timedelta(seconds=30))
async def charge(order_id: str, cents: int) -> str:
    return order_id


@app.step
async def plain(number: int) -> int:
    return number


@app.step
def count(text: str) -> int:
    return len(text)


@app.step(name="other")
def counted(text: str) -> int:
    return len(text)


@app.transaction
async def move(conn: psycopg.AsyncConnection, source: str, cents: int) -> int:
    return cents


@app.transaction(isolation="serializable")
def move_blocking(conn: psycopg.Connection, source: str) -> list[str]:
    return []


@app.workflow
async def checkout(order_id: str, cents: int = 5) -> str:
    reveal_type(await charge(order_id, cents))  # reveal: str
    reveal_type(await plain(1))  # reveal: int
    reveal_type(await count.in_thread("x"))  # reveal: int
    reveal_type(await counted.in_thread("x"))  # reveal: int
    reveal_type(await receive("topic", int, timeout=5))  # reveal: int
    reveal_type(await receive("topic", list[str]))  # reveal: list[str]
    reveal_type(await summary.in_thread([order_id]))  # reveal: dict[str, int]
    reveal_type(await send("w", "topic", 1))  # reveal: None
    reveal_type(await move("a", 5))  # reveal: int
    reveal_type(await move_blocking.in_thread("a"))  # reveal: list[str]
    move("a", 5)  # error: forgotten await
    await move("a")  # error: too few arguments
    await move(5, 5)  # error: wrong type
    charge(order_id, cents)  # error: forgotten await
    plain(1)  # error: forgotten await
    receive("topic", int)  # error: forgotten await
    send("w", "topic", 1)  # error: forgotten await
    await charge(order_id)  # error: too few arguments
    await charge(order_id, "5")  # error: wrong type
    await charge(order_id, cents, 7)  # error: too many arguments
    await count.in_thread(5)  # error: wrong type
    await receive(5, int)  # error: wrong type
    return await charge(order_id, cents)


@app.workflow(queue="slow")
def summary(names: list[str]) -> dict[str, int]:
    reveal_type(count("x"))  # reveal: int
    reveal_type(charge.blocking("o", 1))  # reveal: str
    reveal_type(move.blocking("a", 1))  # reveal: int
    reveal_type(move_blocking("a"))  # reveal: list[str]
    move_blocking()  # error: too few arguments
    reveal_type(checkout.blocking("o"))  # reveal: str
    reveal_type(receive.blocking("topic", int))  # reveal: int
    sleep_blocking(timedelta(days=1))
    charge.blocking("o")  # error: too few arguments
    count(5)  # error: wrong type
    return {}


@app.workflow
async def parent() -> int:
    reveal_type(await checkout("o"))  # reveal: str
    reveal_type(await (await checkout.start("o")).result())  # reveal: str
    reveal_type(await (await start_child(summary.bind([]), parent_close="cancel")).result())  # reveal: dict[str, int]
    async with saga() as s:
        reveal_type(await s.step(plain(1), undo=plain))  # reveal: int
        await s.step(plain(1), undo=count.in_thread)  # error: undoes another type
    reveal_type(await map_workflow(checkout, ["o"]))  # reveal: MapResult
    checkout.start("o")  # error: forgotten await
    await checkout.start(5)  # error: wrong type
    checkout("o")  # error: forgotten await
    await checkout(5)  # error: wrong type
    return 1


reveal_type(checkout.bind("o", 1))  # reveal: Bound[str]
reveal_type(summary.bind([]))  # reveal: Bound[dict[str, int]]
checkout.bind()  # error: too few arguments
checkout.bind("o", "1")  # error: wrong type
summary.bind([1])  # error: wrong type
wrong: Bound[int] = checkout.bind("o")  # error: wrong type
app.transaction(isolation="dirty")  # error: no such level
app.step(retries=3)  # error: no such option
Retry(attempts="3")  # error: wrong type


@app.workflow(timeout=timedelta(days=1), run_timeout=60)
async def waits(handle: Handle[int]) -> None:
    reveal_type(await wait_until(charge, "o-1", 5, every=1))  # reveal: str
    reveal_type(await wait_until(count, "x", every=timedelta(seconds=5), timeout=9))  # reveal: int
    reveal_type(await wait_event("w", "key", int))  # reveal: int
    reveal_type(await handle.event("key", str))  # reveal: str
    await set_event("key", 1)
    set_event("key", 2)  # error: forgotten await


@app.workflow
def waits_sync() -> None:
    reveal_type(wait_until.blocking(plain, 1, every=1))  # reveal: int
    reveal_type(wait_event.blocking("w", "key", str))  # reveal: str
