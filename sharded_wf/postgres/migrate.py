"""Bringing the schemas of one database up to date.

A database has one control schema and many slots, each with migrations of its own. Every migration is one transaction:
take the lock, look whether somebody else has done it, run it, note it. So two processes can migrate at once, and one
that is killed leaves nothing half done: the next one goes on where it stopped, slot by slot.

``pre`` migrations suit the code before and after them and run before a deployment; ``post`` ones run when no old
process is left: an executor's lease says which migrations it knows, and a ``post`` that one of them doesn't know is
refused. A process needs every ``pre`` that it knows; one that meets a ``post`` that it does not know is itself too old.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import psycopg

from sharded_wf.errors import ConfigError, MigrationBlocked, MigrationRefused, SchemaOutOfDate
from sharded_wf.limits import (
    LEASE_SECONDS,
    MIGRATION_LOCK_PAUSE_SECONDS,
    MIGRATION_LOCK_TIMEOUT_SECONDS,
    MIGRATION_PATIENCE_SECONDS,
)
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.queries import Migration, load, load_migrations
from sharded_wf.routing import CONTROL_SCHEMA, slot_schema

Phase = Literal["pre", "all"]
Moment = Literal["begins", "written", "done"]
"""Of one step: it begins; its changes are made, and not committed; they are committed."""

EVERY_SLOT = "every slot"
"""Stands for a schema where a migration is announced."""

_SQL = load("migrations")
_CITUS = load("citus")
_LOCK_TIMEOUT = f"{int(MIGRATION_LOCK_TIMEOUT_SECONDS * 1000)}ms"


@dataclass(frozen=True, slots=True)
class SchemaStep:
    """One migration of one schema: applied, or still to be applied."""

    schema: str
    migration: Migration

    @property
    def label(self) -> str:
        """``wf_0007 0002_pre_add_tags``, for people."""
        return f"{self.schema} {self.migration.version:04d}_{noted_name(self.migration)}"


def noted_name(migration: Migration) -> str:
    """How the table ``migration`` names it. The phase is part of it, so that older code knows what it meets."""
    return f"{migration.phase}_{migration.name}"


def pending(conn: Connection, slots: Iterable[int] | None = None) -> list[SchemaStep]:
    """What is to be applied to this database, in order: the control schema, then each slot. ``slots``: those that shall
    exist; without it, those that do."""
    before = _slot_schemas(conn)
    known = _read_known(conn)
    # A slot that comes or goes between two looks is just being moved, and takes its migrations with it.
    present = [schema for schema in _slot_schemas(conn) if schema in before]
    schemas = present if slots is None else [slot_schema(slot) for slot in slots]
    steps = [SchemaStep(CONTROL_SCHEMA, migration) for migration in load_migrations("control")]
    steps += [SchemaStep(schema, migration) for schema in schemas for migration in load_migrations("slot")]
    return [step for step in steps if (step.schema, step.migration.version) not in known]


def split_phases(steps: Iterable[SchemaStep]) -> tuple[list[SchemaStep], list[SchemaStep]]:
    """What can be applied while old processes run, and what can't: of each schema, what comes before its first
    ``post``, and the rest. In this order they are applied."""
    first: list[SchemaStep] = []
    rest: list[SchemaStep] = []
    stopped: set[str] = set()
    for step in steps:
        if step.migration.phase == "post":
            stopped.add(step.schema)
        (rest if step.schema in stopped else first).append(step)
    return first, rest


def migrate(
    conn: Connection,
    slots: Iterable[int] | None = None,
    *,
    phase: Phase = "all",
    force: bool = False,
    report: Callable[[SchemaStep, Moment], None] = lambda _step, _moment: None,
) -> list[SchemaStep]:
    """Apply what is pending and return what this call applied. ``slots`` as in ``pending``; with the phase ``pre``,
    each schema goes as far as its first pending ``post``. ``force``: end the leases of executors that don't know a
    ``post``, instead of refusing it. ``report`` hears of each step.

    Raises ``MigrationBlocked`` if other transactions hold what a migration needs, ``MigrationRefused`` if executors or
    moves stand in the way, ``ConfigError`` if the role may not make schemas, ``psycopg.Error`` for all else; what was
    applied before stays applied.
    """
    first, rest = split_phases(pending(conn, slots))
    steps = first if phase == "pre" else first + rest
    if any(step.schema != CONTROL_SCHEMA for step in steps):
        _refuse_moving(conn)  # also those whose slot is nowhere now, and would be left out
    return [step for step in steps if _apply_patiently(conn, step, force, report)]


def announce(conn: Connection, migrations: Iterable[Migration], *, force: bool = False) -> None:
    """These ``post`` migrations of slots are about to be made, on another connection, which does not see the leases of
    this database: from here on no executor that does not know them begins to work here, and none that runs goes on.
    Raises as ``migrate``."""

    def act() -> bool:
        with conn.transaction():
            conn.execute(_SQL["set_lock_timeout"].on(), (_LOCK_TIMEOUT,))
            conn.execute(_SQL["lock_migrations"].on())
            found = conn.execute(_SQL["has_migration"].on(), (EVERY_SLOT, step.migration.version)).fetchone()
            if found is not None and found[0]:
                return False
            _end_old(conn, step, force)
            conn.execute(_SQL["note_migration"].on(), (EVERY_SLOT, step.migration.version, noted_name(step.migration)))
        return True

    for step in [SchemaStep(EVERY_SLOT, migration) for migration in migrations]:
        _patiently(conn, step, act)


def make_copy(conn: Connection, schema: str, versions: Collection[int] | None = None) -> None:
    """Make a slot's tables under a name that is no slot's yet: for a move. With these migrations; all, unless given.
    Making it twice is fine."""
    with conn.transaction():
        conn.execute(_SQL["lock_migrations"].on())
        for migration in load_migrations("slot"):
            found = conn.execute(_SQL["has_migration"].on(), (schema, migration.version)).fetchone()
            if (versions is None or migration.version in versions) and (found is None or not found[0]):
                for statement in migration.statements(schema):
                    conn.execute(statement)
                conn.execute(_SQL["note_migration"].on(), (schema, migration.version, noted_name(migration)))


def applied_versions(conn: Connection, schema: str) -> frozenset[int]:
    """The numbers of the migrations that a schema of this database has."""
    return frozenset(version for known, version in _read_known(conn) if known == schema)


def unknown_to_us(conn: Connection) -> str | None:
    """A migration of this database that this version of the code does not know, if there is one, by name."""
    newest_control, newest_slot = newest_known()
    for (schema, version), name in sorted(_read_known(conn).items()):
        if version > (newest_control if schema == CONTROL_SCHEMA else newest_slot):
            return f"{schema} {version:04d}_{name}"
    return None


def newest_known() -> tuple[int, int]:
    """The numbers of the newest migrations that this version of the code knows: of the control schema, of a slot."""
    return len(load_migrations("control")), len(load_migrations("slot"))


def moving_slots(conn: Connection) -> list[str]:
    """The unfinished moves and splits that this database knows of, for people."""
    if (conn.execute(_SQL["has_moves"].on()).fetchone() or (False,))[0] is not True:
        return []
    rows = conn.execute(_SQL["read_moving"].on()).fetchall()
    return [
        f"slot {slot} is being {'split' if source == target else f'moved from {source} to {target}'} ({state})"
        for slot, source, target, state in rows
    ]


def holders_of(conn: Connection, schema: str) -> str:
    """For people: whose transactions hold tables of this schema."""
    rows = conn.execute(_SQL["name_holders"].on(), (schema,)).fetchall()
    return "; ".join(f"pid {pid} ({who}): {query}" for pid, who, query in rows) or "transactions that come and go"


def check_schema(conn: Connection, slots: Sequence[int] | None = None) -> None:
    """Whether this version of the code can work with this database: raises ``SchemaOutOfDate`` if not, and says whether
    the tables or the program are too old."""
    todo = pending(conn, slots)
    missing = [step for step in todo if step.migration.phase == "pre"]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        option = " --pre" if missing[0] in split_phases(todo)[0] else ""
        raise SchemaOutOfDate(
            f"the tables are older than this version needs: {missing[0].label}{more} to be applied; "
            f"run: sharded-wf shards migrate{option}"
        )
    too_new = conn.execute(_SQL["read_too_new"].on(), newest_known()).fetchone() if _has_control(conn) else None
    if too_new is not None:
        raise SchemaOutOfDate(too_new_message(str(too_new[0])))


def too_new_message(which: str) -> str:
    """What to say of a database that has this ``post`` migration, which we don't know."""
    return f"the tables are newer than this version can use ({which}); upgrade sharded-wf"


