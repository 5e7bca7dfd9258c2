"""Bringing the schemas of one database up to date.

A database has one control schema and many slots, each with migrations of its own. Every migration is one transaction:
take the lock, look whether somebody else has done it, run it, note it. So two processes can migrate at once, and one
that is killed leaves nothing half done: the next one goes on where it stopped, slot by slot.

``pre`` migrations suit the code before and after them and run before a deployment; ``post`` ones run when no old
process is left. A process needs every ``pre`` that it knows; one that meets a ``post`` that it does not know is itself
too old.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import psycopg

from sharded_wf.errors import ConfigError, MigrationBlocked, SchemaOutOfDate
from sharded_wf.limits import MIGRATION_LOCK_TIMEOUT_SECONDS, MIGRATION_PATIENCE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.queries import Migration, load, load_migrations
from sharded_wf.routing import CONTROL_SCHEMA, slot_schema

Phase = Literal["pre", "all"]

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
    known = _read_known(conn)
    schemas = [slot_schema(slot) for slot in slots] if slots is not None else _slot_schemas(conn)
    steps = [SchemaStep(CONTROL_SCHEMA, migration) for migration in load_migrations("control")]
    steps += [SchemaStep(schema, migration) for schema in schemas for migration in load_migrations("slot")]
    return [step for step in steps if (step.schema, step.migration.version) not in known]


def migrate(conn: Connection, slots: Iterable[int] | None = None, *, phase: Phase = "all") -> list[SchemaStep]:
    """Apply what is pending and return what this call applied. ``slots`` as in ``pending``; with the phase ``pre``,
    each schema goes as far as its first pending ``post``.

    Raises ``MigrationBlocked`` if other transactions hold what a migration needs, ``ConfigError`` if the role may not
    make schemas, ``psycopg.Error`` for all else; what was applied before stays applied.
    """
    applied: list[SchemaStep] = []
    stopped: set[str] = set()
    for step in pending(conn, slots):
        if phase == "pre" and step.migration.phase == "post":
            stopped.add(step.schema)
        if step.schema not in stopped and _apply_patiently(conn, step):
            applied.append(step)
    return applied


def make_copy(conn: Connection, schema: str) -> None:
    """Make a slot's tables, complete, under a name that is no slot's yet: for a move. Making it twice is fine."""
    with conn.transaction():
        conn.execute(_SQL["lock_migrations"].on())
        for migration in load_migrations("slot"):
            found = conn.execute(_SQL["has_migration"].on(), (schema, migration.version)).fetchone()
            if found is None or not found[0]:
                for statement in migration.statements(schema):
                    conn.execute(statement)
                conn.execute(_SQL["note_migration"].on(), (schema, migration.version, noted_name(migration)))


def check_schema(conn: Connection, slots: Sequence[int] | None = None) -> None:
    """Whether this version of the code can work with this database: raises ``SchemaOutOfDate`` if not, and says whether
    the tables or the program are too old."""
    missing = [step for step in pending(conn, slots) if step.migration.phase == "pre"]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SchemaOutOfDate(
            f"the tables are older than this version needs: {missing[0].label}{more} to be applied; "
            "run: sharded-wf shards migrate"
        )
    newest = {
        True: len(load_migrations("control")),
        False: len(load_migrations("slot")),
    }
    for (schema, version), name in sorted(_read_known(conn).items()):
        if version > newest[schema == CONTROL_SCHEMA] and name.startswith("post_"):
            raise SchemaOutOfDate(
                f"the tables are newer than this version can use ({schema} has {version:04d}_{name}); "
                "upgrade sharded-wf"
            )


def slots_present(conn: Connection) -> list[int]:
    """The slots whose schemas lie in this database, ascending; of a node of a Citus cluster, those that it serves."""
    return [int(schema.removeprefix("wf_")) for schema in _slot_schemas(conn)]


def is_guarded(conn: Connection) -> bool:
    """Whether this is the database of a node of a Citus cluster, where every schema is seen on every node."""
    found = conn.execute(_CITUS["guarded"].on()).fetchone()
    return found is not None and bool(found[0])


def _apply_patiently(conn: Connection, step: SchemaStep) -> bool:
    """Apply one step unless it is there by now. Waits for locks in short turns, so that a migration that queues for a
    busy table does not hold up the table's traffic behind it."""
    give_up = time.monotonic() + MIGRATION_PATIENCE_SECONDS
    while True:
        try:
            return _apply(conn, step)
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() >= give_up:
                raise MigrationBlocked(
                    f"{step.label} waited {MIGRATION_PATIENCE_SECONDS:g} s for a lock that another transaction holds; "
                    "find it in pg_stat_activity, then run: sharded-wf shards migrate"
                ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            reason = (error.diag.message_primary or str(error)).strip()
            raise ConfigError(
                f"{step.label}: {reason}. The role that makes and migrates shards owns their schemas: "
                f"grant create on database {conn.info.dbname} to {conn.info.user}"
            ) from None


def _apply(conn: Connection, step: SchemaStep) -> bool:
    migration = step.migration
    with conn.transaction():
        conn.execute(_SQL["set_lock_timeout"].on(), (_LOCK_TIMEOUT,))
        conn.execute(_SQL["lock_migrations"].on())
        if _has_control(conn):
            found = conn.execute(_SQL["has_migration"].on(), (step.schema, migration.version)).fetchone()
            if found is not None and found[0]:
                return False
        for statement in migration.statements(step.schema):
            conn.execute(statement)
        conn.execute(_SQL["note_migration"].on(), (step.schema, migration.version, noted_name(migration)))
    return True


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
