"""Ordinary asyncio, on the deterministic loop: each program runs, and its history replays to the same result."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from sharded_wf import App, WorkflowFailed, WorkflowStuck, current
from tests.unit.workflow.memory_host import START_US, MemoryHost, run_virtual

app = App("asyncio")
runs: list[int] = []
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@app.step
async def echo(value: int, delay: float = 1.0) -> int:
    runs.append(value)
    await asyncio.sleep(delay)
    return value


@app.step
async def read_variable() -> str:
    return variable.get()


@app.workflow
async def sleeps() -> list[float]:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.sleep(3600)
    after = loop.time() - begun
    await asyncio.sleep(0)
    await asyncio.sleep(timedelta(minutes=1).total_seconds())
    return [begun, after, loop.time() - begun]


@app.workflow
async def timeouts() -> list[str]:
    seen = []
    try:
        async with asyncio.timeout(5):
            await echo(1, 10)
    except TimeoutError:
        seen.append("timeout")
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + 2):
            await asyncio.Event().wait()
    except TimeoutError:
        seen.append("timeout_at")
    try:
        await asyncio.wait_for(echo(2, 10), 3)
    except TimeoutError:
        seen.append("wait_for")
    seen.append(str(await asyncio.wait_for(echo(3, 1), 3)))
    async with asyncio.timeout(None) as limit:
        limit.reschedule(asyncio.get_running_loop().time() + 60)
        seen.append(str(await echo(4)))
    return seen


@app.workflow
async def gathers() -> list[Any]:
    results = await asyncio.gather(echo(3, 3), echo(1, 1), echo(2, 2))
    first = [await done for done in asyncio.as_completed([echo(13, 3), echo(11, 1), echo(12, 2)])]
    done, pending = await asyncio.wait([asyncio.create_task(echo(n, n)) for n in (21, 22, 23)], timeout=22.5)
    kept = asyncio.shield(asyncio.create_task(echo(31, 2)))
    mixed = await asyncio.gather(echo(41), fails(), return_exceptions=True)
    late = [await task for task in sorted(pending, key=lambda task: task.get_name())]
    return [results, first, sorted(t.result() for t in done), late, await kept, [str(part) for part in mixed]]


async def fails() -> None:
    await asyncio.sleep(0.5)
    raise ValueError("on purpose")


@app.workflow
async def groups() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(echo(n)) for n in range(3)]
    seen = [str(task.result()) for task in tasks]
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(echo(9, 100))
            group.create_task(fails())
    except* ValueError as errors:
        seen += [str(error) for error in errors.exceptions]
    return seen


@app.workflow
async def queues() -> list[list[int]]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    for number in range(9):
        queue.put_nowait(number)
    done: list[list[int]] = [[], [], []]

    async def work(mine: list[int], pace: float) -> None:
        while not queue.empty():
            mine.append(await echo(await queue.get(), pace))

    await asyncio.gather(*(work(mine, 1 + place / 4) for place, mine in enumerate(done)))
    return done


@app.workflow
async def locks() -> list[str]:
    lock, semaphore, event, condition = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Event(), asyncio.Condition()
    log: list[str] = []

    async def one(number: int) -> None:
        async with semaphore:
            await echo(number, 3 - number / 2)
            async with lock:
                log.append(f"in {number}")
                await echo(10 + number, 0.1)
                log.append(f"out {number}")
        event.set()
        async with condition:
            condition.notify_all()

    async def watch() -> None:
        await event.wait()
        async with condition:
            await condition.wait_for(lambda: len(log) >= 6)
        log.append("watched")

    await asyncio.gather(watch(), *(one(number) for number in range(3)))
    return log


@app.workflow
async def variables() -> list[str]:
    seen = [variable.get(), await read_variable()]
    variable.set("main")

    async def inner() -> str:
        before = variable.get()
        variable.set("inner")
        return before + await read_variable()

    seen.append(await asyncio.create_task(inner()))
    seen += [variable.get(), await read_variable()]
    task = asyncio.current_task()
    assert task is not None and task in asyncio.all_tasks()
    return seen


@app.workflow
async def generators() -> list[int]:
    closed: list[int] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            for number in range(5):
                yield await echo(number)
        finally:
            closed.append(await echo(100))

    seen = []
    async for number in numbers():
        seen.append(number)
        if number == 2:
            break
    await asyncio.sleep(5)
    return seen + closed


@app.workflow
async def sets() -> list[int]:
    """Goes over sets of tasks and coroutines, and asks for something each time."""
    tasks = {asyncio.create_task(echo(number, 1)) for number in range(20)}
    done, _ = await asyncio.wait(tasks)
    seen = [await echo(100 + task.result(), 0.1) for task in done]
    for one in asyncio.as_completed([then_echo(number) for number in range(20)]):
        seen.append(await one)
    return seen


async def then_echo(number: int) -> int:
    await asyncio.sleep(1)
    return await echo(200 + number, 0.1)


PROGRAMS = [sets, sleeps, timeouts, gathers, groups, queues, locks, variables, generators]


def live_and_replayed(workflow: Any) -> tuple[Any, Any, int]:
    """The result of a first run, that of its replay, and how many steps the replay ran."""

    async def main() -> tuple[Any, Any, int]:
        host = MemoryHost(app)
        result = await host.result(workflow.bind())
        history = host.stored["w"].history()
        started_at = host.stored["w"].started_at
        host.close()
        runs.clear()
        second = MemoryHost(app)
        second.begin(workflow.bind(), history=history, started_at=started_at)
        replayed = await second.result(workflow.bind())
        second.close()
        return result, replayed, len(runs)

    return run_virtual(main())


@pytest.mark.parametrize("workflow", PROGRAMS, ids=lambda workflow: workflow.__name__)
def test_ordinary_asyncio_replays(workflow: Any) -> None:
    result, replayed, ran_again = live_and_replayed(workflow)
    assert replayed == result
    assert ran_again == 0


def result_of(workflow: Any) -> Any:
    return live_and_replayed(workflow)[0]


def test_time_is_the_workflows() -> None:
    begun, slept, all_in_all = result_of(sleeps)
    assert begun == pytest.approx(START_US / 1e6, abs=1)
    assert slept == pytest.approx(3600, abs=1)
    assert all_in_all == pytest.approx(3660, abs=1)


def test_timeouts_cancel_what_takes_too_long() -> None:
    assert result_of(timeouts) == ["timeout", "timeout_at", "wait_for", "3", "4"]


def test_gather_wait_and_shield() -> None:
    assert result_of(gathers) == [[3, 1, 2], [11, 12, 13], [21, 22], [23], 31, ["41", "on purpose"]]


def test_task_groups_cancel_the_others() -> None:
    assert result_of(groups) == ["0", "1", "2", "on purpose"]


def test_workers_share_a_queue() -> None:
    done = result_of(queues)
    assert sorted(number for mine in done for number in mine) == list(range(9))


def test_locks_exclude() -> None:
    log = result_of(locks)
    assert log[-1] == "watched"
    assert [line.split()[0] for line in log[:-1]] == ["in", "out"] * 3


def test_context_variables_reach_the_steps() -> None:
    assert result_of(variables) == ["unset", "unset", "mainmain"[:4] + "inner", "main", "main"]


def test_a_generator_left_early_is_closed_by_the_workflow() -> None:
    assert result_of(generators) == [0, 1, 2, 100]


def test_waiting_for_what_can_not_come_fails() -> None:
    stuck = App("stuck")

    @stuck.workflow
    async def waits() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        host = MemoryHost(stuck)
        with pytest.raises(WorkflowStuck, match=r"test_asyncio\.py:\d+ in .*waits"):
            await host.result(waits.bind())
        host.close()

    run_virtual(main())


def test_exit_in_a_workflow_is_its_failure() -> None:
    leaving = App("leaving")

    @leaving.workflow
    async def leaves() -> None:
        raise SystemExit(3)

    async def main() -> None:
        host = MemoryHost(leaving)
        with pytest.raises(WorkflowFailed, match="SystemExit: 3"):
            await host.result(leaves.bind())
        host.close()

    run_virtual(main())


def test_the_workflow_logger_is_silent_on_replay(caplog: pytest.LogCaptureFixture) -> None:
    logging_app = App("logging")

    @logging_app.step
    async def one() -> int:
        return 1

    @logging_app.workflow
    async def logs() -> None:
        current().logger.warning("before")
        await one()
        current().logger.warning("between")
        await asyncio.sleep(1)
        current().logger.warning("after")

    async def main() -> None:
        host = MemoryHost(logging_app)
        await host.result(logs.bind())
        assert [record.message for record in caplog.records] == ["[w] before", "[w] between", "[w] after"]
        caplog.clear()
        history = host.stored["w"].history()
        host.close()
        second = MemoryHost(logging_app)
        second.begin(logs.bind(), history=history)
        await second.outcome()
        assert [record.message for record in caplog.records] == ["[w] after"]
        second.close()

    run_virtual(main())
