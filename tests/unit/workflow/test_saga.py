"""``saga()``: what was done is undone in reverse, once, whatever crashes, fails or is cancelled in between."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sharded_wf import App, CompensationFailed, WorkflowTerminated, continue_as_new, current, saga
from sharded_wf.model.history import Cancellation, EntryKind
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, Message
from sharded_wf.serialization import decode_error
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("saga")


@app.step
async def do(what: str, seconds: float = 1.0) -> str:
    await asyncio.sleep(seconds)
    if what.startswith("bad"):
        raise KeyError(what)
    return what


@app.step
async def undo(what: str) -> None:
    await asyncio.sleep(0.5)
    if what.startswith("stubborn"):
        raise OSError(what)


@app.step
def do_in_thread(what: str) -> str:
    if what.startswith("bad"):
        raise KeyError(what)
    return what


@app.workflow
async def trip(steps: list[str]) -> str:
    async with saga() as s:
        for what in steps:
            await s.step(do(what), undo=undo)
    return "done"


@app.workflow
def trip_blocking(steps: list[str]) -> str:
    with saga.blocking() as s:
        for what in steps:
            s.step(lambda what=what: do.blocking(what, 0.02), undo=undo.blocking)  # type: ignore[misc]
            s.step(lambda what=what: do_in_thread(what + "'"), undo=undo.blocking)  # type: ignore[misc]
    return "done"


@app.workflow
async def beside() -> None:
    async with saga() as s:
        s.add_undo(lambda: undo("at all events"))
        await asyncio.gather(s.step(do("slow", 5), undo=undo), s.step(do("fast", 1), undo=undo), do("bad", 2))


@app.workflow
async def slow_trip() -> None:
    async with saga() as s:
        await s.step(do("first"), undo=undo)
        await s.step(do("second", 10), undo=undo)
        await s.step(do("never"), undo=undo)


@app.workflow
async def tidy_trip() -> None:
    """Something to clean up besides, after the saga."""
    try:
        async with saga() as s:
            await s.step(do("first"), undo=undo)
            await s.step(do("second", 10), undo=undo)
            await s.step(do("never"), undo=undo)
    finally:
        await do("tidied", 3)
        await do("too late", 300)


@app.workflow
async def undone_by_a_child() -> None:
    async with saga() as s:
        await s.step(do("first"), undo=undoing_child)
        await do("second", 10)


@app.workflow
async def undoing_child(what: str) -> None:
    await undo(what)


@app.workflow
async def thinks_better_of_it() -> str:
    async with saga() as s:
        await s.step(do("a"), undo=undo)
        await s.compensate()
        await s.step(do("b"), undo=undo)
    return "kept b"


@app.workflow
async def renewed() -> str:
    async with asyncio.TaskGroup(), saga() as s:
        await s.step(do(f"in run {current().run}"), undo=undo)
        if current().run == 1:
            continue_as_new(renewed.bind())
    return "done"


@app.workflow
def renewed_blocking() -> str:
    with saga.blocking() as s:
        s.step(lambda: do.blocking(f"in run {current().run}", 0.02), undo=undo.blocking)
        if current().run == 1:
            continue_as_new(renewed_blocking.bind())
    return "done"


@app.workflow
async def in_time() -> str:
    try:
        async with asyncio.timeout(3), saga() as s:
            await s.step(do("a", 2), undo=undo)
            await s.step(do("b", 2), undo=undo)
            await s.step(do("c", 2), undo=undo)
    except TimeoutError:
        return "late"
    return "in time"


def live(
    bound: Any, *, cancels_at: tuple[float, ...] = (), cleanup: float = 60, crash_after: int | None = None
) -> MemoryHost:
    """The whole life of a workflow, in as many hosts as it takes."""
    said = msgspec.json.encode(Cancellation(cleanup_seconds=cleanup))

    async def one(dead: MemoryHost | None) -> MemoryHost:
        host = MemoryHost(app, crash_after=crash_after)
        try:
            if dead is None:
                host.begin(bound)
            else:
                host.inherit(dead)
            if dead is None or all(entry.kind is not EntryKind.CANCEL for entry in host.stored["w"].entries):
                for number, at in enumerate(cancels_at):
                    message = Message("w", CANCEL_TOPIC, f"client {number}", 1, said, 0)
                    host.loop.call_later(at, host.post, message)
            await host.until(lambda: host.dead() or host.stored["w"].outcome is not None)
        finally:
            host.close()
        return host

    host = run_virtual(one(None))
    while host.stored["w"].outcome is None:
        host = run_virtual(one(host))
    return host


def told(host: MemoryHost) -> list[str]:
    """What was done and undone, in the order of the history."""
    names = []
    for entry in host.stored["w"].entries:
        if entry.kind is EntryKind.STEP:
            names.append(("failed " if entry.error else "") + entry.name)
        else:
            names.append(entry.kind.name.lower())
    return names


def status(host: MemoryHost) -> Status:
    outcome = host.stored["w"].outcome
    assert outcome is not None
    return outcome.status


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was undone, in the order of the calls; a call that is made again after a crash is there again."""
    lines: list[str] = []
    original = undo.function

    async def logged(what: str) -> None:
        lines.append(what)
        await original(what)

    monkeypatch.setattr(undo, "function", logged)
    return lines


def test_what_succeeds_is_kept(log: list[str]) -> None:
    assert status(live(trip.bind(["a", "b"]))) is Status.SUCCEEDED
    assert log == []


@pytest.mark.parametrize("workflow", [renewed, renewed_blocking], ids=["async", "def"])
def test_a_scope_that_is_left_to_continue_as_new_has_not_failed(workflow: Any, log: list[str]) -> None:
    async def one() -> str:
        host = MemoryHost(app)
        try:
            return await host.result(workflow.bind())
        finally:
            host.close()

    assert (run_virtual(one()) if workflow is renewed else asyncio.run(one())) == "done"
    assert log == []


