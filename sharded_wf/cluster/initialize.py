"""Making a cluster out of empty databases, and adding an empty shard to one.

It can be killed at any moment and run again, and run twice at once. What makes that safe:

* Whoever initialises locks every shard, in the order of their names.
* *Decide first.* The cluster's ID and the whole placement are stored on one shard, at epoch 0, before any slot is made;
  a second run reads them and does the same thing, even if the file has changed in between.
* *Live last.* The epoch becomes 1 only when every slot exists. From then on no slot is ever made here again: a slot
  that is missing is being moved, or lost, and an empty one in its place would hide that.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg

from sharded_wf.cluster import citus
from sharded_wf.cluster.directory import check_absent
from sharded_wf.cluster.fanout import ask_each, ask_one, reason_of
from sharded_wf.cluster.shard_map import (
    FIRST_EPOCH,
    PLANNED_EPOCH,
    Identity,
    Placement,
    Record,
    check_identity,
    check_same_cluster,
    map_of,
    merge,
    raise_fences,
    read_record,
    write_record,
)
from sharded_wf.cluster.timelines import accept_primary
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterMismatch, ConfigError, MigrationBlocked, SchemaOutOfDate
from sharded_wf.limits import (
    MIGRATION_PATIENCE_SECONDS,
    POSTGRES_VERSION_MIN_NUM,
    SLOTS_DEFAULT,
    SLOTS_MAX,
    STATUS_DEADLINE_SECONDS,
)
from sharded_wf.postgres.connect import Connection, connection
from sharded_wf.postgres.failures import unavailable
from sharded_wf.postgres.migrate import migrate, pending, unknown_to_us
from sharded_wf.postgres.queries import load
from sharded_wf.routing import HASH_NAME, HASH_SEED, ShardMap

_SQL = load("shard_map")
_LOCK_TIMEOUT = f"{int(MIGRATION_PATIENCE_SECONDS * 1000)}ms"


@dataclass(frozen=True, slots=True)
class Initialized:
    """What was there at the end. ``created``: this call made the cluster, or finished its making; ``joined``: the
    shards that this call added to an existing cluster."""

    cluster_id: uuid.UUID
    shard_map: ShardMap
    created: bool
    joined: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    identity: Identity
    placements: tuple[Placement, ...]
    decided: bool
    live: bool
    records: Mapping[str, Record]
    notes: citus.Notes | None

    def identity_of(self, shard: str) -> Identity:
        own = self.identity
        return Identity(own.cluster_id, own.name, shard, own.slots, own.hash, own.hash_seed)

    def slots_of(self, shard: str) -> list[int]:
        return [row.slot for row in self.placements if row.shard == shard]


def init_cluster(config: ClusterConfig, slots: int | None = None) -> Initialized:
    """Make the cluster: a control schema on every shard, and the slots dealt out to the shards in turn (slot 0 to the
    first shard of the file, slot 1 to the second, …; to those with more weight oftener), so that a later splitting of
    slots, which goes by their numbers, falls on all shards alike. ``slots``: how many, 48 unless said.

    Where the cluster exists, nothing happens to it; shards that are new in the configuration join it, without slots.

    Raises ``ShardUnavailable`` (all must be reachable), ``ClusterMismatch`` if a shard belongs to another cluster or
    was made with another number of slots, ``ConfigError`` for what can't work,
    ``SchemaOutOfDate`` if a shard shall join while an upgrade is under way; nothing is written then.

    Of a Citus cluster the nodes are the shards, and Citus itself deals out the slots.
    """
    config = citus.resolve(config)
    if slots is not None and not len(config.shards) <= slots <= SLOTS_MAX:
        raise ConfigError(f"{slots} slots for {len(config.shards)} shards: choose {len(config.shards)} to {SLOTS_MAX}")
    with _locked(config):
        looks = ask_each(config.shards, _look, purpose="init", deadline_seconds=MIGRATION_PATIENCE_SECONDS)
        plan = _plan(config, slots, looks.all_or_raise())
        shard_map = map_of(config, plan.identity, plan.placements)
        if not plan.decided:
            first = min(config.shards, key=lambda shard: shard.name)
            ask_one(first, lambda shard, conn: _store(plan, shard, conn), purpose="init", deadline_seconds=None)
        joined = tuple(name for name, record in plan.records.items() if record.identity is None) if plan.live else ()
        if joined:
            _check_migrated(config, plan)
        ask_each(
            config.shards, lambda shard, conn: _build(plan, shard, conn), purpose="init", deadline_seconds=None
        ).all_or_raise()
        for name in joined:  # a shard of this name may have been on another server before
            accept_primary(config, name)
        if not plan.live:
            shard_map = _go_live(config, plan)
    return Initialized(plan.identity.cluster_id, shard_map, created=not plan.live, joined=joined)


@contextmanager
def _locked(config: ClusterConfig) -> Generator[None]:
    """Nobody else initialises any of the shards meanwhile. The sessions share a name that nobody else has; so two DSNs
    that lead to one database show."""
    purpose = f"init {uuid.uuid4().hex[:16]}"
    with ExitStack() as held:
        for shard in sorted(config.shards, key=lambda shard: shard.name):
            try:
                conn = held.enter_context(connection(shard.dsn, purpose=purpose, deadline_seconds=None))
                check_server(shard, conn)
                twins = conn.execute(_SQL["count_twins"].on(), (f"sharded_wf {purpose}",)).fetchone()
                if twins is not None and twins != (1,) and twins != (0,):
                    raise ConfigError(
                        f"{config.source}: the database of [[shard]] {shard.name!r} ({shard.address}) is that of "
                        "another shard, too; each shard is a database of its own"
                    )
                conn.autocommit = False  # held until the connection is closed, by us or by our death
                conn.execute(_SQL["prepare_lock"].on(), (_LOCK_TIMEOUT,))
                conn.execute(_SQL["lock_cluster"].on())
            except psycopg.errors.LockNotAvailable:
                raise MigrationBlocked(
                    f"somebody else has been initialising shard {shard.name!r} for {MIGRATION_PATIENCE_SECONDS:g} s"
                ) from None
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                raise unavailable(shard.name, error, reason_of(error)) from None
        yield


def check_server(shard: ShardConfig, conn: Connection) -> None:
    """Raises ``ConfigError`` if this server or database can't be a shard."""
    if conn.info.server_version < POSTGRES_VERSION_MIN_NUM:
        found, wanted = conn.info.server_version // 10_000, POSTGRES_VERSION_MIN_NUM // 10_000
        raise ConfigError(f"shard {shard.name!r} is PostgreSQL {found}; {wanted} or later is needed")
    encoding = conn.execute(_SQL["read_encoding"].on()).fetchone()
    if encoding != ("UTF8",):
        raise ConfigError(
            f"the database of shard {shard.name!r} ({shard.address}) has the encoding {(encoding or ('?',))[0]}, which "
            "can't hold every text; make it anew: "
            f"create database {conn.info.dbname} encoding 'UTF8' template template0"
        )


