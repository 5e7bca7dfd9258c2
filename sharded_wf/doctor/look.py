"""One shard under examination: how checks ask it, and what all of them need to know of it.

Every question is asked in a read-only transaction with a statement_timeout, so that an examination never becomes
the trouble that it looks for. What is read for all (``Facts``) is read once, at the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, LiteralString, cast

from sharded_wf.clock import Clock
from sharded_wf.cluster.fleet import ExecutorStatus, read_executors
from sharded_wf.cluster.shard_map import Record
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.doctor import commands
from sharded_wf.doctor.finding import Unseen
from sharded_wf.limits import (
    DOCTOR_LOCK_TIMEOUT_SECONDS,
    DOCTOR_STATEMENT_TIMEOUT_SECONDS,
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
)
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import SchemaStep, pending, slots_present
from sharded_wf.postgres.queries import load
from sharded_wf.reshard.record import Move, read_moves
from sharded_wf.routing import CONTROL_SCHEMA, slot_schema

_SQL = load("doctor")
_MAP = load("shard_map")
_CLOCK_LOOKS = 3
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as our own sessions have it. ``source``: where it comes from, in Postgres' words."""

    name: str
    value: str
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Lease:
    """An executor's lease. ``executor.live``: its beat is young, or was seen to move. ``ahead_seconds``: how far the
    executor's clock is at least ahead of the server's (0: not that anybody could tell); ``behind_seconds``, how far it
    is behind, of one whose beat moves."""

    executor: ExecutorStatus
    ahead_seconds: float
    behind_seconds: float


