"""Workflows that fail until the test mends what they depend on: a table in the ledger's database."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg

from sharded_wf import continue_as_new, current, receive, saga, send, sleep_blocking, start_child
from tests.support.flows import app, is_mended, ledger, note, undo_note

__all__ = ["app"]


class Refused(Exception):
    """What the fragile step raises."""


def mend(dsn: str) -> None:
    """From now on fragile steps succeed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create table mended ()")


@app.step
async def fragile_note(number: int) -> str:
    token = await ledger().write(number)
    if not is_mended():
        raise Refused(f"number {number}")
    return token


@app.step
async def hanging_note(number: int) -> str:
    token = await ledger().write(number)
    if not is_mended():
        await asyncio.sleep(60)
    return token


@app.step
def fragile_say(text: str) -> str:
    if not is_mended():
        raise Refused(text)
    return text


@app.step
async def always_refused() -> str:
    raise Refused("always")


@app.workflow
async def fragile_chain(before: int, after: int) -> int:
    """Steps, then one that fails until it is mended, then more steps. The first failure is caught, and stays."""
    with contextlib.suppress(Refused):
        await always_refused()
    for number in range(before):
        await note(number)
    try:
        await fragile_note(before)
    except Refused as error:
        raise RuntimeError("the chain broke") from error
    for number in range(before + 1, before + 1 + after):
        await note(number)
    return before + 1 + after


@app.workflow
async def fragile_fan(count: int) -> int:
    """Branches of which one fails while the others go on, with a clean-up that comes only of the failure."""

    async def branch(number: int) -> None:
        if number == 0:
            await fragile_note(0)
        else:
            await note(number)
            await note(number + 100)

    found = await asyncio.gather(*(branch(number) for number in range(count)), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            await note(1000)
            raise one
    await note(2000)
    return count


@app.workflow
async def hasty() -> str:
    async with asyncio.timeout(1.0):
        return await hanging_note(0)


@app.workflow
async def fragile_parent(before: int, after: int) -> int:
    await note(5000)
    done = await fragile_chain(before, after)
    await note(5001)
    return done


@app.workflow
def sync_fragile(text: str) -> str:
    sleep_blocking(0.01)
    return fragile_say(text)


@app.workflow
async def fragile_post(receiver: str) -> None:
    """Sends before its failure, in a clean-up, and after it was mended."""
    await send(receiver, "mail", "before")
    try:
        await fragile_note(0)
    except Refused:
        await send(receiver, "mail", "clean-up")
        raise
    await send(receiver, "mail", "after")


@app.workflow
async def fragile_inbox() -> list[str]:
    first = await receive("mail", str)
    await fragile_note(0)
    return [first, await receive("mail", str)]


@app.workflow
async def fragile_meter(number: int) -> list[int]:
    """A note in each run; the third fails until it is mended."""
    await note(number)
    if number < 3:
        continue_as_new(fragile_meter.bind(number + 1))
    await fragile_note(10)
    return [number, current().run]


@app.workflow
async def fragile_leaf(number: int) -> str:
    return await fragile_note(number)


@app.workflow
async def fragile_starter() -> str:
    """Awaits later a child that fails until it is mended."""
    handle = await fragile_leaf.start(1)
    await note(0)
    await handle.result()
    return handle.id


@app.workflow
async def patient_starter(queue: str) -> str:
    """The same; the child waits in a queue of its own."""
    handle = await start_child(fragile_leaf.bind(1), queue=queue)
    return await handle.result()


@app.workflow
def sync_fragile_starter() -> str:
    handle = fragile_leaf.start_blocking(1)
    note.blocking(0)
    handle.result()
    return handle.id


@app.step
async def fragile_undo(number: int) -> None:
    await ledger().write(-number)
    if number != 2 and not is_mended():
        raise Refused(f"undo {number}")


@app.workflow
async def fragile_saga() -> None:
    """Three steps are undone; two of the compensations fail until that is mended."""
    async with saga() as s:
        for number in (1, 2, 3):
            await s.step(note(number), undo=lambda _, number=number: fragile_undo(number))  # type: ignore[misc]
        raise ValueError("on purpose")


@app.workflow
async def saga_ends(how: str) -> str:
    """After a first step two that are undone: because another fails, or the workflow is cancelled or out of time. Or
    the code goes on after that, and fails of something else."""
    await note(0)
    try:
        async with saga() as s:
            for number in (1, 2):
                await s.step(note(number), undo=lambda _, number=number: undo_note(number))  # type: ignore[misc]
            if how in ("is cancelled", "has no time"):
                await receive("never")
            await (always_refused() if how == "goes on" else fragile_note(5))
    except Refused:
        if how != "goes on":
            raise
        await fragile_note(6)
        return "went on"
    return "done"


@app.workflow
def sync_saga_ends(how: str) -> str:
    note.blocking(0)
    try:
        with saga.blocking() as s:
            for number in (1, 2):
                s.step(lambda n=number: note.blocking(n), undo=lambda _, n=number: undo_note.blocking(n))  # type: ignore[misc]
            if how in ("is cancelled", "has no time"):
                receive.blocking("never")
            if how == "goes on":
                always_refused.blocking()
            fragile_note.blocking(5)
    except Refused:
        if how != "goes on":
            raise
        fragile_note.blocking(6)
        return "went on"
    return "done"
