"""Waiting: until a moment, until a condition, with heartbeats and total timeouts; killed at every flush in between."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from sharded_wf import (
    App,
    DefinitionError,
    NaiveMoment,
    OutsideWorkflow,
    Retry,
    current,
    heartbeat,
    sleep_until,
    wait_until,
)
from sharded_wf.clock import UNIX_EPOCH
from sharded_wf.model.history import EMPTY_HISTORY, History
from sharded_wf.workflow.definitions import Bound
from tests.unit.workflow.memory_host import START_US, MemoryHost, run_virtual, run_workflow

app = App("waiting")
seen: list[Any] = []
START = UNIX_EPOCH + timedelta(microseconds=START_US)


@app.step
async def note(what: str) -> str:
    seen.append(what)
    return what


def lives(bound: Bound[Any], *, after_entries: int | None = None, after_beats: int | None = None) -> tuple[Any, int]:
    """Run a workflow, its host killed after so many entries or heartbeats, again and again; its result and the number
    of lives."""
    history, now = EMPTY_HISTORY, 0.0
    for life in range(1, 200):

        async def main(history: History = history, skipped: float = now) -> tuple[Any, History, float]:
            host = MemoryHost(app, crash_after=after_entries)
            host.clock._first -= skipped  # time went on while nobody was there
            host.crash_after_beats = after_beats
            try:
                run = host.begin(bound, history=history, started_at=START_US)
                ended = asyncio.create_task(host.outcome(run.id))
                died = asyncio.create_task(host.crashed.wait())
                await asyncio.wait([ended, died], return_when=asyncio.FIRST_COMPLETED)
                died.cancel()
                later = (host.clock.now_us() - START_US) / 1e6
                if not ended.done():
                    ended.cancel()
                    return None, host.stored[run.id].history(), later
                return (await host.result(bound),), host.stored[run.id].history(), later
            finally:
                host.close()

        result, history, now = run_virtual(main())
        if result is not None:
            return result[0], life
    raise AssertionError("it never ended")


@pytest.fixture(autouse=True)
def _empty() -> None:
    seen.clear()


# A moment


@app.workflow
async def appointment(hours: float, zone: int) -> float:
    moment = START + timedelta(hours=hours)
    await sleep_until(moment.astimezone(timezone(timedelta(hours=zone))))
    await note("awake")
    return current().now().timestamp() - START.timestamp()


def test_sleep_until_a_moment_in_any_zone() -> None:
    assert run_workflow(app, appointment.bind(2, 0)) == pytest.approx(7200, abs=1)
    assert run_workflow(app, appointment.bind(2, 5)) == pytest.approx(7200, abs=1)
    assert run_workflow(app, appointment.bind(-1, 0)) == pytest.approx(0, abs=1)


def test_only_the_rest_of_the_sleep_remains_after_a_crash() -> None:
    assert lives(appointment.bind(2, 0), after_entries=1) == (pytest.approx(7200, abs=1), 3)
    assert seen == ["awake"]


@app.workflow
async def naive() -> None:
    await sleep_until(datetime(2030, 1, 1))  # noqa: DTZ001 - the mistake itself


def test_a_moment_without_a_zone_is_none() -> None:
    with pytest.raises(NaiveMoment):
        run_workflow(app, naive.bind())


# Side inputs


@app.workflow
async def draws() -> list[str]:
    context = current()
    first = [str(context.now()), str(context.random().random()), str(context.uuid4())]
    await note("between")
    assert context.now().tzinfo is UTC
    branches = await asyncio.gather(branch("a"), branch("b"))
    return [*first, str(context.now() > START), str(context.random().random()), str(context.uuid4()), *branches]


async def branch(name: str) -> str:
    await note(name)
    return str(current().uuid4(stream=name))


def test_side_inputs_are_the_same_on_every_replay() -> None:
    whole, _ = lives(draws.bind())
    assert lives(draws.bind(), after_entries=1)[0] == [*whole[:3], "True", *whole[4:]]
    assert len(set(whole)) == len(whole)
    assert UUID(whole[2]).version == 4


@app.step
async def asks_for_the_time() -> str:
    with pytest.raises(OutsideWorkflow, match="datetime"):
        current().now()
    return "refused"


@app.workflow
async def asks_in_a_step() -> str:
    return await asks_for_the_time()


def test_a_step_uses_the_real_clock() -> None:
    assert run_workflow(app, asks_in_a_step.bind()) == "refused"


# Sensors


@app.step(retry=Retry(attempts=2, first=1, jitter=0))
async def looks(at: int, fails: list[int]) -> str | None:
    count = sum(isinstance(one, int) for one in seen) + 1
    seen.append(count)
    if count in fails:
        raise ValueError("not now")
    return "there" if count >= at else None


@app.workflow
async def watches(at: int, fails: list[int], limit: float | None) -> str | None:
    try:
        return await wait_until(looks, at, fails, every=timedelta(minutes=1), timeout=limit)
    except TimeoutError as error:
        return str(error)


def test_a_sensor_looks_until_there_is_something() -> None:
    assert lives(watches.bind(5, [], None)) == ("there", 1)
    assert seen == [1, 2, 3, 4, 5]


def test_a_sensor_leaves_one_row_however_often_it_looks() -> None:
    async def main() -> History:
        host = MemoryHost(app)
        try:
            await host.result(watches.bind(500, [], None))
            return host.stored["w"].history()
        finally:
            host.close()

    history = run_virtual(main())
    assert (len(history.entries), len(history.attempts), len(history.heartbeats)) == (1, 0, 1)


def test_a_sensor_killed_after_every_look_goes_on_and_keeps_its_pace() -> None:
    assert lives(watches.bind(5, [], None), after_beats=1) == ("there", 5)
    assert seen == [1, 2, 3, 4, 5], "no look is made twice, and none before its time"


def test_a_look_that_fails_is_tried_again_and_forgotten_with_the_next_look() -> None:
    assert lives(watches.bind(8, [2, 4, 6], None)) == ("there", 1)
    seen.clear()
    assert lives(watches.bind(8, [2, 4, 6], None), after_beats=1)[0] == "there"
    seen.clear()
    with pytest.raises(ValueError, match="not now"):
        lives(watches.bind(8, [2, 3], None))


@pytest.mark.parametrize("after_beats", [None, 1])
def test_a_sensor_s_timeout_is_for_all_of_it(after_beats: int | None) -> None:
    result, _ = lives(watches.bind(99, [], 150), after_beats=after_beats)
    assert "found nothing true within 150 s" in result
    assert 3 <= len(seen) <= 4


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
    result, count = lives(copying.bind(6, -1), after_beats=2)
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


# The same in `def` workflows


@app.workflow
def sync_waits() -> list[str]:
    sleep_until.blocking(current().now() + timedelta(milliseconds=20))
    found = wait_until.blocking(looks, 3, [], every=0.01)
    return [str(found), str(current().uuid4()), str(current().random("x").random())]


def test_def_workflows_wait_too() -> None:
    async def main() -> list[str]:
        host = MemoryHost(app)
        try:
            first = await host.result(sync_waits.bind())
            history = host.stored["w"].history()
            looked = len(seen)
            again = MemoryHost(app)
            try:
                again.begin(sync_waits.bind(), history=history, started_at=host.stored["w"].started_at)
                assert await again.result(sync_waits.bind()) == first
            finally:
                again.close()
            assert len(seen) == looked
            return first
        finally:
            host.close()

    assert asyncio.run(main())[0] == "there"


def test_limits_that_make_no_sense() -> None:
    wrong = App("wrong")
    for decorate in (wrong.step(total_timeout=0), wrong.step(heartbeat=-1), wrong.step(total_timeout=math.nan)):
        with pytest.raises(DefinitionError):
            decorate(note.function)
