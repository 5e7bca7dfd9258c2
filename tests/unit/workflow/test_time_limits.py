"""Limits: of a step over all attempts, of its silence, of a whole workflow; killed in between."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import timedelta
from typing import Any

import pytest

from sharded_wf import (
    App,
    DefinitionError,
    LimitExceeded,
    OutsideWorkflow,
    Retry,
    WorkflowTimedOut,
    current,
    heartbeat,
    map_workflow,
    start_child,
    wait_until,
)
from sharded_wf.clock import UNIX_EPOCH
from tests.unit.workflow.lives import lives
from tests.unit.workflow.memory_host import START_US, MemoryHost, run_virtual, run_workflow

app = App("limits")
seen: list[Any] = []
START = UNIX_EPOCH + timedelta(microseconds=START_US)


@app.step
async def note(what: str) -> str:
    seen.append(what)
    return what


@app.step
async def never_there() -> bool:
    return False


@pytest.fixture(autouse=True)
def _empty() -> None:
    seen.clear()


# Total timeouts


@app.step(total_timeout=10, retry=Retry(attempts=None, first=3, factor=1, jitter=0))
async def never_works() -> None:
    seen.append(current().attempt)
    raise ValueError("again")


@app.step(total_timeout=10, retry=Retry(attempts=None, first=3, factor=1, jitter=0))
async def hangs() -> None:
    seen.append("begun")
    try:
        await asyncio.sleep(math.inf if len(seen) > 1 else 0)
        raise ValueError("the first")
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise


@app.workflow
async def tries(which: str) -> str:
    try:
        await (never_works() if which == "never" else hangs())
    except (TimeoutError, ValueError) as error:
        return f"{type(error).__name__} after {(current().now() - START).total_seconds():.0f}: {error}"
    return "done"


def test_no_attempt_is_made_for_which_there_is_no_time() -> None:
    assert run_workflow(app, tries.bind("never")) == "ValueError after 9: again"
    assert seen == [1, 2, 3, 4]


def test_a_total_timeout_ends_the_attempt_that_runs() -> None:
    text = run_workflow(app, tries.bind("hangs"))
    assert text == "TimeoutError after 10: step 'hangs' took longer than 10 s over all attempts"
    assert seen == ["begun", "begun", "cancelled"]


# Heartbeats


@app.step(heartbeat=5, retry=Retry(attempts=3, first=1, jitter=0))
async def copies(total: int, silent_at: int) -> list[int]:
    done = current().last_heartbeat or 0
    first = done
    while done < total:
        await asyncio.sleep(math.inf if done == silent_at and current().attempt == 1 else 2)
        done += 1
        heartbeat(done)
    return [first, done]


@app.workflow
async def copying(total: int, silent_at: int) -> list[int]:
    return await copies(total, silent_at)


def test_a_step_that_beats_may_take_long() -> None:
    assert run_workflow(app, copying.bind(20, -1)) == [0, 20]


def test_silence_fails_the_attempt_and_the_next_sees_the_last_details() -> None:
    assert run_workflow(app, copying.bind(9, 4)) == [4, 9]


def test_the_last_details_outlive_the_executor() -> None:
    result, count = lives(app, copying.bind(6, -1), after_beats=2)
    assert result[1] == 6
    assert result[0] >= 4
    assert count >= 3


@app.step(heartbeat=0.1, retry=Retry(attempts=2, first=0.01, jitter=0))
def blocks() -> str:
    if current().attempt == 2:
        return f"after {current().last_heartbeat}"
    heartbeat({"page": 7})
    time.sleep(0.3)
    try:
        heartbeat({"page": 8})
    except asyncio.CancelledError:
        seen.append("told")
        raise
    return "too late"


@app.workflow
async def blocking_async() -> str:
    return await blocks.in_thread()


@app.workflow
def blocking_sync() -> str:
    return blocks()


@pytest.mark.parametrize("workflow", [blocking_async, blocking_sync])
def test_a_silent_thread_is_left_behind_and_told_so(workflow: Any) -> None:
    async def main() -> str:
        host = MemoryHost(app)
        try:
            result: str = await host.result(workflow.bind())
            await host.until(lambda: seen)
            return result
        finally:
            host.close()

    assert asyncio.run(main()) == "after {'page': 7}"
    assert seen == ["told"]


@app.step
async def beats_undeclared() -> None:
    heartbeat(1)


@app.workflow
async def undeclared() -> None:
    await beats_undeclared()


def test_heartbeats_are_declared() -> None:
    with pytest.raises(DefinitionError, match=r"heartbeat=seconds"):
        run_workflow(app, undeclared.bind())
    with pytest.raises(OutsideWorkflow):
        heartbeat(1)
    asyncio.run(beats_undeclared())


def test_limits_that_make_no_sense() -> None:
    wrong = App("wrong")
    for decorate in (wrong.step(total_timeout=0), wrong.step(heartbeat=-1), wrong.step(total_timeout=math.nan)):
        with pytest.raises(DefinitionError):
            decorate(note.function)


# The time of a whole workflow


@app.workflow(run_timeout=10)
async def limited(pauses: list[float], child: bool) -> str:
    try:
        for pause in pauses:
            await note(str(pause))
            if child:
                await patient(pause)
            else:
                await asyncio.sleep(pause)
    finally:
        await note("cleaned up")
    return "in time"


@app.workflow
async def patient(pause: float) -> None:
    try:
        await asyncio.sleep(pause)
    except asyncio.CancelledError:
        seen.append("the child too")
        raise


@app.workflow(run_timeout=0.2)
def limited_sync() -> None:
    wait_until.blocking(never_there, every=0.02)


@pytest.mark.parametrize("after_entries", [None, 1, 2])
def test_a_workflow_has_its_time(after_entries: int | None) -> None:
    assert lives(app, limited.bind([4, 4], False), after_entries=after_entries)[0] == "in time"
    with pytest.raises(WorkflowTimedOut):
        lives(app, limited.bind([4, 4, 4], False), after_entries=after_entries)
    assert seen[-1] == "cleaned up"


def test_a_child_has_no_more_time_than_its_parent() -> None:
    with pytest.raises(WorkflowTimedOut):
        run_workflow(app, limited.bind([100], True))
    assert "the child too" in seen


def test_a_def_workflow_has_its_time() -> None:
    async def main() -> None:
        host = MemoryHost(app)
        try:
            await host.result(limited_sync.bind())
        finally:
            host.close()

    with pytest.raises(WorkflowTimedOut):
        asyncio.run(main())


@app.workflow(timeout=3600)
async def long_patient(pause: float) -> None:
    await asyncio.sleep(pause)


@app.workflow(run_timeout=10)
async def parent_of_many() -> None:
    await start_child(patient.bind(50), id="tied", parent_close="cancel")
    await start_child(long_patient.bind(50), id="tied-too", parent_close="cancel")
    await start_child(long_patient.bind(50), id="abandoned")
    await start_child(long_patient.bind(50), id="brief", timeout=timedelta(minutes=1))
    await start_child(patient.bind(50), id="brief-tied", timeout=4, parent_close="cancel")
    await start_child(patient.bind(50), id="long-tied", timeout=60, delay=1, parent_close="cancel")
    await start_child(patient.bind(50), id="detached", detached=True)
    await map_workflow(long_patient, [50.0])


def test_children_that_may_outlive_the_parent_have_their_own_time() -> None:
    async def main() -> dict[str, int | None]:
        host = MemoryHost(app)
        try:
            host.begin(parent_of_many.bind())
            await host.until(lambda: any("/item-" in id_ for id_ in host.stored))
            return {
                id_.rpartition("/")[2]: None if (at := stored.start.deadline) is None else (at - START_US) // 1_000_000
                for id_, stored in host.stored.items()
            }
        finally:
            host.close()

    own, inherited = 3600, 10
    found = run_virtual(main())
    assert {key: at for key, at in found.items() if not key.startswith(("w", "map", "page"))} == {
        "tied": inherited, "tied-too": inherited, "abandoned": own, "brief": 60, "brief-tied": 4,
        "long-tied": inherited, "detached": None, "item-0": inherited,
    }  # fmt: skip


@app.workflow
def hurries_children() -> None:
    start_child.blocking(patient.bind(50), id="brief", timeout=5)
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(LimitExceeded, match="more than 0 seconds"):
            start_child.blocking(patient.bind(50), timeout=wrong)


def test_a_def_workflow_limits_a_child() -> None:
    async def main() -> int | None:
        host = MemoryHost(app)
        try:
            await host.result(hurries_children.bind())
            return host.stored["brief"].start.deadline
        finally:
            host.close()

    assert asyncio.run(main()) is not None


@app.step
async def tidies() -> None:
    await asyncio.sleep(3)
    seen.append("tidied")


@app.workflow
async def tidy() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await tidies()


@app.workflow(timeout=10)
async def tidy_together() -> None:
    try:
        await tidy()
    finally:
        await tidies()


def test_a_child_whose_parent_s_time_is_over_too_cleans_up() -> None:
    """The parent gives it up at the same moment; that is no second request."""
    with pytest.raises(WorkflowTimedOut):
        run_workflow(app, tidy_together.bind())
    assert seen == ["tidied", "tidied"]
