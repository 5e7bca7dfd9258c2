"""``map_workflow``: every item once, so many at once, whatever crashes; too many failures stop it, and run again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from sharded_wf import (
    App,
    LimitExceeded,
    MapFailed,
    MapPage,
    MapResult,
    OutsideWorkflow,
    StoredValueMismatch,
    map_workflow,
)
from sharded_wf.model.history import EntryKind
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, Message
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("maps")
ran: Counter[int] = Counter()
now_running = 0
most_running = 0
broken: set[int] = set()


@app.step
async def square(number: int) -> int:
    global now_running, most_running
    ran[number] += 1
    now_running += 1
    most_running = max(most_running, now_running)
    try:
        await asyncio.sleep(0.1 * (1 + number % 3))
    finally:
        now_running -= 1
    if number in broken:
        raise ValueError(f"{number} is broken")
    return number * number


@app.workflow
async def process(number: int) -> int:
    return await square(number)


@app.step
async def numbers(begin: int | None) -> MapPage[int]:
    """30 numbers, ten a page."""
    first = begin or 0
    return MapPage(list(range(first, first + 10)), None if first == 20 else first + 10)


@app.workflow
async def maps(count: int, tolerated: int | None) -> MapResult:
    return await map_workflow(process, range(count), concurrency=8, tolerated_failures=tolerated)


@app.workflow
async def maps_pages(tolerated: int | None) -> MapResult:
    return await map_workflow(process, numbers, concurrency=8, tolerated_failures=tolerated)


@app.workflow
async def maps_again() -> list[int]:
    try:
        await map_workflow(process, numbers, concurrency=4, tolerated_failures=2)
    except MapFailed as error:
        broken.clear()
        again = await map_workflow(process, error.result)
        return [error.result.succeeded, again.succeeded]
    return []


@app.step
async def untold(begin: Any) -> Any:  # says not what it returns
    return MapPage([1, 2], 3) if begin is None else {"items": [3]} if begin == 3 else "no page"


@app.workflow(timeout=5)
async def hasty(number: int) -> None:
    await asyncio.sleep(1 if number else 3600)


@app.workflow
async def maps_untold() -> list[Any]:
    result = await map_workflow(process, untold)
    again = MapResult("an earlier map", more=True, next="?", source=result.source)
    with pytest.raises(StoredValueMismatch, match="'untold' gave as a page"):
        await map_workflow(process, again)
    late = await map_workflow(hasty, [0, 1], tolerated_failures=1)
    return [result.succeeded, late.succeeded, late.failures[0].error]


@app.workflow
def maps_blocking(count: int) -> MapResult:
    return map_workflow.blocking(process, list(range(count)), concurrency=3, tolerated_failures=1)


def live(bound: Any, *, crash_after: int | None = None, breaks: set[int] | None = None) -> MemoryHost:
    """The whole life of a map, in as many hosts as it takes."""
    global most_running

    async def one(dead: MemoryHost | None) -> MemoryHost:
        global now_running
        now_running = 0
        host = MemoryHost(app, crash_after=crash_after)
        try:
            if dead is None:
                host.begin(bound)
            else:
                host.inherit(dead)
            await host.until(lambda: host.dead() or host.stored["w"].outcome is not None)
        finally:
            host.close()
        return host

    ran.clear()
    broken.clear()
    broken.update(breaks or ())
    most_running = 0
    host = run_virtual(one(None))
    while host.stored["w"].outcome is None:
        host = run_virtual(one(host))
    return host


def result_of(host: MemoryHost, bound: Any) -> Any:
    outcome = host.stored["w"].outcome
    assert outcome is not None and outcome.output is not None, outcome
    return bound.result.decode(outcome.output)


def test_every_item_once_and_so_many_at_once() -> None:
    bound = maps.bind(50, 0)
    host = live(bound)
    result = result_of(host, bound)
    assert (result.succeeded, result.failures, result.skipped, result.read) == (50, [], [], 50)
    assert ran == Counter(range(50))
    assert 5 <= most_running <= 8
    assert host.stored[result.workflow_id(7)].ended.output == b"49"
    assert result.workflow_id(7) == "w/map-1/item-7"


def test_histories_are_short_and_hold_no_results() -> None:
    host = live(maps_pages.bind(0))
    assert [entry.kind for entry in host.stored["w"].entries] == [EntryKind.CHILD]
    # The map: for each page that it began, and for its end.
    assert Counter(e.kind for e in host.stored["w/map-1"].entries) == {EntryKind.MESSAGE: 3, EntryKind.CHILD: 3}
    page = host.stored["w/map-1/page-2"].entries
    assert Counter(entry.kind for entry in page) == {EntryKind.STEP: 1, EntryKind.SEND: 1, EntryKind.CHILD: 10}
    assert {entry.output for entry in page if entry.kind is EntryKind.CHILD} == {b"null"}


@pytest.mark.parametrize("crash_after", [1, 2, 5])
def test_crashes_change_nothing(crash_after: int) -> None:
    bound = maps_pages.bind(None)
    host = live(bound, crash_after=crash_after, breaks={3, 17})
    result = result_of(host, bound)
    assert (result.succeeded, [failure.number for failure in result.failures]) == (28, [3, 17])
    items = [id_ for id_ in host.stored if "item" in id_]
    assert len(items) == 30
    for id_ in items:
        assert sum(entry.kind is EntryKind.STEP for entry in host.stored[id_].entries) == 1


def test_too_many_failures_stop_it_and_only_those_run_again() -> None:
    bound = maps_again.bind()
    host = live(bound, breaks={0, 1, 2, 3, 4})
    before, after = result_of(host, bound)
    assert before + after == 30
    assert after >= 3
    succeeded = [id_ for id_, stored in host.stored.items() if "item" in id_ and stored.ended.status == 3]
    assert sorted(int(id_.rpartition("-")[2]) for id_ in succeeded) == list(range(30)), "each succeeded once"
    assert sum("map-2/item" in id_ for id_ in succeeded) == after


def test_the_error_says_which() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        with pytest.raises(MapFailed, match=r"failed items: 2, tolerated: 1; the first: 'w/map-1/item-\d'"):
            await host.result(maps.bind(8, 1))
        host.close()

    broken.update({1, 2})
    run_virtual(main())
    broken.clear()


def test_cancelling_a_map_cancels_its_items() -> None:
    async def main() -> MemoryHost:
        host = MemoryHost(app)
        host.begin(maps.bind(50, 0))
        await host.until(lambda: any("item" in id_ and s.outcome for id_, s in host.stored.items()))
        host.post(Message("w", CANCEL_TOPIC, "client", 1, b"null", 0))
        await host.until(lambda: all(stored.outcome for stored in host.stored.values()))
        host.close()
        return host

    host = run_virtual(main())
    statuses = Counter(stored.ended.status for stored in host.stored.values())
    assert statuses[Status.CANCELLED] > 5
    assert not any(status is Status.FAILED for status in statuses)
    assert len(host.stored) < 50


def test_in_a_def_workflow() -> None:
    async def main() -> Any:
        host = MemoryHost(app)
        result = await host.result(maps_blocking.bind(6))
        host.close()
        return result

    broken.clear()
    assert asyncio.run(main()).succeeded == 6


def test_pages_of_a_step_without_annotation_and_the_time_of_each_item() -> None:
    bound = maps_untold.bind()
    succeeded, in_time, error = result_of(live(bound), bound)
    assert (succeeded, in_time) == (3, 1)
    assert error.startswith("WorkflowTimedOut")


def test_no_items() -> None:
    bound = maps.bind(0, 0)
    assert result_of(live(bound), bound).succeeded == 0


def test_what_can_not_work_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="concurrency=0"):
        map_workflow.bind(process, [1], concurrency=0)
    with pytest.raises(LimitExceeded, match="tolerated_failures=-1"):
        map_workflow.bind(process, [1], tolerated_failures=-1)
    with pytest.raises(OutsideWorkflow, match=r"client\.start"):
        _ = map_workflow(process, [1])
