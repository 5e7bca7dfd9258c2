"""Waiting where it meets repair, pause, continue_as_new, users' transactions and moves; and killed at every flush."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from sharded_wf import ResultTimeout, Status, WorkflowTimedOut
from sharded_wf.model.history import Cancellation, EntryKind
from sharded_wf.workflow import requests
from tests.integration.reshard.test_moves import move
from tests.support.cluster import TestCluster
from tests.support.processes import until
from tests.support.waiting_flows import (
    DIRECTORY,
    app,
    impatient,
    place,
    renewed,
    setter,
    sleeper,
    sync_sensor,
    unlimited,
    untidy,
    watcher,
)

APP = "tests.support.waiting_flows:app"
STEP, TIMER, MESSAGE = EntryKind.STEP, EntryKind.TIMER, EntryKind.MESSAGE


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))


def test_what_is_resumed_or_forked_has_its_whole_time_again(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            handle = await client.start(impatient.bind("file"), id="w")
            for life in range(2):
                with pytest.raises(WorkflowTimedOut):
                    await handle.result(20)
                if life:
                    place("file").write_text("found")
                assert await client.resume("w")
            assert len(place("looks").read_text()) > 0
            drawn = await handle.result(20)
            kinds = [entry.kind for entry in (await client.history("w")).entries]
            assert kinds.count(EntryKind.TIMEOUT) == 2
            # A fork draws what its origin drew, so that the results of that are its own; and so does a fork of it.
            await asyncio.sleep(2)  # longer than it may take
            fork = await client.fork("w", from_step="file_is_there", new_id="f")
            assert await fork.result(20) == drawn
            late = await client.fork("f", from_step=len((await client.history("f")).entries) + 1, new_id="g")
            assert await late.result(20) == drawn

    asyncio.run(go())


def test_a_clean_up_at_the_end_of_the_time_is_not_for_ever(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "read_cancellation", lambda _: Cancellation(cleanup_seconds=0.5))

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            handle = await client.start(untidy.bind(), id="w")
            with pytest.raises(WorkflowTimedOut):
                await handle.result(20)
            assert (await handle.describe()).status is Status.FAILED

    asyncio.run(go())


@pytest.mark.parametrize("park_after", [0.1, 60.0], ids=["parked", "in-memory"])
def test_a_pause_does_not_stop_the_time(cluster: TestCluster, park_after: float) -> None:
    status = Status.PARKED if park_after < 1 else Status.RUNNING

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=park_after):
            handle = await client.start(unlimited.bind(), id="w", timeout=6)
            await until(lambda: cluster.statuses() == {"w": int(status)}, "it waits")
            await client.pause("w")
            with pytest.raises(WorkflowTimedOut):
                await handle.result(20)

    asyncio.run(go())


def test_a_new_run_sets_events_anew_and_knows_no_old_heartbeat(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            handle = await client.start(renewed.bind(3), id="w")
            assert await handle.result(20) == [3, None]
            assert await handle.event("run", int) == 3
            await asyncio.to_thread(cluster.certify, ["w"])

    asyncio.run(go())


def test_a_start_in_the_user_s_transaction_has_its_time(two_shards: TestCluster) -> None:
    """On the shard that the connection leads to, and by its outbox on another."""

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            ids = two_shards.ids_on(1, 1, "a") + two_shards.ids_on(2, 1, "b")
            async with await psycopg.AsyncConnection.connect(two_shards.direct[0]) as conn:
                for id_ in ids:
                    await client.start_in(conn, unlimited.bind(), id=id_, timeout=1.0)
            for id_ in ids:
                with pytest.raises(WorkflowTimedOut):
                    await client.get_handle(id_).result(20)

    asyncio.run(go())


def test_a_sensor_of_a_def_workflow_is_parked_between_its_looks(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            handle = await client.start(sync_sensor.bind("file", 1.5), id="w")
            await until(lambda: bool(cluster.ask_all("heartbeat", "next_at is not null")), "a look")
            await until(lambda: cluster.statuses() == {"w": int(Status.PARKED)}, "parked")
            place("file").write_text("found")
            assert await handle.result(20) == "found"

    asyncio.run(go())


def test_i7_events_are_waited_for_across_moves(two_shards: TestCluster) -> None:
    """Waiter and setter move, both while the one is parked and waits; so does a client's question."""

    async def go() -> None:
        (here,), (there,) = two_shards.ids_on(1, 1, "a"), two_shards.ids_on(2, 1, "b")
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            setting = await client.start(setter.bind([7], True), id=here)
            watching = await client.start(watcher.bind(here), id=there)
            await until(lambda: set(two_shards.statuses().values()) == {int(Status.PARKED)}, "both parked")
            outside = asyncio.create_task(setting.event("progress", dict[str, int], timeout=30))
            with pytest.raises(ResultTimeout):
                await setting.event("progress", timeout=0.2)
            await asyncio.to_thread(
                move,
                two_shards,
                (client.locate(here)[0], two_shards.name(2)),
                (client.locate(there)[0], two_shards.name(1)),
            )
            late = await client.start(watcher.bind(here), id=two_shards.ids_on(1, 1, "late")[0])
            await client.send(here, "go", 1)
            assert list(await asyncio.gather(watching.result(20), late.result(20))) == [7, 7]
            assert await outside == {"value": 7}
            await until(lambda: two_shards.ask_all("event_waiter", "true") == [], "nobody waits")

    asyncio.run(go())


def due(cluster: TestCluster) -> datetime:
    """When the last of the timers is due."""
    moments: list[datetime] = [row[0] for row in cluster.ask_all("timer", "true")]
    return max(moments)


def test_a_moment_of_the_calendar_stays_where_it_is(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.1):
            handle = await client.start(sleeper.bind(3600.0), id="w")
            parked = {"w": int(Status.PARKED)}
            await until(lambda: cluster.statuses() == parked, "parked")
            first = due(cluster)
            await client.cancel("w")
            with pytest.raises(Exception, match="cancelled"):
                await handle.result(20)
            await asyncio.sleep(1.0)
            assert await client.resume("w")
            await until(lambda: cluster.statuses() == parked, "parked again")
            assert abs((due(cluster) - first).total_seconds()) < 0.5, "it did not begin anew"
            await client.terminate("w")

    asyncio.run(go())
