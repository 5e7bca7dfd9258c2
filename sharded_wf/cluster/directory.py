"""What a process must know of the cluster before it does anything, checked.

Shards that can't be reached are tolerated as long as one answers: a shard that is down delays only its own slots, also
for a process that starts while it is down. What is wrong, rather than away, is never tolerated.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from sharded_wf.cluster import citus
from sharded_wf.cluster.shard_map import (
    PLANNED_EPOCH,
    Placement,
    Record,
    check_identity,
    check_same_cluster,
    map_of,
    merge,
    read_record,
)
from sharded_wf.cluster.timelines import ask_primaries, write_down
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterMismatch, ClusterNotInitialized, SchemaOutOfDate, ShardUnavailable
from sharded_wf.limits import CONNECT_TIMEOUT_SECONDS, MAP_RELOAD_PATIENCE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import check_schema, slots_present
from sharded_wf.routing import ShardMap

NO_MEMBER = "not part of the cluster: let it join (sharded-wf shards add); if it was removed, delete its [[shard]]"


@dataclass(frozen=True, slots=True)
class Directory:
    """The cluster as it was found. ``shards`` are those that belong to it, reachable or not; one that the
    configuration names and that has not joined the cluster yet (``shards init``) is left out. ``unreachable``: why, by
    shard. ``placements``: the map, each slot with its own epoch. ``present``: the slots that each shard was found to
    hold. ``versions``: by shard, a number that grows with each change of its copy of the map."""

    cluster_id: uuid.UUID
    name: str
    shard_map: ShardMap
    shards: tuple[ShardConfig, ...]
    unreachable: Mapping[str, str]
    placements: tuple[Placement, ...]
    present: Mapping[str, frozenset[int]]
    versions: Mapping[str, int]

    def away(self, shard_map: ShardMap) -> frozenset[int]:
        """Slots that are not where this map says, though their shard answered: they are just being moved."""
        return frozenset(
            slot for name, slots in self.present.items() for slot in shard_map.slots_of(name) if slot not in slots
        )


def load_map(config: ClusterConfig, *, lenient: bool = False) -> Directory:
    """Ask every shard for the shard map, and check that all of it fits together. Blocks for as long as the slowest
    shard, some seconds at most. ``lenient``, for whoever runs already: slots may lie on shards that the
    configuration does not name, and a shard that hangs is not waited for.

    Raises ``ClusterNotInitialized``; ``ClusterMismatch`` if cluster, shards, slots or hash are not what the databases
    hold; ``SchemaOutOfDate``; ``ShardUnavailable`` if no shard answers that knows the cluster.
    """
    config = citus.resolve(config)
    answers, copies = ask_primaries(
        config.shards,
        _look,
        purpose="directory",
        deadline_seconds=CONNECT_TIMEOUT_SECONDS,
        patience_seconds=MAP_RELOAD_PATIENCE_SECONDS if lenient else None,
    )
    write_down(config.shards, copies)
    unreachable: dict[str, str] = {}
    for name, error in answers.failed.items():
        if not isinstance(error, ShardUnavailable):
            raise error
        unreachable[name] = error.reason
    records = {name: record for name, (record, _) in answers.given.items()}
    identities = {name: record.identity for name, record in records.items() if record.identity is not None}
    if not identities:
        if unreachable:
            # Those that answer may be new ones, and the cluster on those that don't.
            raise next(iter(answers.failed.values()))
        raise ClusterNotInitialized(f"the shards of {config.source} hold no cluster yet; run: sharded-wf shards init")
    for name, identity in identities.items():
        check_identity(config, config.shard(name), identity)
    identity = check_same_cluster(identities)
    placements = merge(record.placements for record in records.values())
    shard_map = map_of(config, identity, placements, lenient=lenient)
    if shard_map.epoch == PLANNED_EPOCH:
        raise ClusterNotInitialized(
            f"the making of the cluster {config.name!r} was interrupted, or is under way; run: sharded-wf shards init"
        )
    absent = {name for name in records if name not in identities}
    for name in absent:
        check_absent(config.shard(name), shard_map)
    shards = tuple(shard for shard in config.shards if shard.name not in absent)
    present = {name: slots for name, (_, slots) in answers.given.items()}
    versions = {name: sum(row.epoch for row in record.placements) for name, record in records.items()}
    return Directory(identity.cluster_id, identity.name, shard_map, shards, unreachable, placements, present, versions)


def check_absent(shard: ShardConfig, shard_map: ShardMap) -> None:
    """A database that knows of no cluster must hold no slot of it; ``ClusterMismatch`` if the map says otherwise."""
    if slots := shard_map.slots_of(shard.name):
        raise ClusterMismatch(
            f"shard {shard.name!r} should hold {len(slots)} slots, but its database ({shard.address}) is empty: it is "
            "the wrong database, or its data are lost; correct the DSN, or restore a backup"
        )


def _look(shard: ShardConfig, conn: Connection) -> tuple[Record, frozenset[int]]:
    record = read_record(conn)
    if record.identity is not None and any(row.epoch > PLANNED_EPOCH for row in record.placements):
        try:
            check_schema(conn)
        except SchemaOutOfDate as error:
            raise SchemaOutOfDate(f"shard {shard.name!r}: {error}") from None
    return record, frozenset(slots_present(conn))