def slots_present(conn: Connection) -> list[int]:
    """The slots whose schemas lie in this database, ascending; of a node of a Citus cluster, those that it serves."""
    return [int(schema.removeprefix("wf_")) for schema in _slot_schemas(conn)]


def is_guarded(conn: Connection) -> bool:
    """Whether this is the database of a node of a Citus cluster, where every schema is seen on every node."""
    found = conn.execute(_CITUS["guarded"].on()).fetchone()
    return found is not None and bool(found[0])


def _apply_patiently(
    conn: Connection, step: SchemaStep, force: bool, report: Callable[[SchemaStep, Moment], None]
) -> bool:
    """Apply one step unless it is there by now. Waits for locks in short turns, with pauses, so that a migration that
    queues for a busy table does not hold up the table's traffic behind it."""
    report(step, "begins")
    applied = _patiently(conn, step, lambda: _apply(conn, step, force, report))
    report(step, "done")
    return applied


def _patiently(conn: Connection, step: SchemaStep, act: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + MIGRATION_PATIENCE_SECONDS
    while True:
        try:
            return act()
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() >= give_up:
                raise MigrationBlocked(
                    f"{step.label} waited {MIGRATION_PATIENCE_SECONDS:g} s for a lock that another transaction holds: "
                    f"{holders_of(conn, step.schema)}. End it, then run: sharded-wf shards migrate"
                ) from None
            time.sleep(MIGRATION_LOCK_PAUSE_SECONDS)
        except psycopg.errors.InsufficientPrivilege as error:
            reason = (error.diag.message_primary or str(error)).strip()
            raise ConfigError(
                f"{step.label}: {reason}. The role that makes and migrates shards owns their schemas: "
                f"grant create on database {conn.info.dbname} to {conn.info.user}"
            ) from None


def _apply(conn: Connection, step: SchemaStep, force: bool, report: Callable[[SchemaStep, Moment], None]) -> bool:
    migration = step.migration
    with conn.transaction():
        conn.execute(_SQL["set_lock_timeout"].on(), (_LOCK_TIMEOUT,))
        conn.execute(_SQL["lock_migrations"].on())
        if _has_control(conn):
            found = conn.execute(_SQL["has_migration"].on(), (step.schema, migration.version)).fetchone()
            if found is not None and found[0]:
                return False
            if step.schema != CONTROL_SCHEMA:
                _refuse_moving(conn, int(step.schema.removeprefix("wf_")))
        if migration.phase == "post":
            _end_old(conn, step, force)
        for statement in migration.statements(step.schema):
            conn.execute(statement)
        conn.execute(_SQL["note_migration"].on(), (step.schema, migration.version, noted_name(migration)))
        report(step, "written")
    return True


def _refuse_moving(conn: Connection, slot: int | None = None) -> None:
    for found in moving_slots(conn):
        if slot is None or found.startswith(f"slot {slot} "):
            raise MigrationRefused(
                f"{found}, and both sides must have the same tables; let it end, or run: sharded-wf shards move "
                "--resume (or --undo); then migrate again"
            )


def _end_old(conn: Connection, step: SchemaStep, force: bool) -> None:
    """No executor that does not know this ``post`` writes anything from here on: its lease is gone, or nothing is done.
    (One that comes later looks for what it does not know when it has its lease, and waits for us before it looks.)"""
    about = (step.schema, step.migration.version)
    conn.execute(_SQL["end_old_leases"].on(), (*about, LEASE_SECONDS, force))
    old = conn.execute(_SQL["read_old_leases"].on(), about).fetchall()
    if old:
        raise MigrationRefused(still_there([f"{name} ({version})" for name, version in old], step.label))


def still_there(old: Sequence[str], label: str) -> str:
    """What to say when executors stand in the way of a ``post`` migration."""
    few = len(old) == 1
    return (
        f"{label} is not for {', '.join(old)}, which {'runs' if few else 'run'} a version that does not know it; "
        f"stop {'it' if few else 'them'} (SIGTERM drains), then migrate again"
    )


def _has_control(conn: Connection) -> bool:
    found = conn.execute(_SQL["has_control"].on()).fetchone()
    return found is not None and bool(found[0])


def _read_known(conn: Connection) -> dict[tuple[str, int], str]:
    if not _has_control(conn):
        return {}
    rows = conn.execute(_SQL["read_migrations"].on()).fetchall()
    return {(str(schema), cast(int, version)): str(name) for schema, version, name in rows}


def _slot_schemas(conn: Connection) -> list[str]:
    if not _has_control(conn):
        return []  # a node that has just been added to a Citus cluster sees the slots of the others
    if is_guarded(conn):
        return [slot_schema(cast(int, slot)) for (slot,) in conn.execute(_CITUS["own_slots"].on()).fetchall()]
    rows = conn.execute(_SQL["read_slot_schemas"].on()).fetchall()
    return [str(name) for (name,) in rows if re.fullmatch(r"wf_\d{4,}", str(name))]
