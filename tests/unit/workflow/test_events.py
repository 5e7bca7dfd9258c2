"""Events: set, read by others, latest value; killed at every flush."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sharded_wf import (
    App,
    EventNeverSet,
    LimitExceeded,
    OutsideWorkflow,
    StoredValueMismatch,
    WorkflowNotFound,
    set_event,
    wait_event,
)
from sharded_wf.model.status import Status
from tests.unit.workflow.memory_host import MemoryHost, run_virtual, run_workflow

app = App("events")


@app.workflow
async def counts(to: int, pause: float) -> int:
    for number in range(1, to + 1):
        await asyncio.sleep(pause)
        await set_event("count", number)
    return to


@app.workflow
def counts_sync(to: int) -> int:
    for number in range(1, to + 1):
        set_event.blocking("count", number)
    return to


@app.workflow
async def waits(target: str, key: str, limit: float | None) -> int:
    return await wait_event(target, key, int, timeout=limit)


@app.workflow
def waits_sync(target: str, limit: float | None) -> int:
    return wait_event.blocking(target, "count", int, timeout=limit)


@app.workflow
async def waits_twice(target: str) -> list[int]:
    both = await asyncio.gather(wait_event(target, "count", int), wait_event(target, "count", int))
    await asyncio.sleep(100)
    return [*both, await wait_event(target, "count", int)]


@app.workflow
async def waits_for_text(target: str) -> str:
    return await wait_event(target, "count", str)


def with_setter(bound: Any, *, setter: Any, setter_first: bool = True, virtual: bool = True) -> Any:
    async def main() -> Any:
        host = MemoryHost(app)
        try:
            order = [("s", setter), ("w", bound)]
            for id_, one in order if setter_first else reversed(order):
                host.begin(one, id_)
            return await host.result(bound)
        finally:
            host.close()

    return run_virtual(main()) if virtual else asyncio.run(main())


def test_an_event_that_is_to_come() -> None:
    assert with_setter(waits.bind("s", "count", None), setter=counts.bind(3, 10)) == 1


def test_an_event_that_is_set_gives_its_latest_value() -> None:
    found = with_setter(waits_twice.bind("s"), setter=counts.bind(5, 10))
    assert found == [1, 1, 5]


def test_def_workflows_set_and_wait() -> None:
    assert with_setter(waits_sync.bind("s", None), setter=counts_sync.bind(3), virtual=False) in (1, 2, 3)


@pytest.mark.parametrize("bound", [waits.bind("s", "count", 30), waits_sync.bind("s", 0.05)])
def test_a_wait_has_its_time(bound: Any) -> None:
    with pytest.raises(TimeoutError, match="'s' did not set event 'count' in time"):
        with_setter(bound, setter=counts.bind(1, 100), virtual=bound.name == "events/waits")


def test_nobody_waits_for_what_can_t_come() -> None:
    with pytest.raises(WorkflowNotFound):
        run_workflow(app, waits.bind("nobody", "count", None))
    with pytest.raises(EventNeverSet):
        with_setter(waits.bind("s", "other", None), setter=counts.bind(0, 0))
    with pytest.raises(StoredValueMismatch):
        with_setter(waits_for_text.bind("s"), setter=counts.bind(1, 0))
    with pytest.raises(LimitExceeded):
        run_workflow(app, waits.bind("s", "k" * 1000, None))
    with pytest.raises(OutsideWorkflow):
        asyncio.run(set_event("count", 1))
    with pytest.raises(OutsideWorkflow):
        wait_event.blocking("s", "count")


@pytest.mark.parametrize("crash_after", range(1, 12))
def test_a_crash_after_each_entry_sets_and_finds_the_same(crash_after: int) -> None:
    """All workflows of the host die together, and are taken up again from what is durable."""

    async def main() -> None:
        bounds: dict[str, Any] = {
            "s": counts.bind(3, 5),
            "w": waits_twice.bind("s"),
            "v": waits.bind("s", "count", None),
        }
        host = MemoryHost(app, crash_after=crash_after)
        for id_, bound in bounds.items():
            host.begin(bound, id_)
        ends = [asyncio.create_task(host.outcome(id_)) for id_ in bounds]
        died = asyncio.create_task(host.crashed.wait())
        everything = asyncio.gather(*ends)
        either: list[asyncio.Future[Any]] = [everything, died]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        crashed = host.dead()
        everything.cancel()
        died.cancel()
        host.close()
        again = MemoryHost(app)
        try:
            again.stored = host.stored
            for id_ in bounds:
                again.finished[id_] = asyncio.Event()
                if again.stored[id_].outcome is None:
                    again.take_up(id_)
                else:
                    again.finished[id_].set()
            for id_ in bounds:
                assert (await again.outcome(id_)).status is Status.SUCCEEDED
            assert again.stored["s"].events["count"].value == b"3"
            found = await again.result(bounds["w"], "w")
            assert all(one in (1, 2, 3) for one in found)
            assert found[2] == 3
            sets = [entry.output for entry in again.stored["s"].entries if entry.name == "count"]
            assert sets == [b"1", b"2", b"3"]
        finally:
            again.close()
        assert crashed or crash_after > 8

    run_virtual(main())