@dataclass(frozen=True, slots=True)
class Fence:
    """A slot's own word on where it lives."""

    slot: int
    shard: str
    epoch: int
    live: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read of one shard at the beginning. ``fences``: of the slots whose schemas are there (None: a slot
    without a row). ``clock_ahead_seconds``: the server's clock against ours, give or take
    ``clock_error_seconds``."""

    shard: str
    record: Record
    server_version: int
    standby: bool
    database: str
    role: str
    fences: Mapping[int, Fence | None]
    moves: tuple[Move, ...]
    pending: tuple[SchemaStep, ...]
    leases: tuple[Lease, ...]
    clock_ahead_seconds: float
    clock_error_seconds: float

    @property
    def live_slots(self) -> tuple[int, ...]:
        """The slots that live here by their own word."""
        return tuple(slot for slot, fence in sorted(self.fences.items()) if fence is not None and fence.live)

    @property
    def executors(self) -> tuple[ExecutorStatus, ...]:
        """The live executors that take ordinary work."""
        return tuple(lease.executor for lease in self.leases if lease.executor.live and not lease.executor.isolated)


def time_limits() -> list[str]:
    """The parameters of ``set_bounds``."""
    bounds = (DOCTOR_STATEMENT_TIMEOUT_SECONDS, DOCTOR_LOCK_TIMEOUT_SECONDS)
    return [f"{int(seconds * 1000)}ms" for seconds in bounds]


class Look:
    """One shard, for its checks."""

    def __init__(self, config: ClusterConfig, shard: ShardConfig, conn: Connection, clock: Clock) -> None:
        self.config = config
        self.shard = shard
        self.conn = conn
        self.clock = clock
        self.unseen: list[Unseen] = []
        self.facts: Facts
        """What all checks need: see ``gather``."""

    @contextmanager
    def reading(self) -> Generator[None]:
        """A read-only transaction with a time limit for each of its statements."""
        self.conn.read_only = True
        with self.conn.transaction():
            self.conn.execute(_SQL["set_bounds"].on(), time_limits())
            yield

    def rows(self, name: str, parameters: Sequence[object] = (), *, schema: str = "") -> Rows:
        """What a statement of ``sql/queries/doctor.sql`` gives."""
        return cast(Rows, self.conn.execute(_SQL[name].on(schema), parameters or None).fetchall())

    def row(self, name: str, parameters: Sequence[object] = ()) -> tuple[Any, ...]:
        """The one row that a statement gives."""
        return self.rows(name, parameters)[0]

    def run(self, statement: LiteralString) -> Rows:
        """What any other statement gives."""
        cursor = self.conn.execute(statement)
        return [] if cursor.description is None else cast(Rows, cursor.fetchall())

    def each_slot(self, name: str, parameters: Sequence[object] = (), *, family: str = "doctor") -> dict[int, Rows]:
        """What a statement gives on each live slot; all are asked in one round trip."""
        query = load(family)[name]
        with self.conn.pipeline():
            asked = [
                (slot, self.conn.execute(query.on(slot_schema(slot)), parameters or None))
                for slot in self.facts.live_slots
            ]
        return {slot: cast(Rows, cursor.fetchall()) for slot, cursor in asked}

    @property
    def schemas(self) -> list[str]:
        """Those of the slots that live here."""
        return [slot_schema(slot) for slot in self.facts.live_slots]

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """The settings that checks look at, by name; those that this version does not have are not there."""
        return {row[0]: Setting(*row) for row in self.rows("read_settings", (_SETTINGS,))}

    def psql(self, *statements: str, database: str | None = None) -> str:
        """The command that runs these statements here."""
        return commands.psql(self.shard, *statements, database=database)

    def cli(self, *words: str) -> str:
        """``sharded-wf …`` on this cluster."""
        return commands.cli(self.config, *words)

    def hidden(self, check: str, what: str) -> None:
        """Note that this role may not see something."""
        grant = self.psql(f'grant pg_monitor to "{self.facts.role}"') + "  # as a superuser"
        self.unseen.append(Unseen(check, self.shard.name, what, grant))

    def gather(self, record: Record) -> Facts:
        """Read the facts, which the checks then have."""
        conn = self.conn
        with self.reading():
            standby, database, role = self.row("read_server")
            ahead, error = self._compare_clocks()
            todo = tuple(pending(conn))
            behind = {step.schema for step in todo}
            # A control schema of an earlier version may not have the tables that are asked next.
            complete = CONTROL_SCHEMA not in behind
            moves = tuple(read_moves(conn)) if complete else ()
            fences = {slot: self._fence(slot) for slot in slots_present(conn)}
        self.facts = Facts(
            self.shard.name, record, conn.info.server_version, standby, database, role, fences, moves, todo,
            self._leases() if complete else (), ahead, error,
        )  # fmt: skip
        return self.facts

    def _fence(self, slot: int) -> Fence | None:
        row = self.conn.execute(_MAP["read_fence"].on(slot_schema(slot))).fetchone()
        return None if row is None else Fence(cast(int, row[0]), str(row[1]), cast(int, row[2]), bool(row[3]))

    def _compare_clocks(self) -> tuple[float, float]:
        """The look that took least time knows best."""
        looks: list[tuple[float, float]] = []
        for _ in range(_CLOCK_LOOKS):
            before = self.clock.now_us()
            (theirs,) = self.row("read_clock")
            after = self.clock.now_us()
            looks.append(((theirs - (before + after) / 2) / 1e6, (after - before) / 2e6))
        return min(looks, key=lambda look: look[1])

    def _beats(self) -> dict[str, tuple[int, float]]:
        with self.reading():
            return {id_: (beat, age) for id_, beat, age in self.rows("read_beats")}

    def _leases(self) -> tuple[Lease, ...]:
        """Beats are dated by their executors' clocks, so an odd one is looked at twice: dead is what doesn't move."""
        before = self._beats()
        with self.reading():
            executors = read_executors(self.conn)
        after = before
        if any(abs(age) > LEASE_SECONDS for _, age in before.values()):
            time.sleep(2 * HEARTBEAT_SECONDS)
            after = self._beats()
        return tuple(_judge(one, before, after) for one in executors if one.id in after)


def _judge(
    executor: ExecutorStatus, before: Mapping[str, tuple[int, float]], after: Mapping[str, tuple[int, float]]
) -> Lease:
    beat, age = after[executor.id]
    moved = executor.id in before and before[executor.id][0] != beat
    live = moved or abs(age) <= LEASE_SECONDS
    behind = age if moved and age > LEASE_SECONDS else 0.0
    return Lease(replace(executor, live=live), max(-age, 0.0), behind)


_SETTINGS = [
    "fsync", "full_page_writes", "synchronous_commit", "autovacuum", "track_counts", "wal_level", "max_wal_size",
    "default_transaction_read_only", "autovacuum_freeze_max_age", "autovacuum_multixact_freeze_max_age",
    "synchronous_standby_names", "max_connections",
]  # fmt: skip
