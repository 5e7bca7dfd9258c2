"""What a running process makes of the maps that it reads anew."""

from __future__ import annotations

import uuid

from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.cluster.directory import Directory
from sharded_wf.cluster.shard_map import Placement
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.routing import ShardMap

SHARDS = (ShardConfig("pg1", "host=a"), ShardConfig("pg2", "host=b"))
CONFIG = ClusterConfig("shop", SHARDS)


def directory(rows: dict[int, tuple[str, int]], present: dict[str, set[int]]) -> Directory:
    placements = tuple(Placement(slot, shard, epoch) for slot, (shard, epoch) in rows.items())
    found = ShardMap(max(row.epoch for row in placements), tuple(row.shard for row in placements))
    here = {name: frozenset(slots) for name, slots in present.items()}
    return Directory(uuid.UUID(int=1), "shop", found, SHARDS, {}, placements, here)


def test_each_slot_has_an_epoch_of_its_own() -> None:
    """The shard that knows best did not answer: what was learned from it before stays."""
    shards = ShardSet(CONFIG, ShardMap(1, ("pg1", "pg1")), SHARDS, SYSTEM_CLOCK)
    told: list[tuple[str, ...]] = []
    shards.on_change.append(lambda: told.append(shards.map.placement))
    shards._adopt(directory({0: ("pg2", 2), 1: ("pg1", 1)}, {"pg1": {1}, "pg2": {0}}))
    assert (shards.map.placement, shards.map.epoch, shards.away) == (("pg2", "pg1"), 2, frozenset())
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg1", 1)}, {"pg1": {1}}))
    assert shards.map.placement == ("pg2", "pg1")
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg2", 2)}, {"pg1": set()}))
    assert shards.map.placement == ("pg2", "pg2")
    assert told == [("pg2", "pg1"), ("pg2", "pg2")]
    assert shards.shards["pg2"].slots == (0, 1)


def test_a_slot_is_away_only_if_its_shard_says_so() -> None:
    shards = ShardSet(CONFIG, ShardMap(1, ("pg1", "pg2")), SHARDS, SYSTEM_CLOCK)
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg2", 1)}, {"pg1": set()}))
    assert shards.away == {0}
    made = shards.id_maker()
    assert {shards.map.slot_of(made()) for _ in range(20)} == {1}
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg2", 1)}, {"pg1": {0}}))
    assert shards.away == frozenset()
