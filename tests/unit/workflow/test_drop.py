"""A dropped run unwinds in silence: no effect, no warning, nothing that reaches the host."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sharded_wf import App, receive, send
from sharded_wf.model.workflow import Message
from sharded_wf.workflow.host import Run
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("drop")
ran: list[str] = []
unwound: list[str] = []


@app.step
async def effect(text: str) -> None:
    ran.append(text)


@app.step
async def long() -> None:
    try:
        await asyncio.sleep(1000)
    finally:
        unwound.append("long")


@app.workflow
async def cleans_up() -> None:
    try:
        await long()
    except BaseException:  # noqa: BLE001 - as careless users write
        unwound.append("except")
        await effect("in except")
        unwound.append("never")
    finally:
        unwound.append("finally")
        await effect("in finally")


@app.workflow
async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:  # noqa: BLE001 - as careless users write
            unwound.append("stubborn")
            await effect("again")


@app.workflow
async def swallows() -> None:
    try:
        await asyncio.sleep(1000)
    finally:
        for attempt in (lambda: effect("a"), lambda: send("w", "t", 1), lambda: receive("t", int, timeout=1)):
            try:
                await attempt()
            except BaseException as error:  # noqa: BLE001 - as careless users write
                unwound.append(type(error).__name__)


@asynccontextmanager
async def guarded() -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await effect("context manager")


async def numbers() -> AsyncGenerator[int, None]:
    try:
        while True:
            await asyncio.sleep(10)
            yield 1
    finally:
        await effect("generator")


@app.workflow
async def crowded() -> None:
    unawaited = [effect(str(number)) for number in range(3)]
    async with asyncio.TaskGroup() as group, guarded():
        for _ in range(3):
            group.create_task(cleans())
        asyncio.get_running_loop().create_task(cleans())
        async for number in numbers():
            if number == 2:
                break
    del unawaited


async def cleans() -> None:
    lock = asyncio.Lock()
    try:
        async with lock, asyncio.timeout(500):
            await asyncio.sleep(1000)
    finally:
        await effect("task")


@app.workflow
async def leaves_tasks() -> str:
    asyncio.get_running_loop().create_task(cleans())
    await asyncio.sleep(1)
    return "done"


def drop_after(workflow: Any, seconds: float) -> Any:
    """Drop a run from memory; returns a weak reference to its loop."""
    ran.clear()
    unwound.clear()

    async def main() -> Any:
        host = MemoryHost(app)
        run: Any = host.begin(workflow.bind())
        await asyncio.sleep(seconds)
        loop = weakref.ref(run.loop)
        entries = len(host.stored["w"].entries)
        del host.runs["w"]  # from now on the host refuses whatever the run asks for
        run.drop()
        run.drop()
        assert run.waiting() is None
        run.offer([])
        await asyncio.sleep(5000)
        assert len(host.stored["w"].entries) == entries
        assert host.stored["w"].outcome is None
        host.close()
        return loop

    return run_virtual(main())


@pytest.mark.parametrize("workflow", [cleans_up, stubborn, swallows, crowded], ids=lambda workflow: workflow.__name__)
def test_a_dropped_run_has_no_effect(workflow: Any) -> None:
    # Warnings are errors here, those of destroyed tasks and unawaited coroutines included.
    loop = drop_after(workflow, 1)
    gc.collect()
    assert ran == []
    assert "never" not in unwound
    assert loop() is None


def test_its_steps_are_stopped() -> None:
    drop_after(cleans_up, 1)
    assert unwound.count("long") == 1
    assert unwound.count("except") == unwound.count("finally") == 1


def test_durable_calls_are_refused_by_a_signal_that_except_exception_does_not_catch() -> None:
    drop_after(swallows, 1)
    assert unwound == ["RunDropped"] * 3


def test_what_is_left_when_the_workflow_ends_is_dropped() -> None:
    ran.clear()

    async def main() -> None:
        host = MemoryHost(app)
        assert await host.result(leaves_tasks.bind()) == "done"
        await asyncio.sleep(5000)
        host.close()

    run_virtual(main())
    assert ran == []


def test_dropping_before_the_start_runs_nothing() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        run: Run = host.begin(cleans_up.bind())
        run.drop()
        await asyncio.sleep(1)
        assert run.outcome is None
        host.close()

    unwound.clear()
    run_virtual(main())
    assert unwound == []


def test_a_parked_workflow_goes_on_where_it_was() -> None:
    parking = App("parking")

    @parking.workflow
    async def waits() -> str:
        await asyncio.sleep(10)
        text = await receive("text", str)
        await asyncio.sleep(10)
        return text

    async def main() -> str:
        host = MemoryHost(parking)
        run = host.begin(waits.bind())
        for seconds in (1, 12):
            await asyncio.sleep(seconds)
            waiting = run.waiting()
            assert waiting is not None
            assert (waiting.deadline_us is None) == (seconds == 12)
            del host.runs["w"]
            run.drop()
            run = host.take_up("w")
        await asyncio.sleep(1)
        host.post(Message("w", "text", "client", 1, b'"hello"', 0))
        result = await host.result(waits.bind())
        host.close()
        return result

    assert run_virtual(main()) == "hello"
