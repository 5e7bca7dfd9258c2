"""I7: a slot lives on one shard, and moving it under load loses and duplicates nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sharded_wf.client import Client, Handle
from sharded_wf.cluster.directory import NO_MEMBER, load_map
from sharded_wf.dev import EmbeddedServer
from sharded_wf.errors import ConfigError, EmbeddedPostgresMissing, MoveBlocked, MoveRefused
from sharded_wf.limits import MOVE_LOCK_PAUSE_SECONDS
from sharded_wf.reshard import copying, cutover
from sharded_wf.reshard import verify as verifying
from sharded_wf.reshard.coordinator import Moved, Progress
from sharded_wf.reshard.fleet import check_wishes, move_all, unfinished_moves
from sharded_wf.reshard.members import remove_shard
from sharded_wf.reshard.move import Mover
from tests.conftest import POSTGRES_VERSION
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain, noted_inbox, outbox, parent, sleeper
from tests.support.processes import until


def move(cluster: TestCluster, *wishes: tuple[int, str], **options: Any) -> list[Moved]:
    """Move slots; fails with the first failure."""
    done, failed = move_all(cluster.config, check_wishes(cluster.config, wishes), **options)
    for error in failed.values():
        raise error
    return done


def homes(cluster: TestCluster) -> dict[int, list[int]]:
    """Which shards hold each slot live, as the slots' own fences say."""
    found: dict[int, list[int]] = {}
    for number, dsn in enumerate(cluster.direct, 1):
        with psycopg.connect(dsn, autocommit=True) as conn:
            for (name,) in conn.execute("select nspname from pg_namespace where nspname ~ '^wf_[0-9]{4,}$'").fetchall():
                (fence,) = conn.execute(f"select slot, live from {name}.fence".encode()).fetchall()
                if fence[1]:
                    found.setdefault(fence[0], []).append(number)
    return found


async def load(client: Client, stop: asyncio.Event, seed: int) -> list[Handle[Any]]:
    """Start workflows of every kind, send to them, ask for them, until told to stop; no call may fail."""
    chance = random.Random(seed)
    handles: list[Handle[Any]] = []
    number = 0
    while not stop.is_set():
        number += 1
        receiver = await client.start(noted_inbox.bind(3), id=f"r{number}")
        handles.append(receiver)
        handles.append(await client.start(outbox.bind([receiver.id], 2), id=f"s{number}"))
        handles += await client.start_many((f"c{number}-{n}", chain.bind(2)) for n in range(4))
        handles.append(await client.start(sleeper.bind(chance.uniform(0.05, 2.5)), id=f"t{number}"))
        handles.append(await client.start(parent.bind(2, 1), id=f"p{number}"))
        await client.send(receiver.id, "mail", "hello")
        assert await client.describe(receiver.id) is not None
        await client.history(chance.choice(handles).id)
        if number % 5 == 0:
            await client.list(limit=20)
        await asyncio.sleep(0.05)
    return handles


@pytest.mark.sampled
def test_i7_slots_move_back_and_forth_under_load(two_shards: TestCluster, seed: int) -> None:
    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config, park_after=0.2):
            stop = asyncio.Event()
            loading = asyncio.create_task(load(client, stop, seed))
            await asyncio.sleep(0.5)
            for target in ("pg2", "pg1"):
                await asyncio.to_thread(move, two_shards, (0, target), (2, target))
                assert not loading.done()
            await asyncio.to_thread(move, two_shards, (1, "pg1"))
            stop.set()
            handles = await loading
            async with asyncio.timeout(60):
                await asyncio.gather(*(handle.result() for handle in handles))
            await asyncio.to_thread(two_shards.certify, [handle.id for handle in handles], timeout=30)

    asyncio.run(go())
    assert homes(two_shards) == {0: [1], 1: [1], 2: [1], 3: [2], 4: [1], 5: [2]}
    placement = load_map(two_shards.config).shard_map.placement
    assert placement == dict(enumerate(("pg1", "pg1", "pg1", "pg2", "pg1", "pg2")))


ODD = ("", "a", "B", "ä", "日本", "a'b", 'a"b', "a\\b", "a\tb\n", "{x}/1", "~", "zz", "0", "10", "9", "%s", "$1")


