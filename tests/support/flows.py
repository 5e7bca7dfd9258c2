"""The workflows of the engine's tests, and the ledger that their steps write.

The ledger is a table in a database of its own, of which the engine knows nothing: it says which bodies of steps really
ran, in which process, and when. A step returns the token of its line in the ledger, so the recorded result names the
one run of the body that counts.

The variable ``SHARDED_WF_TEST_LEDGER`` holds the ledger's connection string; without it nothing is written.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Mapping

import psycopg

from sharded_wf import (
    App,
    Retry,
    current,
    receive,
    saga,
    send,
    sleep_blocking,
    start_child,
)

LEDGER_VARIABLE = "SHARDED_WF_TEST_LEDGER"
LEDGER_TABLE = """
    create table ledger (
        line bigint generated always as identity, at timestamptz not null default clock_timestamp(),
        workflow text not null, step text not null, number int not null, key text not null, attempt int not null,
        pid int not null, token text not null)
"""
GATE = 4711
"""The advisory lock in the ledger's database that holds steps back: see ``cluster.closed_gate``."""


class Ledger:
    """One connection to the ledger; its lines are written one after another."""

    def __init__(self, dsn: str | None) -> None:
        self._dsn = dsn
        self._conn: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        self._lock = asyncio.Lock()

    async def write(self, number: int) -> str:
        """Write that the step which calls this runs now; the line's token."""
        here = current()
        token = uuid.uuid4().hex
        if self._dsn is None:
            return token
        async with self._lock:
            if self._conn is None:
                self._conn = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            await self._conn.execute(
                "insert into ledger (workflow, step, number, key, attempt, pid, token) "
                "values (%s, %s, %s, %s, %s, %s, %s)",
                (here.workflow_id, here.step, number, here.idempotency_key, here.attempt, os.getpid(), token),
            )
        return token

    async def wait_gate(self) -> None:
        """Wait until the test opens the gate."""
        assert self._dsn is not None
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as conn:
            await conn.execute("select pg_advisory_lock_shared(%s)", (GATE,))

    def block_at_gate(self) -> None:
        """The same, and nothing else goes on in this process's loop meanwhile."""
        assert self._dsn is not None
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute("select pg_advisory_lock_shared(%s)", (GATE,))

    async def close(self) -> None:
        if self._conn is not None:
            await self._conn.close()


app = App("engine")


@app.lifespan
async def open_ledger(app: App) -> AsyncIterator[Ledger]:
    ledger = Ledger(os.environ.get(LEDGER_VARIABLE))
    try:
        yield ledger
    finally:
        await ledger.close()


def ledger() -> Ledger:
    state = current().state
    assert isinstance(state, Ledger)
    return state


# --- steps


@app.step
async def note(number: int) -> str:
    return await ledger().write(number)


@app.step
async def slow_note(number: int, seconds: float) -> str:
    token = await ledger().write(number)
    await asyncio.sleep(seconds)
    return token


@app.step
async def gated_note(number: int) -> str:
    token = await ledger().write(number)
    await ledger().wait_gate()
    return token


@app.step
async def blocking_note(number: int, seconds: float) -> str:
    token = await ledger().write(number)
    time.sleep(seconds)  # noqa: ASYNC251 - what a careless user does, and what must not cost the lease
    return token


@app.step
async def blocking_gated_note(number: int) -> str:
    token = await ledger().write(number)
    ledger().block_at_gate()
    return token


@app.step(retry=Retry(attempts=3, first=0.05))
async def flaky_note(number: int) -> str:
    token = await ledger().write(number)
    if current().attempt < 3:
        raise ConnectionError(f"attempt {current().attempt} of {number}")
    return token


@app.step
async def kill_process(number: int) -> str:
    await ledger().write(number)
    if not is_mended():
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def is_mended() -> bool:
    """Whether the test has mended what fragile steps depend on."""
    with psycopg.connect(os.environ[LEDGER_VARIABLE], autocommit=True) as conn:
        return conn.execute("select to_regclass('mended')").fetchone() != (None,)


@app.step
async def say(text: str) -> str:
    return text


@app.step
def say_in_thread(text: str) -> str:
    return text


# --- workflows


@app.workflow
async def echo(value: str) -> str:
    return value


@app.workflow
async def chain(count: int) -> int:
    """``count`` steps, one after another."""
    for number in range(count):
        await note(number)
    return count


@app.workflow
async def slow_chain(count: int, seconds: float) -> int:
    for number in range(count):
        await slow_note(number, seconds)
    return count


@app.workflow
async def gated_chain(before: int, after: int) -> int:
    """Steps, then one that waits at the gate, then more steps."""
    for number in range(before):
        await note(number)
    await gated_note(before)
    for number in range(before + 1, before + 1 + after):
        await note(number)
    return before + 1 + after


@app.workflow
async def blocking_chain(count: int, seconds: float) -> int:
    for number in range(count):
        await blocking_note(number, seconds)
    return count


