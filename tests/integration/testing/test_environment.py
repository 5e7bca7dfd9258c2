"""The testing kit as its users have it: time is skipped, steps are mocked, executors crash; on real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any

import pytest

from sharded_wf import ClusterConfig, WorkflowStuck, receive
from sharded_wf.testing import WorkflowEnvironment, mock_step, replay, write_histories
from sharded_wf.testing.environment import CrashMoment
from tests.support import kit_flows as flows
from tests.support.cluster import TestCluster

Work = Callable[[WorkflowEnvironment], Coroutine[Any, Any, None]]


@pytest.fixture
def in_environment(make_cluster: Callable[..., TestCluster]) -> Callable[..., None]:
    """``in_environment(work, **options)`` runs a test's coroutine in an environment of its own."""
    config: ClusterConfig = make_cluster(2, slots=2).config

    def run(work: Work, **options: Any) -> None:
        async def go() -> None:
            async with WorkflowEnvironment(flows.app, config, start=flows.START, **options) as env, asyncio.timeout(60):
                await work(env)

        flows.ran.clear()
        asyncio.run(go())

    return run


@pytest.mark.parametrize("park_after", [2.0, 0.0], ids=["in memory", "parked"])
@pytest.mark.parametrize("flow", [flows.monthly, flows.monthly_blocking], ids=["async", "def"])
def test_a_month_passes_in_no_time(in_environment: Callable[..., None], flow: Any, park_after: float) -> None:
    async def work(env: WorkflowEnvironment) -> None:
        begun = time.monotonic()
        days = 30 if park_after else 3
        assert await env.run(flow.bind(days)) == [f"day {day}" for day in range(days)]
        assert timedelta(days=days) <= env.now - flows.START < timedelta(days=days, minutes=1)
        assert time.monotonic() - begun < 20

    in_environment(work, park_after=park_after)


def test_things_happen_in_their_order_while_time_is_skipped(in_environment: Callable[..., None]) -> None:
    async def work(env: WorkflowEnvironment) -> None:
        handle = await env.start(flows.monthly.bind(5), id="m")
        late = await env.start(flows.approval.bind(), id="a")
        await env.skip(timedelta(days=2, hours=1))
        assert flows.ran == ["day 0", "day 1"]
        await env.client.send("a", "answer", "yes")
        assert await env.result(late) == "yes"
        assert flows.ran == ["day 0", "day 1"]
        assert await env.run(flows.approval.bind(), id="b") == "nobody answered"
        assert await env.result(handle) == [f"day {day}" for day in range(5)]

    in_environment(work)


def test_retries_and_mocks(in_environment: Callable[..., None]) -> None:
    async def work(env: WorkflowEnvironment) -> None:
        with pytest.raises(ConnectionError):
            await env.run(flows.download.bind("a"))
        assert flows.ran == ["fetch a"] * 3
        assert env.now - flows.START >= timedelta(minutes=1)
        with mock_step(flows.fetch, returns="page") as mock:
            assert await env.run(flows.download.bind("b")) == "page"
        assert mock.calls == [(("b",), {})]
        answers: Iterator[str | Exception] = iter([ConnectionError("no"), "late page"])

        def does(_url: str) -> str:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        with mock_step(flows.fetch, does):
            assert await env.run(flows.download.bind("c")) == "late page"
        with mock_step(flows.note_in_thread, raises=ValueError("b")), pytest.raises(ValueError, match="b"):
            await env.run(flows.three.bind())
        assert flows.ran[3:] == ["a"]

    in_environment(work)


@pytest.mark.parametrize("when", ["before", "after", "recorded"])
@pytest.mark.parametrize("flow", [flows.three, flows.three_blocking], ids=["async", "def"])
def test_a_crash_at_a_chosen_step(in_environment: Callable[..., None], flow: Any, when: CrashMoment) -> None:
    async def work(env: WorkflowEnvironment) -> None:
        for step, name in ((flows.note, "a"), (flows.note_in_thread, "b")):
            flows.ran.clear()
            with env.crash_at(step, when) as crashed:
                assert await env.run(flow.bind()) == ["a", "b", "c"]
            assert crashed.is_set()
            twice = flows.ran.count(name) == 2
            assert twice == (when == "after"), flows.ran
            assert len(flows.ran) == 3 + twice

    in_environment(work)


def test_waiting_for_a_message_that_nobody_sends_is_said(in_environment: Callable[..., None]) -> None:
    @flows.app.workflow(name="forlorn")
    async def forlorn() -> None:
        await receive("never", int)

    async def work(env: WorkflowEnvironment) -> None:
        with pytest.raises(WorkflowStuck, match="send it what it waits for"):
            await env.run(forlorn.bind())

    try:
        in_environment(work)
    finally:
        flows.app._workflows.pop("kit/forlorn")


def test_histories_are_exported_and_replayed(in_environment: Callable[..., None], tmp_path: Any) -> None:
    async def work(env: WorkflowEnvironment) -> None:
        await env.run(flows.monthly.bind(3), id="m")
        await env.run(flows.three_blocking.bind(), id="t")
        await env.start(flows.approval.bind(), id="open")
        await env.settle()
        stored = [await env.client.export(id_) for id_ in ("m", "t", "open")]
        path = tmp_path / "histories.jsonl"
        assert write_histories(path, stored) == 3
        before = list(flows.ran)
        assert replay(flows.app, path) == replay(flows.app, stored) == 3
        assert flows.ran == before

    in_environment(work)
