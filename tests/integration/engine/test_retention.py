"""Retention: what is old goes with all that hangs on it, nothing else does, and its ID starts anew."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sharded_wf import IdConflict, Retention, WorkflowCancelled, connect_blocking
from sharded_wf.client import Client
from sharded_wf.limits import RETENTION_BATCH_MAX_ROWS
from sharded_wf.maintenance.export import Export
from sharded_wf.maintenance.sweep_once import Swept, sweep_once
from sharded_wf.model.workflow import Message
from sharded_wf.postgres.link import Link
from sharded_wf.store import retention as rows
from tests.support.aging import age, slots_of
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, echo, flaky_chain, inbox, killer, loud, parent, sleeper
from tests.support.processes import WorkerProcess, wait_until

HOUR = Retention(3600)
TABLES = ("workflow", "input", "step", "attempt", "failed", "attribute", "message", "wake")


def count(cluster: TestCluster, table: str) -> int:
    total = 0
    for shard, dsn in enumerate(cluster.direct, 1):
        with psycopg.connect(dsn, autocommit=True) as conn:
            for slot in slots_of(cluster, shard):
                row = conn.execute(f"select count(*) from {slot}.{table}".encode()).fetchone()
                total += row[0] if row else 0
    return total


def waiting(cluster: TestCluster) -> bool:
    return bool(
        cluster.ask("select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")
    )


async def sweep(cluster: TestCluster, retention: Retention = HOUR, **options: Any) -> Swept:
    swept = await sweep_once(cluster.config, retention, dry_run=options.pop("dry_run", False), **options)
    assert not swept.failed
    return swept


async def finish(client: Client, *pairs: tuple[str, Any]) -> None:
    handles = await client.start_many(pairs)
    await asyncio.gather(*(handle.result(20) for handle in handles), return_exceptions=True)


def test_everything_of_an_old_workflow_goes_and_its_id_starts_anew(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config):
            await finish(
                client, ("a", chain.bind(3)), ("b", flaky_chain.bind(1)), ("c", echo.bind("x" * 2000)),
                ("d", parent.bind(3, 1)), ("e", inbox.bind(-1)),
            )  # fmt: skip
            bad = await client.start(loud.bind(), id="f", attributes={"customer": "c-42"})
            with pytest.raises(RuntimeError):
                await bad.result(20)
            await client.send("f", "mail", "kept, in case it is resumed")
            assert [count(two_shards, table) for table in ("failed", "message", "attribute")] == [1, 1, 1]
            # (What children sent is taken out of the outbox a little later, and keeps them until then.)
            await asyncio.to_thread(wait_until, lambda: count(two_shards, "outbox") == 0, "an empty outbox")
            assert (await sweep(two_shards)).old == 0
            assert count(two_shards, "workflow") == 9
            age(two_shards)
            dry = await sweep(two_shards, dry_run=True)
            assert (dry.old, dry.deleted) == (9, 0)
            assert (await sweep(two_shards)).deleted == 9
            assert {table: count(two_shards, table) for table in TABLES} == dict.fromkeys(TABLES, 0)
            again = await client.start(echo.bind("new"), id="a")
            assert again.created
            assert await again.result(20) == "new"
            large = await client.start(echo.bind("y" * 3000), id="c")
            assert await large.result(20) == "y" * 3000

    asyncio.run(go())


def test_unfinished_workflows_stay_and_so_do_the_children_of_unfinished_parents(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.1):
            await client.start(sleeper.bind(600), id="parked")
            await client.start(inbox.bind(1), id="mother")
            await asyncio.to_thread(
                wait_until,
                lambda: (
                    {i: s for i, s in two_shards.statuses().items() if i in ("parked", "mother")}
                    == {"parked": 2, "mother": 2}
                ),
                "parked workflows",
            )
            children = [two_shards.ids_on(shard, 1, f"child{shard}")[0] for shard in (1, 2)]
            await finish(client, *((id_, echo.bind("x")) for id_ in children))
            for shard, id_ in enumerate(children, 1):
                with psycopg.connect(two_shards.direct[shard - 1], autocommit=True) as conn:
                    for slot in slots_of(two_shards, shard):
                        conn.execute(f"update {slot}.workflow set parent_id = 'mother' where id = %s".encode(), [id_])
            age(two_shards)
            assert (await sweep(two_shards)).deleted == 0
            await client.cancel("mother")
            with pytest.raises(WorkflowCancelled):
                await client.get_handle("mother").result(20)
            assert (await sweep(two_shards)).deleted == 0
            assert await client.resume("mother")
            await client.send("mother", "mail", "go")
            await client.get_handle("mother", list[str]).result(20)
            assert (await sweep(two_shards)).deleted == 2
            assert set(two_shards.statuses()) == {"parked", "mother"}

    asyncio.run(go())


def test_ages_by_name_and_queue_and_messages_on_their_way(cluster: TestCluster) -> None:
    policy = Retention("forever", {"brief": "1 h"}, {"engine/chain": "5 hours", "engine/inbox": None})

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            for queue in ("brief", "long"):
                for name, bound in (("echo", echo.bind("x")), ("chain", chain.bind(1))):
                    await (await client.start(bound, id=f"{queue}-{name}", queue=queue)).result(20)
        age(cluster, 2)
        with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
            for slot in slots_of(cluster):
                conn.execute(
                    f"insert into {slot}.outbox values ('x', '$outcome', 'brief-echo', 1, now(), '1')".encode()
                )
            assert (await sweep(cluster, policy)).deleted == 0
            for slot in slots_of(cluster):
                conn.execute(f"delete from {slot}.outbox".encode())
        assert (await sweep(cluster, policy)).deleted == 1
        age(cluster, 10)
        assert (await sweep(cluster, policy)).deleted == 2
        assert set(cluster.statuses()) == {"long-echo"}

    asyncio.run(go())


def test_a_late_message_never_reaches_whoever_has_the_id_next(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            await client.start(inbox.bind(1), id="r")
            shards = client._shards
            stale = shards.clock.now_us() - 3_600_000_000
            await shards.deliver([Message("r", "mail", "s", 1, b'"stale"', stale)])
            await client.send("r", "mail", "fresh")
            assert await client.get_handle("r", list[str]).result(20) == ["fresh"]

    asyncio.run(go())


def test_a_child_left_of_an_earlier_life_is_no_result(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            assert await (await client.start(parent.bind(1, 1), id="p")).result(20) == 1
            age(cluster, 2)
            with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
                for slot in slots_of(cluster):
                    for table, key in (("workflow", "id"), ("step", "workflow_id")):
                        conn.execute(f"delete from {slot}.{table} where {key} = 'p'".encode())
            with pytest.raises(IdConflict, match="earlier workflow"):
                await (await client.start(parent.bind(1, 1), id="p")).result(20)

    asyncio.run(go())


def test_starts_race_with_deletions(cluster: TestCluster) -> None:
    """An acknowledged start is there (I1), with its own input, whatever was deleted under it meanwhile."""
    texts = ["small", "L" * 2000]
    ids = [f"w-{number}" for number in range(40)]

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            for life in range(4):
                value = f"{life}-{texts[life % 2]}"
                await finish(client, *((id_, echo.bind(value)) for id_ in ids))
                await asyncio.to_thread(age, cluster)
                fresh = f"{life}-next-{texts[(life + 1) % 2]}"
                started = [client.start(echo.bind(fresh), id=id_, on_conflict="existing") for id_ in ids]
                handles, _, _ = await asyncio.gather(asyncio.gather(*started), sweep(cluster), sweep(cluster))
                for handle in handles:
                    if handle.created:
                        assert await handle.result(20) == fresh
                for id_, handle in zip(ids, handles, strict=True):
                    present = await client.describe(id_) is not None
                    assert present or not handle.created
                await asyncio.to_thread(age, cluster)
                await sweep(cluster)
                assert count(cluster, "input") == count(cluster, "workflow") == 0

    asyncio.run(go())


def test_a_start_that_comes_to_nothing_leaves_no_input_behind(cluster: TestCluster) -> None:
    """Its input is invisible to the deletion of the workflow that has the ID, until both are over."""

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            await finish(client, ("a", echo.bind("small")), ("b", echo.bind("L" * 2000)))
            age(cluster)
            async with await psycopg.AsyncConnection.connect(cluster.direct[0]) as conn:
                for id_ in ("a", "b"):
                    await client.start_in(conn, echo.bind("N" * 2000), id=id_, on_conflict="existing")
                sweeping = asyncio.ensure_future(sweep(cluster))  # waits for the lock of b's input
                await asyncio.to_thread(wait_until, lambda: waiting(cluster), "a sweep that waits")
            await sweeping
            assert count(cluster, "workflow") == count(cluster, "input") == 0

    asyncio.run(go())


def test_what_is_deleted_is_in_the_export(cluster: TestCluster, tmp_path: Path) -> None:
    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            await finish(client, ("a", chain.bind(2)), ("b", echo.bind("line\nbreak " + "x" * 1000)))
            for slot in slots_of(cluster):  # as if a step of it had reported
                beat = "select id, 0, 2, now(), null::timestamptz, '[7]'::json from a"
                one = f"with a as materialized (select id from {slot}.workflow where id = 'a')"
                with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
                    conn.execute(f"{one} insert into {slot}.heartbeat {beat}".encode())
            age(cluster)
            (tmp_path / "file").write_text("")
            with pytest.raises(AssertionError):
                await sweep(cluster, Retention(3600, export=tmp_path / "file"))  # can't be written: nothing goes
            assert count(cluster, "workflow") == 2
            assert (await sweep(cluster, Retention(3600, export=tmp_path / "out"))).deleted == 2

    asyncio.run(go())
    lines = [json.loads(line) for path in (tmp_path / "out").iterdir() for line in path.read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    assert set(by_id) == {"a", "b"}
    assert by_id["a"]["output"] == 2
    assert [step["ordinal"] for step in by_id["a"]["steps"]] == [1, 2]
    assert [(one["place"], one["attempt"], one["details"]) for one in by_id["a"]["heartbeats"]] == [(0, 2, [7])]
    assert by_id["b"]["output"].startswith("line\nbreak")


def test_executors_remove_what_is_old_one_of_them_at_a_time(cluster: TestCluster) -> None:
    async def go() -> None:
        link, other = Link(cluster.direct[0], "one"), Link(cluster.direct[0], "other")
        try:
            assert (await link.fetch(rows.hold(b"1" * 16, 30))).count == 1
            assert (await link.fetch(rows.hold(b"1" * 16, 30))).count == 1
            assert (await other.fetch(rows.hold(b"2" * 16, 30))).count == 0
            await link.fetch(rows.release(b"1" * 16))
        finally:
            link.close()
            other.close()
        async with app.connect(cluster.config) as client:
            async with app.executor(cluster.config):
                await finish(client, *((f"w-{number}", chain.bind(1)) for number in range(30)))
            age(cluster)
            async with app.executor(cluster.config, retention=HOUR), app.executor(cluster.config, retention=HOUR):
                await asyncio.to_thread(wait_until, lambda: count(cluster, "workflow") == 0, "an empty history")
        assert len(cluster.ask("select from wf_control.retention where holder is not null")) == 1

    asyncio.run(go())


KILLED = """
import asyncio, sys, time
from sharded_wf.config import find_config
from sharded_wf.maintenance.sweep_once import sweep_once
from sharded_wf import Retention
reports = 0
def report(swept):
    global reports
    reports += 1
    print("removed", swept.deleted)
    if reports == 4:
        time.sleep(600)  # who kills it may come late, and is to find it in the middle
