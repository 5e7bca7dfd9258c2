"""Migrations: each is applied once, to every slot, whoever applies them, and however often they are interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sharded_wf.errors import ConfigError, MigrationBlocked, SchemaOutOfDate
from sharded_wf.postgres import migrate as subject
from sharded_wf.postgres.connect import Connection, connection
from sharded_wf.postgres.migrate import SchemaStep, check_schema, migrate, pending, slots_present
from sharded_wf.postgres.queries import Migration, load_migrations

SLOTS = (0, 2, 11)
TO_CONTROL: tuple[Migration, ...] = load_migrations("control")
TO_SLOT: tuple[Migration, ...] = load_migrations("slot")
NEXT = len(TO_SLOT) + 1
"""The number of the first migration that a later version of the code adds."""

Extend = Callable[..., None]


@pytest.fixture
def extend(monkeypatch: pytest.MonkeyPatch) -> Extend:
    """``extend(pre="alter …", post="alter …")`` adds migrations of slots, as a later version of the code would have."""

    def add(**scripts: str) -> None:
        added: list[Migration] = list(TO_SLOT)
        for name, text in scripts.items():
            phase: Literal["pre", "post"] = "post" if name.startswith("post") else "pre"
            added.append(Migration(len(added) + 1, phase, name, text))

        def load(kind: str) -> tuple[Migration, ...]:
            return TO_CONTROL if kind == "control" else tuple(added)

        monkeypatch.setattr(subject, "load_migrations", load)

    return add


def opened(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(dsn, autocommit=True)


def columns(dsn: str, slot: int) -> set[str]:
    with opened(dsn) as conn:
        rows = conn.execute(
            "select attname::text from pg_attribute where attrelid = %s::regclass and not attisdropped",
            (f"wf_{slot:04d}.workflow",),
        )
        return {str(name) for (name,) in rows}


def migrated(dsn: str, phase: Literal["pre", "all"] = "all", slots: tuple[int, ...] | None = None) -> list[SchemaStep]:
    with connection(dsn, purpose="test", deadline_seconds=None) as conn:
        return migrate(conn, slots, phase=phase)


def test_an_empty_database_gets_everything_once(database: str) -> None:
    with connection(database, purpose="test") as conn:
        assert len(pending(conn, SLOTS)) == len(TO_CONTROL) + len(SLOTS) * len(TO_SLOT)
        applied = migrate(conn, SLOTS)
        assert applied[0].schema == "wf_control"
        assert {step.schema for step in applied} == {"wf_control", "wf_0000", "wf_0002", "wf_0011"}
        assert pending(conn, SLOTS) == []
        assert migrate(conn, SLOTS) == []
        assert slots_present(conn) == list(SLOTS)
        check_schema(conn, SLOTS)


def test_two_at_once_share_the_work(database: str) -> None:
    barrier = threading.Barrier(3)
    applied: list[list[SchemaStep]] = []

    def work() -> None:
        barrier.wait()
        applied.append(migrated(database, slots=SLOTS))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(applied) == 3
    steps = [step.label for steps in applied for step in steps]
    assert len(steps) == len(set(steps)) == len(TO_CONTROL) + len(SLOTS) * len(TO_SLOT)


def test_an_interrupted_migration_goes_on_slot_by_slot(database: str, extend: Extend) -> None:
    migrated(database, slots=SLOTS)
    with opened(database) as conn:
        conn.execute("alter table wf_0002.workflow add column colour text")
    extend(add_colour="alter table {slot}.workflow add column colour text; create table {slot}.half ()")
    with pytest.raises(psycopg.errors.DuplicateColumn):
        migrated(database)
    assert "colour" in columns(database, 0)
    assert "colour" not in columns(database, 11)
    with opened(database) as conn:
        conn.execute("alter table wf_0002.workflow drop column colour")
    assert [step.schema for step in migrated(database)] == ["wf_0002", "wf_0011"]
    assert all("colour" in columns(database, slot) for slot in SLOTS)


def test_pre_stops_at_the_first_post(database: str, extend: Extend) -> None:
    migrated(database, slots=SLOTS)
    extend(
        add_a="alter table {slot}.workflow add column a text",
        post_drop="alter table {slot}.workflow drop column a",
        add_b="alter table {slot}.workflow add column b text",
    )
    assert len(migrated(database, "pre")) == len(SLOTS)
    assert "a" in columns(database, 0)
    assert len(migrated(database, "all")) == 2 * len(SLOTS)
    assert "a" not in columns(database, 0)
    assert "b" in columns(database, 0)


def check(dsn: str) -> None:
    with connection(dsn, purpose="test") as conn:
        check_schema(conn)


def test_new_code_needs_its_pre_and_not_its_post(database: str, extend: Extend) -> None:
    migrated(database, slots=SLOTS)
    extend(post_tidy="alter table {slot}.workflow drop column output")
    check(database)
    extend(add_a="alter table {slot}.workflow add column a text")
    with pytest.raises(SchemaOutOfDate, match=rf"wf_0000 {NEXT:04d}_pre_add_a and 2 more .* shards migrate"):
        check(database)
    migrated(database)
    check(database)


def test_old_code_works_on_a_new_pre_and_refuses_an_unknown_post(database: str, extend: Extend) -> None:
    migrated(database, slots=SLOTS)
    newer = {"add_a": "alter table {slot}.workflow add column a text", "post_tidy": "select 1"}
    extend(**newer)
    migrated(database, "pre")
    extend()
    check(database)
    extend(**newer)
    migrated(database)
    extend()
    with pytest.raises(SchemaOutOfDate, match=rf"newer .*{NEXT + 1:04d}_post_post_tidy.*upgrade"):
        check(database)


def test_a_migration_does_not_wait_for_ever(database: str, extend: Extend, monkeypatch: pytest.MonkeyPatch) -> None:
    migrated(database, slots=SLOTS)
    extend(add_a="alter table {slot}.workflow add column a text")
    monkeypatch.setattr(subject, "_LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(subject, "MIGRATION_PATIENCE_SECONDS", 0.1)
    with psycopg.connect(database) as holder:
        holder.execute("lock table wf_0002.workflow in access share mode")
        with pytest.raises(MigrationBlocked, match=f"wf_0002 {NEXT:04d}_pre_add_a"):
            migrated(database)
    assert [step.schema for step in migrated(database)] == ["wf_0002", "wf_0011"]


def test_a_role_that_may_not_make_schemas_is_told_what_to_grant(database: str) -> None:
    with opened(database) as conn:
        conn.execute("create role c_poor login")
    try:
        poor = make_conninfo(database, user="c_poor")
        with pytest.raises(ConfigError, match=r"grant create on database .* to c_poor"):
            migrated(poor)
    finally:
        with opened(database) as conn:
            conn.execute("drop role c_poor")


def test_retired_slots_are_left_alone(database: str) -> None:
    migrated(database, slots=SLOTS)
    with opened(database) as conn:
        conn.execute("alter schema wf_0002 rename to wf_0002_retired_1")
    with connection(database, purpose="test") as conn:
        assert slots_present(conn) == [0, 11]
        assert pending(conn) == []


@pytest.mark.parametrize(("before", "after"), [("wf_0000", "retired"), ("retired", "wf_0000")], ids=["goes", "comes"])
def test_a_slot_that_is_just_being_moved_is_not_taken_for_an_old_one(
    database: str, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    def rename(old: str, new: str) -> None:
        with psycopg.connect(database) as moving:
            moving.execute(sql.SQL("alter schema {} rename to {}").format(sql.Identifier(old), sql.Identifier(new)))
            moving.execute("update wf_control.migration set schema_name = %s where schema_name = %s", [new, old])

    def read_between(conn: Connection) -> dict[tuple[str, int], str]:
        """The slot comes right after this, or goes right before."""
        if after == "retired":
            rename(before, after)
        known = read(conn)
        if after == "wf_0000":
            rename(before, after)
        return known

    read = subject._read_known
    with connection(database, purpose="test") as conn:
        migrate(conn, range(2))
        if before == "retired":
            rename("wf_0000", before)
        monkeypatch.setattr(subject, "_read_known", read_between)
        check_schema(conn)
        monkeypatch.undo()
        check_schema(conn)


def test_the_connection_type_is_what_we_say(database: str) -> None:
    with connection(database, purpose="test") as conn:
        checked: Connection = conn
        assert checked.execute("select $1::int + 1", (41,)).fetchone() == (42,)


def files_of(conn: psycopg.Connection[tuple[object, ...]], schema: str) -> dict[object, object]:
    """The file of each table."""
    query = "select relname, relfilenode from pg_class where relnamespace = to_regnamespace(%s) and relkind = 'r'"
    return {name: number for name, number in conn.execute(query, (schema,)).fetchall()}  # noqa: C416 - mypy's sake


@pytest.mark.parametrize("kind", ["control", "slot"])
def test_what_a_migration_locks_is_what_it_says(database: str, kind: Literal["control", "slot"]) -> None:
    """The plan tells people; and no table is written anew, which would take as long as it is large."""
    schema = "wf_control" if kind == "control" else "wf_0007"
    locked = (
        "select distinct relname from pg_locks join pg_class on pg_class.oid = relation "
        "where pid = pg_backend_pid() and relkind = 'r' and relnamespace = to_regnamespace(%s) and mode in "
        "('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
    )
    if kind == "slot":
        migrated(database, slots=())
    with opened(database) as conn:
        for migration in load_migrations(kind):
            before = files_of(conn, schema)
            with conn.transaction():
                for statement in migration.statements(schema):
                    conn.execute(statement)
                locks = {name for (name,) in conn.execute(locked, (schema,)).fetchall()} & before.keys()
            after = files_of(conn, schema)
            assert locks == set(migration.locks), migration.name
            assert before.items() <= after.items(), f"{migration.name} rewrites a table"
