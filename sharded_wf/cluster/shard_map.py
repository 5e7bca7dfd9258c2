"""What a shard stores about the cluster: who it is, its copy of the shard map, and the fences of its slots.

Every shard has a copy, and copies may be old: a shard that was down misses changes. So copies are merged slot by slot,
and for each slot the highest epoch wins. Epoch 0 means *planned*: the cluster is being made (``initialize``).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from sharded_wf.config import LONE_NAME, ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterMismatch
from sharded_wf.limits import SLOTS_MAX
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.queries import load
from sharded_wf.routing import HASH_NAME, HASH_SEED, ShardMap, children_of, parent_of, slot_schema, width_of

PLANNED_EPOCH = 0
FIRST_EPOCH = 1

_SQL = load("shard_map")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a shard says it is. All but ``shard`` is the same on every shard of the cluster; nothing of it ever changes.
    ``slots`` is the number that the cluster was made with."""

    cluster_id: uuid.UUID
    name: str
    shard: str
    slots: int
    hash: str
    hash_seed: int


@dataclass(frozen=True, slots=True)
class Placement:
    """One row of the shard map: at this epoch, the slot came to lie on the shard."""

    slot: int
    shard: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Record:
    """What one shard stores about the cluster; a database without a cluster has no identity."""

    identity: Identity | None
    placements: tuple[Placement, ...] = ()


def read_record(conn: Connection) -> Record:
    """What the database on the other end stores about the cluster."""
    found = conn.execute(_SQL["has_cluster"].on()).fetchone()
    if found is None or not found[0]:
        return Record(None)
    row = conn.execute(_SQL["read_cluster"].on()).fetchone()
    if row is None:
        return Record(None)
    cluster_id, name, shard, slots, hash_name, hash_seed = row
    identity = Identity(
        cast(uuid.UUID, cluster_id), str(name), str(shard), cast(int, slots), str(hash_name), cast(int, hash_seed)
    )
    rows = conn.execute(_SQL["read_shard_map"].on()).fetchall()
    return Record(identity, tuple(Placement(cast(int, slot), str(at), cast(int, epoch)) for slot, at, epoch in rows))


def write_record(conn: Connection, identity: Identity, placements: Iterable[Placement]) -> None:
    """Store identity and map copy in one transaction. Rows of the map only ever go to higher epochs. Raises
    ``ClusterMismatch`` if the database is, or by now has become, another shard."""
    with conn.transaction():
        values = (identity.cluster_id, identity.name, identity.shard, identity.slots, identity.hash, identity.hash_seed)
        conn.execute(_SQL["write_cluster"].on(), values)
        stored = read_record(conn).identity
        if stored != identity:
            raise ClusterMismatch(f"the database of shard {identity.shard!r} is something else by now: {stored}")
        write_placements(conn, placements)


def write_placements(conn: Connection, placements: Iterable[Placement]) -> None:
    """Raise rows of this shard's copy of the map to higher epochs; rows that are as new already stay."""
    rows = list(placements)
    conn.execute(
        _SQL["write_shard_map"].on(),
        ([row.slot for row in rows], [row.shard for row in rows], [row.epoch for row in rows]),
    )


def raise_fences(conn: Connection, shard: str, slots: Iterable[int]) -> None:
    """New slots go live on this shard. A fence that is there and says otherwise is a ``ClusterMismatch``."""
    with conn.transaction():
        for slot in slots:
            schema = slot_schema(slot)
            conn.execute(_SQL["raise_fence"].on(schema), (slot, shard, FIRST_EPOCH))
            fence = conn.execute(_SQL["read_fence"].on(schema)).fetchone()
            if fence != (slot, shard, FIRST_EPOCH, True):
                raise ClusterMismatch(f"{schema} on shard {shard!r} is not new: its fence says {fence}")


