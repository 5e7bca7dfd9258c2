"""Waiting: until a moment, until a condition, with heartbeats and total timeouts; killed at every flush in between."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from sharded_wf import (
    App,
    NaiveMoment,
    OutsideWorkflow,
    Retry,
    current,
    sleep_until,
    wait_until,
)
from sharded_wf.clock import UNIX_EPOCH
from sharded_wf.model.history import History
from tests.unit.workflow.lives import lives
from tests.unit.workflow.memory_host import START_US, MemoryHost, run_virtual, run_workflow

app = App("waiting")
seen: list[Any] = []
START = UNIX_EPOCH + timedelta(microseconds=START_US)


@app.step
async def note(what: str) -> str:
    seen.append(what)
    return what


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
    assert lives(app, appointment.bind(2, 0), after_entries=1) == (pytest.approx(7200, abs=1), 3)
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
    whole, _ = lives(app, draws.bind())
    assert lives(app, draws.bind(), after_entries=1)[0] == [*whole[:3], "True", *whole[4:]]
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
    assert lives(app, watches.bind(5, [], None)) == ("there", 1)
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
    assert lives(app, watches.bind(5, [], None), after_beats=1) == ("there", 5)
    assert seen == [1, 2, 3, 4, 5], "no look is made twice, and none before its time"


def test_a_look_that_fails_is_tried_again_and_forgotten_with_the_next_look() -> None:
    assert lives(app, watches.bind(8, [2, 4, 6], None)) == ("there", 1)
    seen.clear()
    assert lives(app, watches.bind(8, [2, 4, 6], None), after_beats=1)[0] == "there"
    seen.clear()
    with pytest.raises(ValueError, match="not now"):
        lives(app, watches.bind(8, [2, 3], None))


@pytest.mark.parametrize("after_beats", [None, 1])
def test_a_sensor_s_timeout_is_for_all_of_it(after_beats: int | None) -> None:
    result, _ = lives(app, watches.bind(99, [], 150), after_beats=after_beats)
    assert "found nothing true within 150 s" in result
    assert 3 <= len(seen) <= 4


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