def fill_every_table(conn: psycopg.Connection[Any], schema: str, chance: random.Random) -> None:
    """Rows of every kind: odd keys, every null, negative and large numbers, moments with microseconds."""
    columns = conn.execute(
        "select c.table_name, c.column_name, c.data_type, c.udt_name, c.is_nullable = 'YES' "
        "from information_schema.columns c where table_schema = %s and table_name <> 'fence' "
        "order by 1, c.ordinal_position",
        (schema,),
    ).fetchall()
    tables: dict[str, list[tuple[str, str, str, bool]]] = {}
    for table, column, type_, udt, nullable in columns:
        tables.setdefault(table, []).append((column, type_, udt, nullable))
    make: dict[str, Callable[[], object]] = {
        "text": lambda: chance.choice(ODD) + chance.choice(ODD),
        "smallint": lambda: chance.randint(-32768, 32767),
        "integer": lambda: chance.randint(-(2**31), 2**31 - 1),
        "bigint": lambda: chance.randint(-(2**63), 2**63 - 1),
        "json": lambda: chance.choice(['{"a": -0.0, "a": 1}', "[]", '"\\u00e4"', "null", "1e400"]),
        "timestamp with time zone": lambda: (
            f"{chance.randint(1990, 2200)}-03-31 01:59:59.{chance.randint(0, 999999):06d}+00"
        ),
        "uuid": lambda: str(uuid.UUID(int=chance.getrandbits(128))),
        "ARRAY": lambda: [chance.choice(ODD) for _ in range(chance.randint(0, 3))],
    }
    for table, stored in tables.items():
        names, casts = [], []
        for column, type_, udt, _ in stored:
            names.append(column)
            casts.append(f"%s::{udt.removeprefix('_') + '[]' if type_ == 'ARRAY' else type_}")
        insert = f"insert into {schema}.{table} ({', '.join(names)}) values ({', '.join(casts)}) on conflict do nothing"
        for _ in range(chance.randint(1, 40)):
            row = [None if nullable and chance.random() < 0.4 else make[type_]() for _, type_, _, nullable in stored]
            conn.execute(insert.encode(), row)


def contents(dsn: str, schema: str) -> dict[str, list[str]]:
    """Every row of every table but the fence, as text."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(dsn, autocommit=True) as conn:
        for (table,) in conn.execute("select relname from pg_class c where relnamespace = %s::regnamespace "
                                     "and relkind = 'r' and relname <> 'fence'", (schema,)).fetchall():  # fmt: skip
            rows = conn.execute(f"select t::text from {schema}.{table} t".encode()).fetchall()
            found[table] = sorted(text for (text,) in rows)
    return found


@pytest.mark.parametrize("attempt", range(2))
def test_i7_every_row_of_every_table_moves(
    two_shards: TestCluster, seed: int, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    """Whatever the tables are, and wherever a chunk ends."""
    chance = random.Random(seed)
    for module in (copying, verifying):
        monkeypatch.setattr(module, "MOVE_CHUNK_ROWS", chance.choice([1, 2, 7]))
    with psycopg.connect(two_shards.direct[0], autocommit=True) as conn:
        fill_every_table(conn, "wf_0000", chance)
        before = contents(two_shards.direct[0], "wf_0000")
        assert all(before.values())
        # What is claimed under no lease would be given back: that is another test's business.
        conn.execute("delete from wf_0000.claim")
        before["claim"] = []
    move(two_shards, (0, "pg2"), pace=0.0)
    assert contents(two_shards.direct[1], "wf_0000") == before


def as_no_superuser(dsn: str) -> str:
    """The same database, by a role that may do nothing but make schemas there."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "do $$ begin create role mover login nosuperuser nocreatedb nocreaterole nobypassrls noreplication; "
            "exception when duplicate_object then null; end $$"
        )
        conn.execute(sql.SQL("grant create on database {} to mover").format(sql.Identifier(conn.info.dbname)))
    return make_conninfo(dsn, user="mover")


def test_i7_between_versions_of_postgres_by_no_superuser(
    make_cluster: Callable[..., TestCluster],
    databases: Callable[[int], list[str]],
    server_factory: Callable[..., EmbeddedServer],
    seed: int,
) -> None:
    """From server to server, up and down, and back; 15 as well, where it is installed."""
    dsns = databases(1)
    for version in ("18", "16", "15"):
        if version != POSTGRES_VERSION:
            with contextlib.suppress(EmbeddedPostgresMissing):
                dsns.append(server_factory(version=version).create_database("other"))
    cluster = make_cluster(dsns=[as_no_superuser(dsn) for dsn in dsns])
    assert cluster.ask("select rolsuper from pg_roles where rolname = current_user") == [(False,)]
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        fill_every_table(conn, "wf_0000", random.Random(seed))
        conn.execute("delete from wf_0000.claim")
    before = contents(cluster.direct[0], "wf_0000")
    for at in (*range(1, len(dsns)), 0):
        move(cluster, (0, f"pg{at + 1}"))
        assert contents(cluster.direct[at], "wf_0000") == before