def check_identity(config: ClusterConfig, shard: ShardConfig, identity: Identity) -> None:
    """Whether the database is the shard that the configuration says, and routes as this process does; raises
    ``ClusterMismatch`` if not."""
    where = f"shard {shard.name!r} ({shard.address})"
    if identity.name != config.name and config.name == shard.name == LONE_NAME:
        raise ClusterMismatch(
            f"{where} belongs to the cluster {identity.name!r}; {config.source} is a DSN, which stands for a "
            "cluster of one shard that was made by that DSN alone: name the cluster's shards.toml"
        )
    if identity.name != config.name:
        raise ClusterMismatch(
            f"{where} belongs to the cluster {identity.name!r}, and {config.source} names the cluster {config.name!r}"
        )
    if identity.shard != shard.name:
        raise ClusterMismatch(f"{where} is in truth the shard {identity.shard!r}: correct the DSNs in {config.source}")
    if (identity.hash, identity.hash_seed) != (HASH_NAME, HASH_SEED):
        raise ClusterMismatch(
            f"{where} hashes with {identity.hash}, seed {identity.hash_seed}, and this version of sharded-wf with "
            f"{HASH_NAME}, seed {HASH_SEED}: it would look for workflows in the wrong slots"
        )


def check_same_cluster(identities: Mapping[str, Identity]) -> Identity:
    """One of the identities (at least one is needed), if they are of one cluster; else ``ClusterMismatch``."""
    (first_shard, first), *others = identities.items()
    for shard, identity in others:
        if identity.cluster_id != first.cluster_id:
            raise ClusterMismatch(
                f"shards {first_shard!r} and {shard!r} belong to two clusters, both named {first.name!r}"
            )
        if identity.slots != first.slots:
            raise ClusterMismatch(
                f"shard {first_shard!r} was made with {first.slots} slots, {shard!r} with {identity.slots}"
            )
    return first


def merge(copies: Iterable[Iterable[Placement]]) -> tuple[Placement, ...]:
    """The newest placement of every slot, by slot. ``ClusterMismatch`` if two copies disagree at the same epoch."""
    newest: dict[int, Placement] = {}
    for copy in copies:
        for row in copy:
            known = newest.get(row.slot)
            if known is None or row.epoch > known.epoch:
                newest[row.slot] = row
            elif row.epoch == known.epoch and row.shard != known.shard:
                raise ClusterMismatch(
                    f"two copies of the shard map disagree: at epoch {row.epoch} slot {row.slot} lies on "
                    f"{known.shard!r} and on {row.shard!r}"
                )
    return tuple(newest[slot] for slot in sorted(newest))


def map_of(
    config: ClusterConfig, identity: Identity, placements: tuple[Placement, ...], *, lenient: bool = False
) -> ShardMap:
    """The merged placements as a ``ShardMap``. ``ClusterMismatch`` if slots are missing, or lie on a shard that the
    configuration does not name (unless ``lenient``)."""
    slots, base = [row.slot for row in placements], identity.slots
    if slots[:base] != list(range(base)):
        raise ClusterMismatch(f"the shard map has gaps: the cluster was made with {base} slots, and it names {slots}")
    if any(width_of(slot, base) > SLOTS_MAX for slot in slots):
        raise ClusterMismatch(f"the shard map names slot {slots[-1]}: slots were split more often than can be")
    live = live_slots(placements, base)
    named = {shard.name for shard in config.shards}
    if not lenient and (unnamed := sorted(set(live.values()) - named)):
        raise ClusterMismatch(
            f"the cluster also has {', '.join(unnamed)}, which {config.source} does not name: add a [[shard]] for each"
        )
    return ShardMap(max(row.epoch for row in placements), live, base)


def live_slots(placements: Iterable[Placement], base: int) -> dict[int, str]:
    """The slots that there are, and where they lie: those of the merged placements that were not split. Rows of a slot
    are never removed: it is its children's rows that say it was split. A copy of the map may know of one child, which
    has moved to that copy's shard, and not of the other: that one lies where the slot lay."""
    known = {row.slot: row.shard for row in placements}
    split: set[int] = set()
    for slot in known:
        parent = parent_of(slot, base)
        while parent is not None and parent not in split:
            split.add(parent)
            parent = parent_of(parent, base)
    found: dict[int, str] = {}
    left = [(slot, known[slot]) for slot in range(base)]
    while left:
        slot, shard = left.pop()
        if slot in split:
            left += [(child, known.get(child, shard)) for child in children_of(slot, base)]
        else:
            found[slot] = shard
    return found