asyncio.run(sweep_once(find_config(sys.argv[1]), Retention(3600, export=sys.argv[2]), dry_run=False, report=report))
"""


def test_killed_in_the_middle_it_leaves_no_halves(cluster: TestCluster, tmp_path: Path) -> None:
    total = 8 * RETENTION_BATCH_MAX_ROWS
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        for slot in slots_of(cluster)[:2]:
            made = f"generate_series(1, {total // 2}) n"
            conn.execute(
                f"insert into {slot}.workflow (created_at, completed_at, status, priority, id, name, capability, queue,"
                f" claims, input) select now() - interval '3 h', now() - interval '2 h', 3, 0, '{slot}-' || n,"
                f" 'engine/echo', 'engine', 'default', 1, '[]' from {made}".encode()
            )
            conn.execute(
                f"insert into {slot}.step select 0, now(), now(), 1, 1, 0, '{slot}-' || n, 'note', '1', null"
                f" from {made}".encode()
            )
    with WorkerProcess(KILLED, str(cluster.config_file()), str(tmp_path / "out")) as victim:
        victim.wait_line("removed")
        victim.signal(signal.SIGKILL)
        victim.wait()
    left = count(cluster, "workflow")
    assert 0 < left < total
    assert count(cluster, "step") == left
    assert asyncio.run(sweep(cluster, Retention(3600, export=tmp_path / "out"))).deleted == left
    exported: set[str] = set()
    for path in (tmp_path / "out").iterdir():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                exported.add(json.loads(line)["id"])
    assert len(exported) == total


def test_no_workflow_of_these_kills(cluster: TestCluster) -> None:
    """Quarantined and cancelled ones go as well, with their rows in ``failed``."""

    async def go() -> None:
        async with app.connect(cluster.config) as client:
            await client.start(killer.bind(), id="k")
            await client.cancel("k")
            assert count(cluster, "failed") == 1
            age(cluster)
            assert (await sweep(cluster)).deleted == 1
            assert count(cluster, "failed") == 0

    asyncio.run(go())


def test_a_start_whose_obstacle_is_removed_is_made_again(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """I1: the row that stood in the way goes between the start's transaction and the look at that row."""

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            await finish(client, ("w", echo.bind("old")))
            age(cluster)
            link = client._shards.shards[cluster.name(1)].writer.link
            transact, calls = link.transact, 0

            async def then_sweep(*given: Any, **options: Any) -> Any:
                nonlocal calls
                answers = await transact(*given, **options)
                calls += 1
                if calls == 1:
                    assert (await sweep(cluster)).deleted == 1
                return answers

            monkeypatch.setattr(link, "transact", then_sweep)
            handle = await client.start(echo.bind("new"), id="w")
            assert handle.created
            assert await handle.result(20) == "new"

    asyncio.run(go())