@pytest.mark.parametrize("workflow", [trip, trip_blocking], ids=["async", "def"])
def test_what_was_done_is_undone_in_reverse(workflow: Any, log: list[str]) -> None:
    host = live(workflow.bind(["a", "b", "bad", "c"])) if workflow is trip else live_for_real(["a", "b", "bad"])
    assert status(host) is Status.FAILED
    assert log == (["b", "a"] if workflow is trip else ["b'", "b", "a'", "a"])


def live_for_real(steps: list[str], crash_after: int | None = None, cancel_in: str | None = None) -> MemoryHost:
    async def one(dead: MemoryHost | None) -> MemoryHost:
        host = MemoryHost(app, crash_after=crash_after)
        try:
            if dead is None:
                host.begin(trip_blocking.bind(steps))
            else:
                host.inherit(dead)
            if cancel_in is not None:
                await host.until(lambda: len(host.stored["w"].entries) >= 2)
                host.post(Message("w", CANCEL_TOPIC, "client", 1, b"null", 0))
            await host.until(lambda: host.dead() or host.stored["w"].outcome is not None)
        finally:
            host.close()
        return host

    host = asyncio.run(one(None))
    while host.stored["w"].outcome is None:
        host = asyncio.run(one(host))
    return host


@pytest.mark.parametrize("crash_after", [1, 2, 3, 4])
def test_a_crash_at_every_entry_loses_no_compensation(crash_after: int, log: list[str]) -> None:
    host = live(trip.bind(["a", "b", "bad"]), crash_after=crash_after)
    assert told(host) == ["do", "do", "failed do", "undo", "undo"]
    assert list(dict.fromkeys(log)) == ["b", "a"]
    assert told(live(beside.bind(), crash_after=crash_after)) == ["do", "failed do", "do", "undo", "undo", "undo"]


def test_a_crash_at_every_entry_of_a_def_workflow(log: list[str]) -> None:
    host = live_for_real(["a", "bad"], crash_after=1)
    assert told(host) == ["do", "do_in_thread", "failed do", "undo", "undo"]


def test_what_runs_beside_comes_to_its_end_first(log: list[str]) -> None:
    live(beside.bind())
    assert log == ["slow", "fast", "at all events"]


@pytest.mark.parametrize("crash_after", [None, 1, 2])
def test_a_cancelled_workflow_finishes_the_step_and_undoes_it(crash_after: int | None, log: list[str]) -> None:
    """Two requests, the second in the middle of a compensation, which it does not stop."""
    host = live(slow_trip.bind(), cancels_at=(3.0,) if crash_after else (3.0, 11.2), crash_after=crash_after)
    assert status(host) is Status.CANCELLED
    assert list(dict.fromkeys(log)) == ["second", "first"]
    assert [name for name in told(host) if name != "cancel"] == ["do", "do", "undo", "undo"]


def test_a_cancelled_def_workflow_finishes_the_step_and_undoes_it(log: list[str]) -> None:
    host = live_for_real([str(number) for number in range(40)], cancel_in="a step")
    assert status(host) is Status.CANCELLED
    done = told(host).count("do") + told(host).count("do_in_thread")
    assert done == len(log) == told(host).count("undo")
    assert log == sorted(log, key=lambda name: (int(name.rstrip("'")), name), reverse=True)


@pytest.mark.parametrize("crash_after", [None, 1, 2])
def test_the_time_to_clean_up_stands_still_while_a_saga_is_open(crash_after: int | None, log: list[str]) -> None:
    """Then the rest has all of it, however often its executor crashes; and not more."""
    host = live(tidy_trip.bind(), cancels_at=(3.0,), cleanup=5, crash_after=crash_after)
    assert list(dict.fromkeys(log)) == ["second", "first"]
    assert [name for name in told(host) if name != "cancel"] == ["do", "do", "undo", "undo", "do"]
    outcome = host.stored["w"].ended
    assert outcome.status is Status.CANCELLED
    assert isinstance(decode_error(outcome.error or b""), WorkflowTerminated)


def test_a_second_request_does_not_reach_children_that_undo(log: list[str]) -> None:
    host = live(undone_by_a_child.bind(), cancels_at=(3.0, 3.2, 3.4))
    assert status(host) is Status.CANCELLED
    assert host.stored["w/undoing_child-1"].ended.status is Status.SUCCEEDED
    assert log == ["first"]


def test_a_timeout_undoes_too(log: list[str]) -> None:
    host = live(in_time.bind())
    assert host.stored["w"].ended.output == b'"late"'
    assert log == ["b", "a"]


def test_a_compensation_that_fails_does_not_stop_the_others(log: list[str]) -> None:
    async def main() -> None:
        host = MemoryHost(app)
        with pytest.raises(CompensationFailed, match="1 of the compensations failed: OSError: stubborn"):
            await host.result(trip.bind(["a", "stubborn", "bad"]))
        host.close()

    run_virtual(main())
    assert log == ["stubborn", "a"]


def test_compensating_without_a_failure(log: list[str]) -> None:
    assert status(live(thinks_better_of_it.bind())) is Status.SUCCEEDED
    assert log == ["a"]


def test_a_dropped_run_undoes_nothing(log: list[str]) -> None:
    async def main() -> list[str]:
        host = MemoryHost(app)
        host.begin(slow_trip.bind())
        await host.until(lambda: host.stored["w"].entries)
        host.runs["w"].drop()
        await asyncio.sleep(100)
        host.close()
        return told(host)

    assert run_virtual(main()) == ["do"]
    assert log == []