def test_a_copy_that_differs_is_not_switched(two_shards: TestCluster, seed: int) -> None:
    """One row on the target is not as it should be: the comparison finds it, and the slot stays where it is."""
    with psycopg.connect(two_shards.direct[0], autocommit=True) as conn:
        fill_every_table(conn, "wf_0000", random.Random(seed))

    def spoil(progress: Progress) -> None:
        if progress.phase == "following":
            with psycopg.connect(two_shards.direct[1], autocommit=True) as conn:
                schema = conn.execute("select nspname from pg_namespace where nspname ~ '_incoming_'").fetchall()[0][0]
                conn.execute(f"update {schema}.workflow set queue = queue || 'x'".encode())

    with pytest.raises(MoveBlocked, match=r"differs from it: workflow"):
        move(two_shards, (0, "pg2"), report=spoil)
    assert homes(two_shards)[0] == [1]
    (hanging,) = unfinished_moves(two_shards.config)
    Mover(two_shards.config, hanging.move).undo()
    assert unfinished_moves(two_shards.config) == []


def test_a_shard_that_is_removed_is_let_go_of(two_shards: TestCluster, caplog: pytest.LogCaptureFixture) -> None:
    """By who runs and by who starts later; both say so, once, and what to do about it."""
    ids = two_shards.ids_on(2, 3)

    async def go() -> None:
        async with app.connect(two_shards.config) as client, app.executor(two_shards.config) as executor:
            assert await (await client.start(chain.bind(1), id=ids[0])).result(20) == 1
            with pytest.raises(MoveRefused, match="still holds 3 slots"):
                await asyncio.to_thread(remove_shard, two_shards.config, "pg2")
            await asyncio.to_thread(move, two_shards, *((slot, "pg1") for slot in (1, 3, 5)))
            await asyncio.to_thread(remove_shard, two_shards.config, "pg2")
            await until(lambda: [part.name for part in executor.health().shards] == ["pg1"], "letting go")
            assert executor.health().ready
            assert await (await client.start(chain.bind(1), id=ids[1])).result(20) == 1
            assert await client.get_handle(ids[0], int).result(20) == 1
        async with app.executor(two_shards.config, shards=["pg1", "pg2"]) as executor:
            assert [part.shard.name for part in executor.parts] == ["pg1"]
        with pytest.raises(ConfigError, match="no shard to serve: shard 'pg2' is not part of the cluster"):
            await contextlib.AsyncExitStack().enter_async_context(app.executor(two_shards.config, shards=["pg2"]))

    with caplog.at_level(logging.INFO, "sharded_wf"):
        asyncio.run(go())
    said = [record.getMessage() for record in caplog.records if "pg2" in record.getMessage()]
    gone = "shard pg2: not part of the cluster any more: delete its [[shard]] from ClusterConfig"
    absent = f"shard pg2: {NO_MEMBER} from ClusterConfig"
    # The client met the moves, and may have read the map before the shard left, or after.
    said = [line for line in said if "part of" in line or "exist" in line]
    assert said in ([gone, absent, absent], [gone, gone, absent, absent])


@pytest.mark.parametrize("trouble", ["too much has changed", "somebody holds a table"])
def test_a_switch_that_would_take_long_is_given_up_and_made_again(
    two_shards: TestCluster, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Rows change, or a table is locked, right before the switch: the slot is not kept locked for it."""
    monkeypatch.setattr(cutover, "MOVE_SWITCH_KEYS_MAX", 3)
    attempts: list[float] = []
    retire = cutover.Cutover._retire
    add = (
        "insert into wf_0000.workflow (created_at, status, priority, id, name, capability, queue) "
        "select now(), 0, 0, 'late-' || i, 'x/y', 'x', 'default' from generate_series(1, 20) i"
    )
    with psycopg.connect(two_shards.direct[0]) as other:

        def counted(self: cutover.Cutover, *args: Any) -> float:
            attempts.append(time.monotonic())
            if len(attempts) == 1:
                other.execute(add)
                if trouble == "too much has changed":
                    other.commit()
            else:
                other.rollback()
            return retire(self, *args)

        monkeypatch.setattr(cutover.Cutover, "_retire", counted)
        (moved,) = move(two_shards, (0, "pg2"))
    assert len(attempts) > 1
    assert moved.pause_seconds is not None
    assert attempts[1] - attempts[0] >= MOVE_LOCK_PAUSE_SECONDS  # others had their turn
    late = two_shards.ask("select count(*) from wf_0000.workflow where id like 'late-%%'", 2)
    assert late == [(20 if trouble == "too much has changed" else 0,)]
    assert homes(two_shards)[0] == [2]
