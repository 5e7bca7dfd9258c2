"""Parking, waking, cancelling, delays, priorities, queues, work that nobody can run, and draining."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable

import pytest

from sharded_wf import App, Status, WorkflowCancelled, by_name, current, receive, sleep_blocking
from sharded_wf.client import Client
from sharded_wf.executor.runs import Runs
from sharded_wf.limits import DRAIN_DEADLINE_SECONDS, PARK_SWEEP_SECONDS
from sharded_wf.model.workflow import Message
from tests.support.cluster import TestCluster
from tests.support.flows import (
    app,
    chain,
    echo,
    gated_chain,
    inbox,
    patient_parent,
    sleeper,
    slow_chain,
    sync_sleeper,
)
from tests.support.processes import until, wait_until

SLEEP_SECONDS = 4.0
WAKE_MAX_SECONDS = 12.0
"""How late a timer may be on a busy machine; whoever goes only by what rescans find is later."""


async def until_status(client: Client, id_: str, status: Status, seconds: float = 40.0) -> None:
    async with asyncio.timeout(seconds):
        while await client.get_handle(id_).status() is not status:  # noqa: ASYNC110 - a row, not an event
            await asyncio.sleep(0.02)


def test_sleeps_park_and_timers_wake(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.2) as executor:
            ids = [f"w-{number}" for number in range(20)]
            begun = time.monotonic()
            handles = await client.start_many((id_, sleeper.bind(SLEEP_SECONDS)) for id_ in ids)
            plain = await client.start(sync_sleeper.bind(SLEEP_SECONDS), id="sync")
            parked = dict.fromkeys([*ids, "sync"], int(Status.PARKED))
            await asyncio.to_thread(wait_until, lambda: cluster.statuses() == parked, "all parked")
            await until(lambda: executor.statistics()["held"] == 0, "that none is held")
            async with asyncio.timeout(40):
                assert await asyncio.gather(*(handle.result() for handle in handles)) == [2] * 20
                assert await plain.result() == "after"
            assert SLEEP_SECONDS <= time.monotonic() - begun < SLEEP_SECONDS + WAKE_MAX_SECONDS
            await asyncio.to_thread(cluster.certify, [*ids, "sync"])

    asyncio.run(go())
    assert len(cluster.bodies()) == 40


def test_receives_park_and_messages_wake_at_once(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1) as executor:
            texts, took = ["one", "two", "three"], []
            await client.start(inbox.bind(len(texts)), id="w")
            for count, text in enumerate(texts, 1):
                await until(lambda: executor.statistics()["held"] == 0, "that it is not held")
                await until_status(client, "w", Status.PARKED)
                sent = time.monotonic()
                await client.send("w", "mail", text)
                async with asyncio.timeout(30):
                    while len((await client.history("w")).entries) < count:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                took.append(time.monotonic() - sent)
            assert statistics.median(took) < 1.0
            assert await client.get_handle("w", list[str]).result(20) == texts
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_i6_messages_sent_exactly_while_parking(cluster: TestCluster, full: bool) -> None:
    """Every workflow parks again after each message, while two executors compete, so that sends meet every moment of
    parking and waking; none may be lost, and nobody may sleep on beside his message."""
    workflows, messages = (200, 20) if full else (40, 8)
    ids = [f"w-{number}" for number in range(workflows)]

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start_many((id_, inbox.bind(messages)) for id_ in ids)

            async def feed(id_: str, pause: float) -> None:
                for number in range(messages):
                    await client.send(id_, "mail", str(number))
                    await asyncio.sleep(pause)

            first = app.executor(cluster.config, park_after=0.0, concurrency=50)
            second = app.executor(cluster.config, park_after=0.0, concurrency=50)
            async with first, second, asyncio.timeout(120):
                await asyncio.gather(*(feed(id_, 0.3 + 0.011 * at) for at, id_ in enumerate(ids)))
                results = await asyncio.gather(*(client.get_handle(id_, list[str]).result() for id_ in ids))
                assert results == [[str(number) for number in range(messages)]] * workflows
                await asyncio.to_thread(cluster.certify, ids)

    asyncio.run(go())


def test_parked_parents_of_children_on_other_shards(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            handle = await client.start(patient_parent.bind(8, 2.0), id="parent")
            await until_status(client, "parent", Status.PARKED)
            assert await handle.result(20) == 16
            rows = await asyncio.to_thread(two_shards.certify, ["parent"])
            assert len({row["slot"].split(" wf_")[0] for row in rows.workflow}) == 2

    asyncio.run(go())


def test_cancel_pending_parked_running_finished(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            pending = await client.start(echo.bind("x"), id="pending", queue="nobody")
            delayed = await client.start(echo.bind("x"), id="delayed", delay=3600)
            await pending.cancel()
            with pytest.raises(WorkflowCancelled):
                await pending.result(20)
            async with app.executor(cluster.config, park_after=0.2):
                parked = await client.start(sleeper.bind(3600), id="parked")
                await until_status(client, "parked", Status.PARKED)
                running = await client.start(slow_chain.bind(1000, 0.1), id="running")
                await until_status(client, "running", Status.RUNNING)
                finished = await client.start(echo.bind("x"), id="finished")
                assert await finished.result(20) == "x"
                for handle in (parked, running, finished, delayed, pending):
                    await handle.cancel()
                for other in (parked, running, delayed):
                    with pytest.raises(WorkflowCancelled):
                        await other.result(20)
                assert await finished.result(20) == "x"
                assert {one.id for one in await client.list(status=Status.CANCELLED)} == {
                    "pending", "parked", "running", "delayed",
                }  # fmt: skip
                ids = ["pending", "parked", "running", "delayed", "finished"]
                await asyncio.to_thread(cluster.certify, ids)

    asyncio.run(go())


def test_delayed_starts(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            begun = time.monotonic()
            late = await client.start(echo.bind("late"), delay=1.5)
            much_later = await client.start(echo.bind("much later"), delay=3600)
            assert await (await client.start(echo.bind("now"))).result(20) == "now"
            assert await much_later.status() is Status.PARKED
            assert await late.result(20) == "late"
            assert 1.4 <= time.monotonic() - begun < 1.5 + WAKE_MAX_SECONDS
            assert await much_later.status() is Status.PARKED

    asyncio.run(go())


def test_priorities_and_order_within_a_queue(make_cluster: Callable[..., TestCluster]) -> None:
    cluster = make_cluster(1, slots=1)

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            for at, priority in enumerate((5, 0, 5, -3, 0, 5, -3)):
                await client.start(chain.bind(1), id=f"w{at}", priority=priority)
            async with app.executor(cluster.config, concurrency=1):
                async with asyncio.timeout(20):
                    for at in range(7):
                        await client.get_handle(f"w{at}").result()

    asyncio.run(go())
    assert [body[0] for body in cluster.bodies()] == ["w3", "w6", "w1", "w4", "w0", "w2", "w5"]


def test_an_executor_serves_its_queues_only(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client:
            mine = await client.start(echo.bind("mine"), queue="mine")
            other = await client.start(echo.bind("other"), queue="other")
            async with app.executor(cluster.config, queues=["mine"]):
                assert await mine.result(20) == "mine"
                assert await (await client.start(echo.bind("later"), queue="mine")).result(20) == "later"
                assert await other.status() is Status.PENDING
            async with app.executor(cluster.config):
                assert await other.result(20) == "other"

    asyncio.run(go())


def test_what_nobody_can_run_stays_visible_until_somebody_can(
    cluster: TestCluster, caplog: pytest.LogCaptureFixture
) -> None:
    other = App("engine")

    @other.workflow(name="newcomer")
    async def newcomer() -> str:
        return "ran"

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            async with app.executor(cluster.config):
                handle = await client.start(by_name("engine/newcomer").bind())
                stuck = await client.start(by_name("engine/newcomer").bind(), id="cancelled")
                async with asyncio.timeout(30):
                    while True:
                        rows = cluster.rows().ready
                        if sorted(row["capability"] for row in rows) == ["~engine/newcomer"] * 2:
                            break
                        await asyncio.sleep(0.05)
                assert await handle.status() is Status.PENDING
                await stuck.cancel()
                assert await stuck.status() is Status.CANCELLED
                async with other.executor(cluster.config):
                    assert await handle.result(20) == "ran"
            await asyncio.to_thread(cluster.certify, [handle.id, stuck.id])

    asyncio.run(go())
    said = [record.getMessage() for record in caplog.records if "engine/newcomer" in record.getMessage()]
    assert said == ["there is no workflow 'engine/newcomer' in this app: left to executors that have it"]


def test_drain_on_sigterm_gives_back_at_once(cluster: TestCluster) -> None:
    ids = [f"w-{number}" for number in range(20)]

    async def start() -> None:
        async with app.connect(cluster.config) as client:
            await client.start_many((id_, gated_chain.bind(1, 1)) for id_ in ids)

    with cluster.closed_gate() as gate, cluster.worker("--drain-seconds", "0.5") as leaving:
        asyncio.run(start())
        wait_until(lambda: len(cluster.bodies()) == 2 * len(ids), "all steps under way")
        with cluster.worker() as staying:
            wait_until(lambda: len(cluster.leases()) == 2, "two leases")
            leaving.terminate()
            begun = time.monotonic()
            assert leaving.wait() == 0
            assert time.monotonic() - begun < DRAIN_DEADLINE_SECONDS / 2
            assert len(cluster.leases()) == 1
            wait_until(
                lambda: sum(body[4] == staying.pid for body in cluster.bodies()) == len(ids), "the work, elsewhere"
            )
            gate.close()
            wait_until(lambda: set(cluster.statuses().values()) == {3}, "the end")
            rows = cluster.certify(ids)
    assert {row["deaths"] for row in rows.workflow} == {0}, "a drain was taken for a death"


@pytest.mark.sampled
def test_rolling_restarts_blame_nobody(cluster: TestCluster) -> None:
    """Executors that come and go under load: whatever they had not finished is given back, never taken for a crash."""
    ids = [f"w-{number}" for number in range(300)]

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start_many((id_, slow_chain.bind(3, 0.05)) for id_ in ids)
            async with asyncio.timeout(60):
                for _ in range(6):
                    async with app.executor(cluster.config, drain_seconds=0.05, concurrency=60):
                        await asyncio.sleep(0.3)
                async with app.executor(cluster.config):
                    await asyncio.gather(*(client.get_handle(id_).result() for id_ in ids))
                    rows = await asyncio.to_thread(cluster.certify, ids)
        assert {row["deaths"] for row in rows.workflow} == {0}

    asyncio.run(go())


def test_a_message_does_not_hasten_a_delayed_start(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            begun = time.monotonic()
            late = await client.start(inbox.bind(1), id="late", delay=2.0)
            await client.send("late", "mail", "early")
            assert await late.result(20) == ["early"]
            assert time.monotonic() - begun >= 1.9
            await asyncio.to_thread(cluster.certify, ["late"])

    asyncio.run(go())


def test_a_message_read_while_its_receiver_begins_to_park_is_not_lost(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the mail and handing it out the run is parked: its wake must still be there for the next look."""
    hand_out = Runs.offer
    raced = asyncio.Event()

    def park_first(self: Runs, mailboxes: dict[str, list[Message]]) -> set[str]:
        if not raced.is_set():
            raced.set()
            self.park_waiting(0.0)
        return hand_out(self, mailboxes)

    monkeypatch.setattr(Runs, "offer", park_first)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=60) as executor:
            handle = await client.start(inbox.bind(1), id="w")
            held = executor.parts[0].runs.held
            await until(lambda: any(hasattr(hold, "run") for hold in held.values()), "that it waits, its mail read")
            await client.send("w", "mail", "one")
            assert await handle.result(20) == ["one"]
            assert raced.is_set()
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


