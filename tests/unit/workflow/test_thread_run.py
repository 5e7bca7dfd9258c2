"""``def`` workflows: the same durability, in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from sharded_wf import (
    App,
    NonDeterminismError,
    NotDurableError,
    OutsideWorkflow,
    Retry,
    current,
    receive,
    send,
    sleep_blocking,
)
from sharded_wf.model.history import EMPTY_HISTORY, History
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, TERMINATE_TOPIC, Message, Outcome
from tests.unit.workflow.memory_host import MemoryHost

T = TypeVar("T")
app = App("threads")
ran: list[str] = []
ENTRIES_BEFORE_THE_MESSAGE = 8
released = threading.Event()


@app.step
def double(number: int) -> int:
    ran.append(f"double {number}")
    assert current().step == "double"
    return 2 * number


@app.step
async def triple(number: int) -> int:
    ran.append(f"triple {number}")
    return 3 * number


@app.step(retry=Retry(attempts=3, first=0.01, jitter=0))
def flaky() -> int:
    ran.append("flaky")
    if current().attempt < 3:
        raise ValueError("not yet")
    return current().attempt


@app.step(timeout=0.05)
def hangs() -> None:
    released.wait(10)


@app.step
async def forever() -> None:
    await asyncio.Event().wait()


@app.workflow
def child(number: int) -> int:
    return double(number) + 1


@app.workflow
async def async_child(number: int) -> int:
    return await triple(number) + await child.in_thread(number)


@app.workflow
def everything(number: int) -> list[int]:
    results = [double(number), triple.blocking(number), child(number), async_child.blocking(number), flaky()]
    sleep_blocking(0.01)
    send.blocking("nobody", "topic", results)
    try:
        receive.blocking("topic", int, timeout=0.01)
    except TimeoutError:
        results.append(-1)
    results.append(receive.blocking("topic", int))
    return results


@app.workflow
def times_out() -> str:
    try:
        hangs()
    except TimeoutError as error:
        return str(error)
    return "went on"


@app.workflow
def is_cancelled() -> str:
    try:
        forever.blocking()
    except asyncio.CancelledError:
        double(1)
        raise
    return "went on"


@app.workflow
def has_a_slow_child() -> str:
    double(2)
    time.sleep(0.05)  # its own code takes its time, on replay too
    return is_cancelled()


@app.workflow
def cleans_up() -> None:
    try:
        receive.blocking("never", int)
    finally:
        ran.append("finally")
        double(9)
        ran.append("after")


@app.workflow
def uses_async_wrongly() -> None:
    triple(1).close()


@pytest.fixture(autouse=True)
def forget() -> None:
    ran.clear()
    released.clear()


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 20))


async def run_everything(history: History, *, post: bool) -> tuple[list[int], History]:
    host = MemoryHost(app)
    try:
        current_run = host.begin(everything.bind(2), history=history)
        if post:
            await host.until(lambda: len(host.stored["w"].entries) == ENTRIES_BEFORE_THE_MESSAGE)
            await host.until(lambda: (waiting := current_run.waiting()) is not None and waiting.deadline_us is None)
            host.post(Message("w", "topic", "client", 1, b"7", 0))
        result = await host.result(everything.bind(2))
        return result, host.stored["w"].history()
    finally:
        host.close()


def test_everything_works_and_replays_without_running_again() -> None:
    result, history = run(run_everything(EMPTY_HISTORY, post=True))
    assert result == [4, 6, 5, 11, 3, -1, 7]
    ran.clear()
    again, after = run(run_everything(history, post=False))
    assert again == result
    assert ran == []
    assert after.entries == history.entries


@pytest.mark.parametrize("recorded", range(1, 9))
def test_it_goes_on_from_every_entry(recorded: int) -> None:
    result, whole = run(run_everything(EMPTY_HISTORY, post=True))
    again, after = run(run_everything(History(whole.entries[:recorded]), post=True))
    assert again == result
    assert after.entries[:recorded] == whole.entries[:recorded]


def test_a_def_step_that_hangs_times_out() -> None:
    async def main() -> str:
        host = MemoryHost(app)
        try:
            return await host.result(times_out.bind())
        finally:
            released.set()
            host.close()

    assert "took longer than 0.05 s" in run(main())


def test_cancelling_raises_at_the_blocking_call() -> None:
    async def main() -> History:
        host = MemoryHost(app)
        current_run = host.begin(is_cancelled.bind())
        await host.until(lambda: getattr(current_run, "busy", 0) == 1)
        host.post(Message("w", CANCEL_TOPIC, "client", 1, b"null", 0))
        outcome = await host.outcome()
        assert outcome.status is Status.CANCELLED
        host.close()
        second = MemoryHost(app)
        second.begin(is_cancelled.bind(), history=host.stored["w"].history())
        assert (await second.outcome()).status is Status.CANCELLED
        second.close()
        return host.stored["w"].history()

    run(main())
    assert ran == ["double 1"]


def test_one_that_is_terminated_as_it_is_taken_up_tells_the_child_that_it_waits_for() -> None:
    """Which child that is, is seen when its thread has come there again."""

    async def main() -> Outcome:
        host = MemoryHost(app)
        try:
            first = host.begin(has_a_slow_child.bind())
            await host.until(lambda: "w/is_cancelled-1" in host.stored)
            first.drop()
            host.take_up("w")
            host.loop.call_soon(host.post, Message("w", TERMINATE_TOPIC, "client", 1, b"null", 0))
            return await host.outcome()
        finally:
            host.close()

    outcome = run(main())
    assert (outcome.status, outcome.cancels) == (Status.CANCELLED, ("w/is_cancelled-1",))


def test_dropping_unwinds_the_thread_without_effect() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        current_run = host.begin(cleans_up.bind())
        await host.until(lambda: current_run.waiting() is not None)
        del host.runs["w"]
        current_run.drop()
        await host.until(lambda: "finally" in ran)
        host.close()

    run(main())
    assert ran == ["finally"]


def test_async_steps_have_a_blocking_form() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        try:
            with pytest.raises(
                NotDurableError, match=r"test_thread_run\.py:\d+ in uses_async_wrongly.*triple\.blocking"
            ):
                await host.result(uses_async_wrongly.bind())
        finally:
            host.close()

    run(main())


def test_blocking_forms_belong_into_def_workflows() -> None:
    with pytest.raises(OutsideWorkflow, match="sleep_blocking"):
        sleep_blocking(1)
    with pytest.raises(NotDurableError, match=r"triple\.blocking"):
        triple.blocking(1)
    begun = time.monotonic()
    assert double(1) == 2
    assert time.monotonic() - begun < 10


def test_another_history_is_noticed() -> None:
    _, history = run(run_everything(EMPTY_HISTORY, post=True))

    async def main() -> None:
        host = MemoryHost(app)
        host.begin(everything.bind(3), history=history)
        try:
            with pytest.raises(NonDeterminismError, match=r"recorded at place 0 is step 'double'.*other arguments"):
                await host.result(everything.bind(3))
        finally:
            host.close()

    run(main())