def _look(_shard: ShardConfig, conn: Connection) -> Record:
    return read_record(conn)


def _plan(config: ClusterConfig, slots: int | None, records: Mapping[str, Record]) -> _Plan:
    """What there shall be: what was decided before, if anything was. Raises before anything is written."""
    identities = {name: record.identity for name, record in records.items() if record.identity is not None}
    if not identities:
        count = slots or max(SLOTS_DEFAULT, len(config.shards))
        dealt, notes = _deal(config, count), None
        if config.coordinator is not None:
            dealt, notes = citus.make_slots(config, count), citus.read_notes(config)
        placements = tuple(Placement(slot, name, PLANNED_EPOCH) for slot, name in enumerate(dealt))
        identity = Identity(uuid.uuid4(), config.name, config.shards[0].name, count, HASH_NAME, HASH_SEED)
        return _Plan(identity, placements, decided=False, live=False, records=records, notes=notes)
    for name, identity in identities.items():
        check_identity(config, config.shard(name), identity)
    identity = check_same_cluster(identities)
    if slots is not None and slots != identity.slots:
        raise ClusterMismatch(
            f"the cluster {identity.name!r} was made with {identity.slots} slots, not {slots}: leave --slots out; "
            "sharded-wf shards split gives it twice as many"
        )
    placements = merge(record.placements for record in records.values())
    shard_map = map_of(config, identity, placements)
    live = shard_map.epoch > PLANNED_EPOCH
    if live:
        for name in records.keys() - identities.keys():
            check_absent(config.shard(name), shard_map)
    notes = None if config.coordinator is None else citus.read_notes(config)
    return _Plan(identity, placements, decided=True, live=live, records=records, notes=notes)


def _check_migrated(config: ClusterConfig, plan: _Plan) -> None:
    """Who joins gets the tables of this version of the code; so the others must have just these. Raises
    ``SchemaOutOfDate``."""

    def look(shard: ShardConfig, conn: Connection) -> None:
        if todo := pending(conn):
            raise SchemaOutOfDate(
                f"shard {shard.name!r} has migrations to apply ({todo[0].label}); run sharded-wf shards migrate, and "
                "then let others join"
            )
        if newer := unknown_to_us(conn):
            raise SchemaOutOfDate(
                f"shard {shard.name!r} has a migration that this version does not know ({newer}); let others join with "
                "the newer sharded-wf"
            )

    members = [shard for shard in config.shards if plan.records[shard.name].identity is not None]
    ask_each(members, look, purpose="init", deadline_seconds=STATUS_DEADLINE_SECONDS).all_or_raise()


def _deal(config: ClusterConfig, count: int) -> Iterable[str]:
    """The shards of the slots 0, 1, …: each slot to the shard that is furthest behind its share, of equal ones to the
    first; so shards of equal weight take turns."""
    held = {shard.name: 0 for shard in config.shards}
    weighed = [shard for shard in config.shards if shard.weight]
    for _ in range(count):
        name = min(weighed, key=lambda shard: (held[shard.name] + 1) / shard.weight).name
        held[name] += 1
        yield name


def _store(plan: _Plan, shard: ShardConfig, conn: Connection) -> None:
    if plan.notes is not None:
        citus.make_control(conn, plan.notes)
    migrate(conn, ())
    write_record(conn, plan.identity_of(shard.name), plan.placements)


def _build(plan: _Plan, shard: ShardConfig, conn: Connection) -> None:
    """Everything on one shard up to, but not including, the first epoch."""
    if plan.records[shard.name].identity is None:
        _store(plan, shard, conn)
    elif plan.live:
        # A shard that was down may have an old copy of the map.
        write_record(conn, plan.identity_of(shard.name), plan.placements)
    if not plan.live:
        slots = plan.slots_of(shard.name)
        if pending(conn, slots):
            migrate(conn, slots)
        raise_fences(conn, shard.name, slots)


def _go_live(config: ClusterConfig, plan: _Plan) -> ShardMap:
    placements = tuple(Placement(row.slot, row.shard, FIRST_EPOCH) for row in plan.placements)

    def go_live(shard: ShardConfig, conn: Connection) -> None:
        write_record(conn, plan.identity_of(shard.name), placements)

    ask_each(config.shards, go_live, purpose="init", deadline_seconds=MIGRATION_PATIENCE_SECONDS).all_or_raise()
    return map_of(config, plan.identity, placements)
