"""How the shards fare.

Status is what people look at when something is wrong. So it never fails as a whole: a shard that is away, empty or
foreign is a line that says so; and it costs little: it reads a bounded number of rows, however long the history.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import psycopg

from sharded_wf.cluster import citus
from sharded_wf.cluster.directory import NO_MEMBER
from sharded_wf.cluster.shard_map import (
    PLANNED_EPOCH,
    Record,
    check_identity,
    check_same_cluster,
    map_of,
    merge,
    read_record,
)
from sharded_wf.cluster.timelines import ask_primaries
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ConfigError, ShardUnavailable
from sharded_wf.limits import (
    COMMIT_STUCK_SECONDS,
    LEASE_SECONDS,
    STATUS_COUNT_MAX_ROWS,
    STATUS_DEADLINE_SECONDS,
    STATUS_EXACT_MAX_ROWS,
    STATUS_LANES_MAX,
)
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import SchemaStep, is_guarded, pending, slots_present, split_phases
from sharded_wf.postgres.queries import Query, load
from sharded_wf.routing import CONTROL_SCHEMA, ShardMap, slot_schema

NOT_YET = "not part of the cluster yet: run sharded-wf shards init"
EMPTY = "empty, and should hold slots: the wrong database (correct the DSN), or its data are lost (restore a backup)"
_FLEET = load("fleet")
_CITUS = load("citus")
_MAP = load("shard_map")


@dataclass(frozen=True, slots=True)
class Count:
    """A number of workflows; if not ``exact``, a lower bound (backlog) or an estimate (parked)."""

    value: int = 0
    exact: bool = True

    def __add__(self, other: Count) -> Count:
        return Count(self.value + other.value, self.exact and other.exact)


@dataclass(frozen=True, slots=True)
class ExecutorStatus:
    """One executor's lease on one shard. ``beat_age_seconds``: since its last heartbeat, by the server's clock.
    ``live``: that is less than a lease. ``queues``: ``None`` means all. ``control_known``, ``slot_known``: the newest
    migrations that its code knows (0: it did not say)."""

    id: str
    executor: str
    beat_age_seconds: float
    up_seconds: float
    idle: bool
    isolated: bool
    capabilities: tuple[str, ...]
    queues: tuple[str, ...] | None
    version: str
    live: bool
    control_known: int = 0
    slot_known: int = 0

    def knows(self, step: SchemaStep) -> bool:
        """Whether its code knows this migration."""
        return step.migration.version <= (self.control_known if step.schema == CONTROL_SCHEMA else self.slot_known)

    def can_run(self, capability: str, queue: str) -> bool:
        """Whether this executor takes workflows of this capability from this queue."""
        return self.live and capability in self.capabilities and (self.queues is None or queue in self.queues)


@dataclass(frozen=True, slots=True)
class Stranded:
    """Ready workflows that no live executor of the shard can run: start a worker with this app."""

    capability: str
    queue: str
    ready: Count


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard. ``problem``: what is wrong with it, in one line; a shard that can't be used has nothing but that.
    ``slots``: those that are live here. ``affected``: those that lie here by the shard map, and can't be used, because
    the shard can't. ``backlog``: workflows ready to run. ``running``: claimed by executors.
    ``parked``: waiting, in no executor's memory. ``pending_migrations``: how many are to be applied;
    ``post_migrations``: how many of them only when no process of the version before runs any more."""

    name: str
    address: str
    reachable: bool
    problem: str | None = None
    answer_seconds: float | None = None
    server_version: str | None = None
    slots: tuple[int, ...] = ()
    affected: tuple[int, ...] = ()
    backlog: Count = Count()
    running: int = 0
    parked: Count = Count()
    executors: tuple[ExecutorStatus, ...] = ()
    stranded: tuple[Stranded, ...] = ()
    pending_migrations: int = 0
    post_migrations: int = 0


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The cluster. ``epoch`` and ``slots`` are of the shard map, as far as it is known; ``problem``: why it is not."""

    name: str
    cluster_id: uuid.UUID | None
    epoch: int | None
    slots: int | None
    problem: str | None
    shards: tuple[ShardStatus, ...]
    astray: Mapping[int, str] = field(default_factory=dict)
    """Slots of a Citus cluster whose rows lie on another node than the one that serves them, and on which."""

    @property
    def healthy(self) -> bool:
        """Whether every shard can be reached, and nothing is wrong with any."""
        return self.problem is None and all(shard.reachable and shard.problem is None for shard in self.shards)


def fleet_status(config: ClusterConfig, patience_seconds: float | None = None) -> FleetStatus:
    """Ask every shard how it fares. Blocks for as long as the slowest, at most ``patience_seconds`` (unless said, some
    ``STATUS_DEADLINE_SECONDS``)."""

    config = citus.resolve(config)

    places: dict[int, str] = {}

    def inspect(shard: ShardConfig, conn: Connection) -> tuple[Record, ShardStatus]:
        record = read_record(conn)
        if config.coordinator is not None:
            places.update(citus.places(conn))
        return record, _inspect(config, shard, record, conn)

    answers, _ = ask_primaries(
        config.shards, inspect, purpose="status", deadline_seconds=STATUS_DEADLINE_SECONDS,
        patience_seconds=patience_seconds,
    )  # fmt: skip
    shards = tuple(
        answers.given[shard.name][1] if shard.name in answers.given else _failed(shard, answers.failed[shard.name])
        for shard in config.shards
    )
    records = {name: record for name, (record, _) in answers.given.items()}
    identities = {name: record.identity for name, record in records.items() if record.identity is not None}
    if not identities:
        problem = None if answers.failed else "no cluster here yet: run sharded-wf shards init"
        return FleetStatus(config.name, None, None, None, problem, shards)
    try:
        identity = check_same_cluster(identities)
        shard_map = map_of(config, identity, merge(record.placements for record in records.values()))
    except ConfigError as error:
        return FleetStatus(config.name, None, None, None, str(error), shards)
    problem = None
    if shard_map.epoch == PLANNED_EPOCH:
        problem = "the making of this cluster was interrupted, or is under way: run sharded-wf shards init"
    shards = tuple(
        shard if shard.reachable and shard.problem is None else _troubled(shard, shard_map) for shard in shards
    )
    astray = {slot: name for slot, name in sorted(places.items()) if shard_map.placement.get(slot, name) != name}
    return FleetStatus(config.name, identity.cluster_id, shard_map.epoch, shard_map.slots, problem, shards, astray)


def _troubled(shard: ShardStatus, shard_map: ShardMap) -> ShardStatus:
    slots, problem = shard_map.slots_of(shard.name), shard.problem
    if problem == NOT_YET and shard_map.epoch > PLANNED_EPOCH:
        problem = EMPTY if slots else NO_MEMBER
    return replace(shard, affected=slots, problem=problem)


def _failed(shard: ShardConfig, error: Exception) -> ShardStatus:
    if isinstance(error, ShardUnavailable):
        return ShardStatus(shard.name, shard.address, reachable=False, problem=error.reason)
    if isinstance(error, psycopg.Error):
        return ShardStatus(shard.name, shard.address, reachable=True, problem=" ".join(str(error).split()))
    raise error


def _inspect(config: ClusterConfig, shard: ShardConfig, record: Record, conn: Connection) -> ShardStatus:
    began = time.monotonic()
    conn.execute(_FLEET["ping"].on())
    answer_seconds = time.monotonic() - began
    version = conn.info.parameter_status("server_version") or str(conn.info.server_version)
    problem = _problem(config, shard, record) or _refusal_of_writes(conn)
    if problem is not None:
        return ShardStatus(
            shard.name, shard.address, True, problem, answer_seconds=answer_seconds, server_version=version
        )
    try:
        slots, backlog, running, parked = _count(conn)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        # A slot was moved away while we looked.
        slots, backlog, running, parked = _count(conn)
    executors = read_executors(conn)
    ready = sum(backlog.values(), Count())
    stranded = tuple(
        Stranded(capability, queue, count)
        for (capability, queue), count in sorted(backlog.items())
        if not any(executor.can_run(capability, queue) for executor in executors)
    )
    steps = pending(conn)
    return ShardStatus(
        name=shard.name,
        address=shard.address,
        reachable=True,
        answer_seconds=answer_seconds,
        server_version=version,
        slots=slots,
        backlog=ready,
        running=running,
        parked=parked,
        executors=executors,
        stranded=stranded,
        pending_migrations=len(steps),
        post_migrations=len(split_phases(steps)[1]),
    )


def read_writable(conn: Connection) -> tuple[bool, float, str]:
    """Whether transactions are read-only, how long (s) a commit of this role has waited for a synchronous standby, and
    ``synchronous_standby_names``."""
    return cast(tuple[bool, float, str], conn.execute(_FLEET["read_writable"].on()).fetchone())


def _refusal_of_writes(conn: Connection) -> str | None:
    """Why a shard that answers can't be written to; None: it can."""
    read_only, waited_seconds, standbys = read_writable(conn)
    if read_only:
        return "it refuses writes: default_transaction_read_only is on; see sharded-wf doctor"
    if waited_seconds > COMMIT_STUCK_SECONDS:
        return (
            f"commits wait for a synchronous standby, one for {waited_seconds:.0f} s (synchronous_standby_names is "
            f"{standbys!r}): see docs/runbooks/failover.md"
        )
    return None