_logging = App("logging")


@_logging.workflow
async def says_what_it_waits_for(topics: list[str]) -> str:
    log = current().logger
    try:
        for topic in topics:
            log.info("waits for %s", topic)
            await receive(topic, str)
    finally:
        log.info("is through")
    return "done"


@_logging.workflow
def says_it_in_a_thread(seconds: float) -> str:
    current().logger.info("sleeps")
    sleep_blocking(seconds)
    current().logger.info("slept")
    return "done"


def test_of_those_that_wait_only_what_is_too_many_makes_room_the_longest_first(cluster: TestCluster) -> None:
    ids = [f"w-{number}" for number in range(4)]

    async def go() -> None:
        async with (
            app.connect(cluster.config) as client,
            app.executor(cluster.config, concurrency=4, park_after=60) as executor,
        ):
            for held, id_ in enumerate(ids, 1):
                await client.start(inbox.bind(1), id=id_)
                while executor.statistics()["held"] < min(held, 3):  # noqa: ASYNC110 - a count, not an event
                    await asyncio.sleep(0.01)
            half = dict(zip(ids, [Status.PARKED] * 2 + [Status.RUNNING] * 2, strict=True))
            await until(lambda: cluster.statuses() == half, "that half of them, the oldest, are parked")
            await asyncio.sleep(3 * PARK_SWEEP_SECONDS)
            assert cluster.statuses() == half
            for id_ in ids:
                await client.send(id_, "mail", id_)
            handles = [client.get_handle(id_, list[str]) for id_ in ids]
            assert await asyncio.gather(*(handle.result(20) for handle in handles)) == [[id_] for id_ in ids]
            await asyncio.to_thread(cluster.certify, ids)

    asyncio.run(go())


def test_what_a_parked_workflow_has_logged_is_not_logged_again(
    cluster: TestCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with (
            _logging.connect(cluster.config) as client,
            _logging.executor(cluster.config, park_after=0.1) as executor,
        ):
            handle = await client.start(says_what_it_waits_for.bind(["one", "two"]), id="w")
            threaded = await client.start(says_it_in_a_thread.bind(3.0), id="t")
            await until_status(client, "t", Status.PARKED)
            for topic in ("one", "two"):
                await until_status(client, "w", Status.PARKED)
                await client.send("w", topic, "x")
            assert (await handle.result(20), await threaded.result(20)) == ("done", "done")
            await until(lambda: executor.statistics()["held"] == 0, "that none is held")
            await asyncio.to_thread(cluster.certify, ["w", "t"])

    with caplog.at_level(logging.INFO, "sharded_wf.workflow"):
        asyncio.run(go())
    said = [record.getMessage() for record in caplog.records if record.name == "sharded_wf.workflow"]
    assert [text for text in said if "[w]" in text] == ["[w] waits for one", "[w] waits for two", "[w] is through"]
    assert [text for text in said if "[t]" in text] == ["[t] sleeps", "[t] slept"]
