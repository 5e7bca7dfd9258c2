"""Attempts of async steps share a task until one of them waits: nobody may notice."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from sharded_wf import App, WorkflowFailed
from sharded_wf.limits import ATTEMPTS_PER_TURN_MAX
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("attempts")
mine: ContextVar[int] = ContextVar("mine", default=-1)
tasks: dict[int, list[Any]] = {}
seen: list[tuple[int, int]] = []


@app.step
async def work(number: int, waits: bool) -> int:
    seen.append((number, mine.get()))
    mine.set(number)
    tasks[number] = [asyncio.current_task()]
    if waits:
        await asyncio.sleep(0.001 * (number % 7))
        tasks[number].append(asyncio.current_task())
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        tasks[number].append(asyncio.current_task())
    assert mine.get() == number
    return number


@app.step
async def cancels_itself(again: bool) -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if again:
        await asyncio.sleep(0)
    return "done"


@app.step
async def times_out() -> str:
    async with asyncio.timeout(0.5):
        await asyncio.sleep(100)
    return "not reached"


@app.step(timeout=5)
async def waits_for_ever() -> None:
    await asyncio.Event().wait()


@app.step
async def exits() -> None:
    raise SystemExit(3)


@app.workflow
async def many(count: int, every: int) -> list[int]:
    return await asyncio.gather(*(work(number, number % every == 0) for number in range(count)))


@app.workflow
async def beside(count: int) -> tuple[str, list[int]]:
    first, *rest = await asyncio.gather(cancels_itself(False), *(work(number, True) for number in range(count)))
    return str(first), [number for number in rest if isinstance(number, int)]


@app.workflow
async def in_turn() -> str:
    got = []
    for step in (times_out, waits_for_ever, exits):
        try:
            await step()
        except (TimeoutError, WorkflowFailed, SystemExit) as error:
            got.append(type(error).__name__)
    return ",".join(got)


def run(bound: Any) -> Any:
    async def main() -> Any:
        host = MemoryHost(app)
        try:
            return await host.result(bound)
        finally:
            host.close()

    tasks.clear()
    seen.clear()
    return run_virtual(main())


@pytest.mark.parametrize("every", [1, 3, 10_000])
def test_each_attempt_has_one_task_and_variables_of_its_own(every: int) -> None:
    count = ATTEMPTS_PER_TURN_MAX + 50
    assert run(many.bind(count, every)) == list(range(count))
    assert seen == [(number, -1) for number in range(count)]
    for number, found in tasks.items():
        assert all(task is found[0] for task in found)
        assert len(found) == (3 if number % every == 0 else 1)
    waiting = {id(tasks[number][0]) for number in range(0, count, every)}
    assert len(waiting) == len(range(0, count, every)), "attempts that wait never share a task"


def test_an_attempt_that_cancels_its_task_harms_no_other() -> None:
    assert run(beside.bind(20)) == ("done", list(range(20)))


def test_timeouts_and_exits_are_the_steps_own() -> None:
    assert run(in_turn.bind()) == "TimeoutError,TimeoutError,WorkflowFailed"