@app.workflow
async def blocking_gated() -> int:
    await blocking_gated_note(0)
    return 1


@app.workflow
async def flaky_chain(count: int) -> int:
    for number in range(count):
        await flaky_note(number)
    return count


@app.workflow
async def loud(text: str = "") -> None:
    """Fails."""
    raise RuntimeError(text[:10])


@app.workflow
async def killer() -> str:
    return await kill_process(0)


@app.workflow
async def say_twice(text: str) -> str:
    return await say(text) + say_in_thread_result(await say_in_thread.in_thread(text))


def say_in_thread_result(text: str) -> str:
    return text


@app.workflow
async def sleeper(seconds: float) -> int:
    await note(0)
    await asyncio.sleep(seconds)
    await note(1)
    return 2


@app.workflow
def sync_sleeper(seconds: float) -> str:
    say_in_thread("before")
    sleep_blocking(seconds)
    return say_in_thread("after")


@app.workflow
async def inbox(count: int) -> list[str]:
    """What arrives on ``mail``, in order."""
    return [await receive("mail", str) for _ in range(count)]


@app.workflow
async def noted_inbox(count: int) -> list[str]:
    """As ``inbox``, with a step after each message."""
    found = []
    for number in range(count):
        found.append(await receive("mail", str))
        await note(number)
    return found


@app.workflow
async def outbox(receivers: list[str], count: int) -> int:
    """Sends ``count`` numbered messages to each receiver, in turn."""
    for number in range(count):
        for receiver in receivers:
            await send(receiver, "mail", f"{current().workflow_id}#{number}")
    return count


@app.workflow
async def parent(children: int, steps: int) -> int:
    return sum(await asyncio.gather(*(chain(steps) for _ in range(children))))


@app.workflow
async def patient_parent(children: int, seconds: float) -> int:
    return sum(await asyncio.gather(*(sleeper(seconds) for _ in range(children))))


@app.workflow
async def starts_children(children: int, seconds: float) -> list[str]:
    """Children beside which it goes on: some awaited later, one left alone, one that is cancelled with it."""
    handles = [await slow_chain.start(2, seconds) for _ in range(children)]
    await start_child(sleeper.bind(seconds), id=f"{current().workflow_id}/left")
    await start_child(sleeper.bind(1000.0), id=f"{current().workflow_id}/closed", parent_close="cancel")
    await note(0)
    await asyncio.gather(*(handle.result() for handle in handles))
    return [handle.id for handle in handles]


@app.workflow
def starts_children_blocking(children: int, seconds: float) -> list[str]:
    """The same, in a thread."""
    handles = [slow_chain.start_blocking(2, seconds) for _ in range(children)]
    start_child.blocking(sleeper.bind(seconds), id=f"{current().workflow_id}/left")
    start_child.blocking(sleeper.bind(1000.0), id=f"{current().workflow_id}/closed", parent_close="cancel")
    note.blocking(0)
    for handle in handles:
        handle.result()
    return [handle.id for handle in handles]


@app.workflow
async def races_children() -> int:
    """The first of two children; the other is cancelled."""
    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (0.1, 1000.0)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await note(0)
    return done.pop().result()


@app.workflow
async def noted(number: int) -> int:
    await slow_note(number, 0.1)
    if number == 7:
        raise ValueError("7 is broken")
    return number


@app.step
async def undo_note(number: int) -> str:
    return await ledger().write(-number)


@app.workflow
async def saga_waits(count: int) -> None:
    """A saga that only a cancellation ends."""
    async with saga() as s:
        for number in range(1, count + 1):
            await s.step(note(number), undo=lambda _, number=number: undo_note(number))  # type: ignore[misc]
        await receive("never")


@app.workflow
def saga_waits_blocking(count: int) -> None:
    with saga.blocking() as s:
        for number in range(1, count + 1):
            s.step(lambda n=number: note.blocking(n), undo=lambda _, n=number: undo_note.blocking(n))  # type: ignore[misc]
        receive.blocking("never")


@app.workflow
async def undoes(number: int) -> None:
    await undo_note(number)


@app.workflow
async def saga_of_children(count: int) -> None:
    """What is done and undone are children, on any shard."""
    async with saga() as s:
        for number in range(10, 10 + count):
            await s.step(noted(number), undo=undoes)
        raise ValueError("on purpose")


def expected_order(found: list[str], senders: Mapping[str, int]) -> list[str]:
    """What is wrong with messages of ``outbox`` workflows (ID -> count) as one receiver got them: nothing, if each came
    once and every sender's in order."""
    wrong: list[str] = []
    for sender, count in senders.items():
        got = [int(text.rpartition("#")[2]) for text in found if text.rpartition("#")[0] == sender]
        if got != list(range(count)):
            wrong.append(f"{sender}: {got}, not 0 to {count - 1}")
    return wrong