def test_what_was_resumed_meanwhile_stays(
    cluster: TestCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the removal one is resumed and goes on; another fails once more."""
    goes_on, fails_again = "{one slot}/goes-on", "{one slot}/fails-again"
    write = Export.write

    def resume_then_write(self: Export, lines: Sequence[bytes]) -> None:
        with connect_blocking(cluster.config) as client:
            for id_ in (goes_on, fails_again):
                assert client.resume(id_)
            wait_until(lambda: set(cluster.statuses().values()) == {2, 4}, "both resumed lives")
        write(self, lines)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=0.05):
            for id_, bound in ((goes_on, inbox.bind(1)), (fails_again, loud.bind("x" * 2000))):
                handle = await client.start(bound, id=id_, attributes={"which": id_})
                if id_ == goes_on:
                    await client.cancel(id_)
                with pytest.raises((RuntimeError, WorkflowCancelled)):
                    await handle.result(20)
            await asyncio.to_thread(age, cluster)
            monkeypatch.setattr(Export, "write", resume_then_write)
            assert (await sweep(cluster, Retention(3600, export=tmp_path / "out"))).deleted == 0
            await client.send(goes_on, "mail", "x")
            assert await client.get_handle(goes_on, list[str]).result(20) == ["x"]
            assert [count(cluster, table) for table in ("workflow", "input", "failed", "attribute")] == [2, 1, 1, 2]
        exported = [
            json.loads(line) for path in (tmp_path / "out").iterdir() for line in path.read_bytes().splitlines()
        ]
        assert sorted(one["attributes"]["which"] for one in exported) == [fails_again, goes_on]

    asyncio.run(go())