def _problem(config: ClusterConfig, shard: ShardConfig, record: Record) -> str | None:
    if record.identity is None:
        return NOT_YET
    try:
        check_identity(config, shard, record.identity)
    except ConfigError as error:
        return str(error)
    return None


def _count(conn: Connection) -> tuple[tuple[int, ...], dict[tuple[str, str], Count], int, Count]:
    """What lies in the live slots: their numbers, the backlog by capability and queue, running, parked. All slots are
    asked in one round trip."""
    present = slots_present(conn)
    backlog: dict[tuple[str, str], Count] = {}
    running, parked = 0, Count()
    live: list[int] = []
    parked_query = (_CITUS if is_guarded(conn) else _FLEET)["count_parked"]
    with conn.pipeline():
        asked = [(slot, _ask(conn, slot_schema(slot), parked_query)) for slot in present]
    for slot, (fence, lanes, claimed, waiting) in asked:
        if not any(row[3] for row in fence.fetchall()):
            continue
        live.append(slot)
        for capability, queue, ready in cast(list[tuple[str, str, int]], lanes.fetchall()):
            count = Count(ready, ready < STATUS_COUNT_MAX_ROWS)
            backlog[capability, queue] = backlog.get((capability, queue), Count()) + count
        running += sum(held for (held,) in cast(list[tuple[int]], claimed.fetchall()))
        for number, exact in cast(list[tuple[int | None, bool]], waiting.fetchall()):
            parked += Count(number or 0, exact)
    return tuple(live), backlog, running, parked


