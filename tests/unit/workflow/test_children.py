"""Children beside which their parent goes on: awaited later or never, cancelled with it, and after every crash."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest

from sharded_wf import App, Bound, OutsideWorkflow, WorkflowCancelled, continue_as_new, start_child
from sharded_wf.model.history import EntryKind
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, Message, closer_name
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("children")
ran: Counter[str] = Counter()
undone: list[str] = []


@app.step
async def work(label: str, seconds: float = 1.0) -> str:
    ran[label] += 1
    await asyncio.sleep(seconds)
    if label.startswith("bad"):
        raise KeyError(label)
    return label.upper()


@app.workflow
async def child(label: str, seconds: float = 1.0) -> str:
    try:
        return await work(label, seconds)
    except asyncio.CancelledError:
        undone.append(await work(f"undo {label}"))
        raise


@app.workflow
async def awaits_later() -> list[str]:
    first = await child.start("a", 5)
    second = await start_child(child.bind("b"), id="own-id")
    done = [first.id, second.id, await work("beside"), await second.result(), await first.result()]
    return [*done, await second.result()]


@app.workflow
def awaits_later_blocking() -> list[str]:
    first = child.start_blocking("a", 0.5)
    second = start_child.blocking(child.bind("b"), id="own-id")
    done = [first.id, second.id, work.blocking("beside"), second.result(), first.result()]
    return [*done, second.result()]


@app.workflow
async def catches() -> str:
    handle = await child.start("bad")
    await work("beside", 3)
    try:
        return await handle.result()
    except KeyError as error:
        return f"caught {error}"


@app.workflow
async def times_out() -> list[str]:
    handle = await child.start("slow", 10)
    try:
        await asyncio.wait_for(handle.result(), 2)
    except TimeoutError:
        return ["late", await handle.result()]
    return []


@app.workflow
def times_out_blocking() -> list[str]:
    handle = child.start_blocking("slow", 0.3)
    try:
        handle.result(timeout=0.05)
    except TimeoutError:
        return ["late", handle.result()]
    return []


@app.workflow
async def leaves_two() -> str:
    await start_child(child.bind("kept", 20))
    await start_child(child.bind("closed", 20), parent_close="cancel")
    ended = await start_child(child.bind("ended"), parent_close="cancel")
    return await ended.result()


@app.workflow
async def fails_and_leaves() -> None:
    await start_child(child.bind("closed", 20), parent_close="cancel")
    await work("bad")


@app.workflow
async def awaits_both() -> None:
    """One is inline, one was started."""
    handle = await child.start("kept", 20)
    await asyncio.gather(child("inline", 20), handle.result())


@app.workflow
async def goes_on_as_new(number: int) -> None:
    if number == 1:
        await start_child(child.bind("closed", 90), parent_close="cancel")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child("given up", 90), 2)
        continue_as_new(goes_on_as_new.bind(2))
    await work("second run", 3)


@app.workflow
async def first_wins() -> str:
    tasks = [asyncio.create_task(child("fast", 2), name="fast"), asyncio.create_task(child("slow", 20), name="slow")]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await work("after")
    return done.pop().result()


@app.workflow
async def group_fails() -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("loser", 20))
            group.create_task(work("bad", 3))
    except* KeyError:
        pass
    return "over"


@app.workflow
async def cancels() -> str:
    handle = await child.start("slow", 20)
    await work("first")
    await handle.cancel()
    try:
        return await handle.result()
    except WorkflowCancelled:
        return "cancelled"


@app.workflow
def cancels_blocking() -> str:
    handle = child.start_blocking("slow", 20)
    handle.cancel()
    try:
        return handle.result()
    except WorkflowCancelled:
        return "cancelled"


@app.workflow
async def detaches() -> str:
    handle = await start_child(child.bind("alone", 5), detached=True)
    with pytest.raises(ValueError, match="detached"):
        await handle.result()
    return handle.id


def live(bound: Bound[Any], *, until_all_end: bool = True, crash_after: int | None = None) -> MemoryHost:
    """The whole life of a workflow and its children: in one host, or in as many as it takes if each dies after so many
    entries. Without that, time is virtual."""

    async def one(dead: MemoryHost | None) -> MemoryHost:
        host = MemoryHost(app, crash_after=crash_after)
        try:
            if dead is None:
                host.begin(bound)
            else:
                host.inherit(dead)
            ended = asyncio.create_task(host.until(lambda: has_ended(host, all_of_them=until_all_end)))
            died = asyncio.create_task(host.crashed.wait())
            await asyncio.wait([ended, died], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            died.cancel()
        finally:
            host.close()
        return host

    ran.clear()
    undone.clear()
    host = run_virtual(one(None))
    for _ in range(100):
        if has_ended(host, all_of_them=until_all_end):
            return host
        host = run_virtual(one(host))
    raise AssertionError("it never ended")


def has_ended(host: MemoryHost, *, all_of_them: bool) -> bool:
    which = host.stored.values() if all_of_them else [host.stored["w"]]
    return all(stored.outcome is not None for stored in which)


def output(host: MemoryHost, bound: Bound[Any], id_: str = "w") -> Any:
    outcome = host.stored[id_].outcome
    assert outcome is not None and outcome.output is not None, outcome
    return bound.result.decode(outcome.output)


def statuses(host: MemoryHost) -> dict[str, Status | None]:
    return {id_: stored.outcome.status if stored.outcome else None for id_, stored in host.stored.items()}


EXPECTED: list[tuple[Any, Any]] = [
    (awaits_later, ["w/child-1", "own-id", "BESIDE", "B", "A", "B"]),
    (catches, "caught 'bad'"),
    (times_out, ["late", "SLOW"]),
    (leaves_two, "ENDED"),
    (first_wins, "FAST"),
    (group_fails, "over"),
    (cancels, "cancelled"),
    (detaches, "w/child-1"),
]


@pytest.mark.parametrize(("workflow", "expected"), EXPECTED, ids=[workflow.__name__ for workflow, _ in EXPECTED])
@pytest.mark.parametrize("crash_after", [None, 1, 2, 3])
def test_crashes_change_nothing(workflow: Any, expected: Any, crash_after: int | None) -> None:
    """Every child is started once, whatever dies: at every entry, or every second or third."""
    whole = live(workflow.bind())
    host = live(workflow.bind(), crash_after=crash_after)
    assert output(host, workflow.bind()) == expected
    assert statuses(host) == statuses(whole)
    for id_, stored in host.stored.items():
        entries = stored.entries
        assert len({entry.place for entry in entries}) == len(entries), id_
        kinds = Counter((entry.kind, entry.name) for entry in whole.stored[id_].entries)
        assert Counter((entry.kind, entry.name) for entry in entries) == kinds


def test_a_start_is_recorded_with_its_id_and_not_made_again() -> None:
    host = live(awaits_later.bind())
    kinds = [entry.kind for entry in host.stored["w"].entries]
    assert kinds == [EntryKind.START, EntryKind.START, EntryKind.STEP, EntryKind.CHILD, EntryKind.CHILD]
    assert host.stored["w"].entries[0].output == b'"w/child-1"'
    assert host.stored["w/child-1"].start.parent_id == "w"
    # Its children are gone by the time it is replayed, as retention may have it of those that nobody awaits.
    replayed = replay(host, "w")
    assert replayed.stored.keys() == {"w"}
    assert output(replayed, awaits_later.bind()) == output(host, awaits_later.bind())


def replay(host: MemoryHost, id_: str) -> MemoryHost:
    async def main() -> MemoryHost:
        second = MemoryHost(app)
        stored = host.stored[id_]
        definition = app.workflows[stored.start.name]
        bound = Bound(definition.name, "", "default", stored.start.input, definition.result)
        second.begin(bound, id_, stored.history(), stored.started_at)
        await second.outcome(id_)
        second.close()
        return second

    return run_virtual(main())


def test_parent_close() -> None:
    host = live(leaves_two.bind())
    expected = [Status.SUCCEEDED, Status.SUCCEEDED, Status.CANCELLED, Status.SUCCEEDED]
    assert list(statuses(host).values()) == expected
    assert undone == ["UNDO CLOSED"], "a cancelled child cleans up"


def test_parent_close_when_the_parent_fails() -> None:
    host = live(fails_and_leaves.bind())
    assert statuses(host) == {"w": Status.FAILED, "w/child-1": Status.CANCELLED}


def test_a_parent_that_is_cancelled_while_a_start_is_under_way_takes_the_child_with_it() -> None:
    async def main() -> dict[str, Status | None]:
        host = MemoryHost(app)
        late: list[Any] = []
        begin = host.start_child
        host.start_child = lambda run, start: late.append((run, start))  # type: ignore[method-assign]
        host.begin(fails_and_leaves.bind())
        await host.until(lambda: late)
        host.post(Message("w", CANCEL_TOPIC, "client", 1, b"null", 0))
        await asyncio.sleep(10)
        assert not host.stored["w"].entries, "it waits until there is a child to be told"
        begin(*late[0])
        await host.until(lambda: has_ended(host, all_of_them=True))
        host.close()
        return statuses(host)

    assert run_virtual(main()) == {"w": Status.CANCELLED, "w/child-1": Status.CANCELLED}


def test_a_cancellation_takes_inline_children_with_it_and_leaves_those_that_were_started() -> None:
    async def main() -> MemoryHost:
        host = MemoryHost(app)
        host.begin(awaits_both.bind())
        await asyncio.sleep(5)
        host.post(Message("w", CANCEL_TOPIC, "client", 1, b"null", 0))
        await host.until(lambda: has_ended(host, all_of_them=True))
        host.close()
        return host

    host = run_virtual(main())
    assert statuses(host) == {"w": Status.CANCELLED, "w/child-1": Status.SUCCEEDED, "w/child-2": Status.CANCELLED}
    kinds = [entry.kind for entry in host.stored["w"].entries]
    assert kinds == [EntryKind.START, EntryKind.CANCEL], "told with the request itself"


@pytest.mark.parametrize("crash_after", [None, 1, 2])
def test_continuing_as_new_is_not_the_end(crash_after: int | None) -> None:
    """What was given up is told with it; what is to close with the parent is closed when its last run ends."""
    undone.clear()
    host = live(goes_on_as_new.bind(1), crash_after=crash_after)
    assert statuses(host) == {"w": Status.SUCCEEDED, "w/child-1": Status.CANCELLED, "w/child-2": Status.CANCELLED}
    assert sorted(set(undone)) == ["UNDO CLOSED", "UNDO GIVEN UP"]
    if crash_after is None:
        assert undone == ["UNDO GIVEN UP", "UNDO CLOSED"]


@pytest.mark.parametrize("workflow", [first_wins, group_fails], ids=["wait", "group"])
def test_a_loser_that_is_a_child_is_cancelled(workflow: Any) -> None:
    host = live(workflow.bind())
    assert Status.CANCELLED in statuses(host).values()
    assert len(undone) == 1
    asked = [entry for entry in host.stored["w"].entries if entry.kind is EntryKind.SEND]
    # The group's was told with the parent's own outcome, which came first.
    assert [entry.name for entry in asked] == ([CANCEL_TOPIC] if workflow is first_wins else [])
    assert output(replay(host, "w"), workflow.bind()) == output(host, workflow.bind())


def test_a_parent_that_gives_up_a_child_and_ends_has_asked_once() -> None:
    """It tells the child twice, under two names, if it ends before it knows that the child was told; the second does
    not reach what the first has the child clean up."""

    async def main() -> MemoryHost:
        host = MemoryHost(app)
        host.begin(child.bind("a", 60))
        await asyncio.sleep(1)
        for sender in ("parent", closer_name("parent", 0)):
            host.post(Message("w", CANCEL_TOPIC, sender, 1, b"null", 0))
            await asyncio.sleep(0.1)
        await host.until(lambda: has_ended(host, all_of_them=True))
        host.close()
        return host

    undone.clear()
    host = run_virtual(main())
    assert undone == ["UNDO A"]
    assert [entry.kind for entry in host.stored["w"].entries] == [EntryKind.CANCEL, EntryKind.STEP]


@pytest.mark.parametrize(
    ("workflow", "expected"),
    [
        (awaits_later_blocking, ["w/child-1", "own-id", "BESIDE", "B", "A", "B"]),
        (times_out_blocking, ["late", "SLOW"]),
        (cancels_blocking, "cancelled"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("crash_after", [None, 1])
def test_def_workflows(workflow: Any, expected: Any, crash_after: int | None) -> None:
    host = live_in_real_time(workflow.bind(), crash_after)
    assert output(host, workflow.bind()) == expected


def live_in_real_time(bound: Bound[Any], crash_after: int | None) -> MemoryHost:
    async def one(dead: MemoryHost | None) -> MemoryHost:
        host = MemoryHost(app, crash_after=crash_after)
        try:
            if dead is None:
                host.begin(bound)
            else:
                host.inherit(dead)
            await host.until(lambda: host.dead() or has_ended(host, all_of_them=True))
        finally:
            host.close()
        return host

    host = asyncio.run(one(None))
    while not has_ended(host, all_of_them=True):
        host = asyncio.run(one(host))
    return host


def test_starting_children_belongs_into_workflows() -> None:
    with pytest.raises(OutsideWorkflow, match=r"client\.start"):
        _ = start_child(child.bind("x"))
    with pytest.raises(OutsideWorkflow, match="only in a def workflow"):
        child.start_blocking("x")
