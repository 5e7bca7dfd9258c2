"""Run by other Pythons: records histories, and replays those that another Python recorded.

python -m tests.unit.workflow.portable_programs record FILE
python -m tests.unit.workflow.portable_programs replay FILE...
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from sharded_wf.model.history import EMPTY_HISTORY, Entry, History
from sharded_wf.workflow.app import App
from sharded_wf.workflow.bound import Bound
from tests.unit.workflow import random_programs
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

SEED = 20_240_229
RANDOM_TREES = 100
app = App("portable")
ran: list[int] = []


@app.step
async def handle(item: int, branch: int) -> str:
    ran.append(item)
    await asyncio.sleep(1 + (item * 7 + branch * 3) % 5)
    return f"{branch}:{item}"


@app.workflow
async def one_queue(limit: float | None) -> list[str]:
    """Three branches pull from one queue; who gets what depends on who asks first."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    for item in range(12):
        queue.put_nowait(item)
    results: list[str] = []

    async def branch(number: int) -> None:
        while not queue.empty():
            item = await asyncio.wait_for(queue.get(), limit)
            results.append(await asyncio.wait_for(handle(item, number), limit))
            await asyncio.sleep(0)

    await asyncio.gather(*(branch(number) for number in range(3)))
    return results


@app.workflow
async def signal_and_return() -> list[str]:
    """What is awaited wakes another branch, and then returns: who goes on first?"""
    items = iter(range(100))
    results: list[str] = []
    events = [asyncio.Event() for _ in range(4)]

    async def wakes(number: int) -> None:
        results.append(await handle(next(items), number))
        events[number].set()

    async def waits(number: int) -> None:
        await asyncio.wait_for(events[number].wait(), 60)
        results.append(await handle(next(items), 10 + number))

    async def both(number: int) -> None:
        await asyncio.wait_for(wakes(number), 60)
        results.append(await handle(next(items), 20 + number))

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(waits(number))
            group.create_task(both(number))
    return results


@app.workflow
async def nested_timeouts() -> list[str]:
    """Timeouts in timeouts, some of which pass, with work after them."""
    items = iter(range(100))
    results: list[str] = []

    async def slow(number: int) -> str:
        try:
            return await asyncio.wait_for(handle(next(items), number), 2.5)
        except TimeoutError:
            return await handle(next(items), 30 + number)

    async def outer(number: int) -> None:
        try:
            results.append(await asyncio.wait_for(slow(number), 4.5))
        except TimeoutError:
            results.append(await handle(next(items), 40 + number))

    await asyncio.gather(*(outer(number) for number in range(6)))
    for done in asyncio.as_completed([handle(next(items), n) for n in range(3)], timeout=30):
        results.append(await done)
    return results


@app.workflow
async def limited() -> list[str]:
    """Semaphore, condition and lock, with timeouts around them."""
    items = iter(range(100))
    results: list[str] = []
    semaphore, lock = asyncio.Semaphore(2), asyncio.Lock()

    async def one(number: int) -> None:
        await asyncio.wait_for(semaphore.acquire(), 100)
        try:
            async with asyncio.timeout(50), lock:
                await asyncio.sleep(0)
                item = next(items)
            results.append(await asyncio.wait_for(handle(item, number), 50))
        finally:
            semaphore.release()

    await asyncio.gather(*(one(number) for number in range(7)))
    return results


class Recorded(msgspec.Struct):
    """One history, and what it led to."""

    program: int
    output: bytes
    entries: list[Entry]


def programs() -> list[tuple[App, Bound[Any]]]:
    random = Random(SEED)
    fixed = [
        one_queue.bind(None),
        one_queue.bind(50.0),
        signal_and_return.bind(),
        nested_timeouts.bind(),
        limited.bind(),
    ]
    trees = [random_programs.program.bind(random_programs.random_tree(random)) for _ in range(RANDOM_TREES)]
    return [*((app, bound) for bound in fixed), *((random_programs.app, bound) for bound in trees)]


async def run(owner: App, bound: Bound[Any], history: History) -> tuple[bytes, list[Entry]]:
    host = MemoryHost(owner)
    host.begin(bound, history=history)
    outcome = await host.outcome()
    host.close()
    return outcome.output or outcome.error or b"", host.stored["w"].entries


def record(path: str) -> None:
    recorded = []
    for number, (owner, bound) in enumerate(programs()):
        output, entries = run_virtual(run(owner, bound, EMPTY_HISTORY))
        recorded.append(Recorded(number, output, entries))
    Path(path).write_bytes(msgspec.json.encode(recorded))


def replay(paths: list[str]) -> int:
    known = programs()
    wrong = 0
    for path in paths:
        for recorded in msgspec.json.decode(Path(path).read_bytes(), type=list[Recorded]):
            owner, bound = known[recorded.program]
            ran.clear()
            random_programs.ran.clear()
            output, entries = run_virtual(run(owner, bound, History(tuple(recorded.entries))))
            if output != recorded.output or len(entries) != len(recorded.entries) or ran or random_programs.ran:
                wrong += 1
                print(f"{path}, program {recorded.program}: {output!r} instead of {recorded.output!r}")
            # Half of it recorded elsewhere, the rest made here.
            half = tuple(recorded.entries[: len(recorded.entries) // 2])
            output, _ = run_virtual(run(owner, bound, History(half)))
            if b"NonDeterminismError" in output:
                wrong += 1
                print(f"{path}, half of program {recorded.program}: {output!r}")
    return wrong


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(sys.argv[2])
    else:
        sys.exit(1 if replay(sys.argv[2:]) else 0)