_Cursor = psycopg.Cursor[tuple[object, ...]]


def _ask(conn: Connection, schema: str, parked: Query) -> tuple[_Cursor, _Cursor, _Cursor, _Cursor]:
    return (
        conn.execute(_MAP["read_fence"].on(schema)),
        conn.execute(_FLEET["count_backlog"].on(schema), (STATUS_LANES_MAX, STATUS_COUNT_MAX_ROWS)),
        conn.execute(_FLEET["count_running"].on(schema)),
        conn.execute(parked.on(schema), (STATUS_EXACT_MAX_ROWS,)),
    )


def read_executors(conn: Connection) -> tuple[ExecutorStatus, ...]:
    """The leases of a shard."""
    found: list[ExecutorStatus] = []
    for row in conn.execute(_FLEET["read_executors"].on()).fetchall():
        lease, executor, beat_age, up, idle, isolated, capabilities, queues, version, *known = row
        found.append(
            ExecutorStatus(
                id=str(lease),
                executor=str(executor),
                beat_age_seconds=cast(float, beat_age),
                up_seconds=cast(float, up),
                idle=bool(idle),
                isolated=bool(isolated),
                capabilities=tuple(cast(list[str], capabilities)),
                queues=None if queues is None else tuple(cast(list[str], queues)),
                version=str(version),
                live=cast(float, beat_age) < LEASE_SECONDS,
                control_known=cast(int, known[0]),
                slot_known=cast(int, known[1]),
            )
        )
    return tuple(found)
