"""Steps: what is recorded, retried, timed out and cancelled, and what the code gets to see."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from sharded_wf import App, NotDurableError, Retry, StoredValueMismatch, UnstorableValue, WorkflowFailed, current
from sharded_wf.model.history import EntryKind, History
from tests.unit.workflow.memory_host import MemoryHost, run_virtual, run_workflow

app = App("steps")
attempts: list[tuple[int, str]] = []
cancelled: list[str] = []


@dataclass
class Item:
    name: str
    tags: list[str]


class LocalError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@app.step(retry=Retry(attempts=4, first=10, factor=2, cap=25, jitter=0))
async def flaky(succeeds_at: int) -> int:
    context = current()
    attempts.append((context.attempt, context.idempotency_key))
    if context.attempt < succeeds_at:
        raise LocalError(context.attempt)
    return context.attempt


@app.step(retry=Retry(attempts=5, never=(KeyError,)))
async def hopeless() -> None:
    attempts.append((current().attempt, ""))
    raise KeyError("no")


@app.step(timeout=5, retry=Retry(attempts=2, first=1, jitter=0))
async def slow() -> None:
    attempts.append((current().attempt, ""))
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        cancelled.append("slow")
        raise


@app.step
async def mutates(item: Item) -> Item:
    item.tags.append("changed")
    return item


@app.step
async def unstorable() -> Any:
    return {"deep": [object()]}


@app.step
async def wrong() -> int:
    return "text"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@app.step
async def odd() -> None:
    raise OddError(1, 2)


@app.step
def in_a_thread(number: int) -> tuple[int, bool, str]:
    return number, threading.current_thread() is threading.main_thread(), current().idempotency_key


@app.workflow
async def uses_flaky(succeeds_at: int) -> int:
    return await flaky(succeeds_at)


@app.workflow
async def uses_hopeless() -> None:
    await hopeless()


@app.workflow
async def uses_slow() -> None:
    await slow()


@app.workflow
async def uses_mutates() -> list[list[str]]:
    item = Item("a", ["new"])
    returned = await mutates(item)
    return [item.tags, returned.tags]


@app.workflow
async def uses_unstorable() -> None:
    await unstorable()


@app.workflow
async def catches_unstorable() -> str:
    try:
        await unstorable()
    except UnstorableValue as error:
        return str(error)
    return "nothing"


@app.workflow
async def uses_wrong() -> None:
    await wrong()


@app.workflow
async def uses_odd() -> None:
    await odd()


@app.workflow
async def uses_thread() -> list[tuple[int, bool, str]]:
    return [await in_a_thread.in_thread(1), await in_a_thread.in_thread(1)]


@app.workflow
async def calls_directly() -> None:
    in_a_thread(1)


@app.workflow
async def drops_a_step() -> str:
    task = asyncio.create_task(slow())
    await asyncio.sleep(1)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled"
    return "went on"


@pytest.fixture(autouse=True)
def forget() -> None:
    attempts.clear()
    cancelled.clear()


def test_a_step_is_tried_again_with_the_same_key() -> None:
    assert run_workflow(app, uses_flaky.bind(3)) == 3
    assert [number for number, _ in attempts] == [1, 2, 3]
    assert len({key for _, key in attempts}) == 1
    assert len(attempts[0][1]) == 32


def test_the_last_error_is_final_and_of_its_own_class() -> None:
    with pytest.raises(LocalError) as caught:
        run_workflow(app, uses_flaky.bind(9))
    assert caught.value.code == 4
    assert len(attempts) == 4
    assert any("raise LocalError" in note for note in caught.value.__notes__)


def test_some_errors_are_not_retried() -> None:
    with pytest.raises(KeyError):
        run_workflow(app, uses_hopeless.bind())
    assert len(attempts) == 1


def test_attempts_survive_a_crash() -> None:
    async def main() -> tuple[History, int]:
        host = MemoryHost(app)
        host.begin(uses_flaky.bind(3))
        await host.until(lambda: len(host.stored["w"].attempts) == 2)
        history = host.stored["w"].history()
        host.close()
        second = MemoryHost(app)
        run = second.begin(uses_flaky.bind(3), history=history)
        await asyncio.sleep(0)
        waiting = run.waiting()
        assert waiting is not None and waiting.deadline_us == history.attempts[-1].retry_at
        result = await second.result(uses_flaky.bind(3))
        second.close()
        return history, result

    history, result = run_virtual(main())
    assert result == 3
    assert [number for number, _ in attempts] == [1, 2, 3]
    first, second = history.attempts
    assert second.retry_at - second.failed_at == pytest.approx(20_000_000)
    assert first.retry_at - first.failed_at == pytest.approx(10_000_000)


def test_a_timeout_cancels_the_attempt() -> None:
    with pytest.raises(TimeoutError, match="took longer than 5 s"):
        run_workflow(app, uses_slow.bind())
    assert [number for number, _ in attempts] == [1, 2]
    assert cancelled == ["slow", "slow"]


def test_a_step_can_not_change_the_workflows_values() -> None:
    assert run_workflow(app, uses_mutates.bind()) == [["new"], ["new", "changed"]]


def test_an_unstorable_result_fails_the_workflow_once() -> None:
    with pytest.raises(UnstorableValue, match=r"the result of unstorable\['deep'\]\[0\] is of type object"):
        run_workflow(app, uses_unstorable.bind())


def test_an_unstorable_result_can_be_caught_where_it_was_called() -> None:
    assert "['deep'][0]" in run_workflow(app, catches_unstorable.bind())


def test_a_result_must_fit_its_annotation() -> None:
    with pytest.raises(StoredValueMismatch, match="the result of wrong"):
        run_workflow(app, uses_wrong.bind())


def test_an_error_that_can_not_be_rebuilt_keeps_its_text() -> None:
    with pytest.raises(WorkflowFailed, match="OddError: 1 and 2") as caught:
        run_workflow(app, uses_odd.bind())
    assert "raise OddError(1, 2)" in caught.value.traceback_text


def test_def_steps_run_in_threads_and_equal_calls_have_their_own_keys() -> None:
    async def main() -> list[tuple[int, bool, str]]:
        host = MemoryHost(app)
        result = await host.result(uses_thread.bind())
        host.close()
        return result

    first, second = asyncio.run(main())
    assert first[:2] == second[:2] == (1, False)
    assert first[2] != second[2]


def test_calling_a_def_step_directly_names_the_replacement() -> None:
    with pytest.raises(NotDurableError, match=r"test_steps\.py:\d+ in calls_directly.*await in_a_thread\.in_thread"):
        run_workflow(app, calls_directly.bind())


def test_a_cancelled_step_is_stopped_and_leaves_no_trace() -> None:
    async def main() -> tuple[str, History]:
        host = MemoryHost(app)
        result = await host.result(drops_a_step.bind())
        history = host.stored["w"].history()
        host.close()
        return result, history

    result, history = run_virtual(main())
    assert result == "cancelled"
    assert cancelled == ["slow"]
    assert [entry.kind for entry in history.entries] == [EntryKind.TIMER]


def test_outside_a_workflow_a_step_is_its_function() -> None:
    @app.step
    async def tells_key() -> str:
        return current().idempotency_key

    async def main() -> tuple[str, str]:
        return await tells_key(), await tells_key()

    first, second = asyncio.run(main())
    assert len(first) == 32
    assert first != second
    assert in_a_thread(7)[0] == 7


def test_an_input_that_does_not_fit_fails_the_workflow() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        bound = uses_flaky.bind(1)
        host.begin(msgspec.structs.replace(bound, input=b'["text"]'))
        with pytest.raises(StoredValueMismatch, match="stored input does not fit steps/uses_flaky"):
            await host.result(bound)
        host.close()

    run_virtual(main())
