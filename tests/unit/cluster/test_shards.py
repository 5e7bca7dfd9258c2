"""What a running process makes of the maps that it reads anew."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.cluster.directory import Directory
from sharded_wf.cluster.shard_map import Placement, live_slots, merge
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.cluster.writer import SlotMoved
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.model.workflow import Start
from sharded_wf.routing import ShardMap, children_of, width_of

SHARDS = (ShardConfig("pg1", "host=a"), ShardConfig("pg2", "host=b"))
CONFIG = ClusterConfig("shop", SHARDS)


def directory(rows: dict[int, tuple[str, int]], present: dict[str, set[int]]) -> Directory:
    placements = tuple(Placement(slot, shard, epoch) for slot, (shard, epoch) in rows.items())
    found = ShardMap(max(row.epoch for row in placements), live_slots(placements, 2), 2)
    here = {name: frozenset(slots) for name, slots in present.items()}
    return Directory(uuid.UUID(int=1), "shop", found, SHARDS, {}, placements, here, {})


def test_each_slot_has_an_epoch_of_its_own() -> None:
    """The shard that knows best did not answer: what was learned from it before stays."""
    shards = ShardSet(CONFIG, ShardMap(1, {0: "pg1", 1: "pg1"}), SHARDS, SYSTEM_CLOCK)
    told: list[dict[int, str]] = []
    shards.on_change.append(lambda: told.append(dict(shards.map.placement)))
    shards._adopt(directory({0: ("pg2", 2), 1: ("pg1", 1)}, {"pg1": {1}, "pg2": {0}}))
    assert (shards.map.placement, shards.map.epoch, shards.away) == ({0: "pg2", 1: "pg1"}, 2, frozenset())
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg1", 1)}, {"pg1": {1}}))
    assert shards.map.placement == {0: "pg2", 1: "pg1"}
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg2", 2)}, {"pg1": set()}))
    assert shards.map.placement == {0: "pg2", 1: "pg2"}
    assert told == [{0: "pg2", 1: "pg1"}, {0: "pg2", 1: "pg2"}]
    assert shards.shards["pg2"].slots == (0, 1)


def test_a_slot_is_away_only_if_its_shard_says_so() -> None:
    shards = ShardSet(CONFIG, ShardMap(1, {0: "pg1", 1: "pg2"}), SHARDS, SYSTEM_CLOCK)
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg2", 1)}, {"pg1": set()}))
    assert shards.away == {0}
    made = shards.id_maker()
    assert {shards.map.slot_of(made()) for _ in range(20)} == {1}
    shards._adopt(directory({0: ("pg1", 1), 1: ("pg2", 1)}, {"pg1": {0}}))
    assert shards.away == frozenset()


def test_a_slot_that_was_split_is_there_no_more() -> None:
    """Slot 1 of 2 is 3 and 5 now; then 5 is 9 and 13. What a look did not see stays known."""
    shards = ShardSet(CONFIG, ShardMap(1, {0: "pg1", 1: "pg2"}), SHARDS, SYSTEM_CLOCK)
    old = {0: ("pg1", 1), 1: ("pg2", 1)}
    shards._adopt(directory({**old, 3: ("pg2", 2), 5: ("pg2", 2)}, {"pg1": {0}, "pg2": {3, 5}}))
    assert (shards.map.placement, shards.map.epoch, shards.away) == ({0: "pg1", 3: "pg2", 5: "pg2"}, 2, frozenset())
    assert shards.shards["pg2"].slots == (3, 5)
    shards._adopt(directory(old, {"pg1": {0}}))
    assert shards.map.placement == {0: "pg1", 3: "pg2", 5: "pg2"}
    shards._adopt(directory({**old, 9: ("pg2", 3), 13: ("pg1", 4)}, {"pg1": {0, 13}, "pg2": {3, 9}}))
    assert shards.map.placement == {0: "pg1", 3: "pg2", 9: "pg2", 13: "pg1"}
    assert shards.shards["pg1"].slots == (0, 13)


def test_what_was_meant_for_a_slot_that_was_split_is_routed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each workflow's ID, and not to where the slot went: there is no such place."""
    shards = ShardSet(CONFIG, ShardMap(1, {0: "pg1", 1: "pg2"}), SHARDS, SYSTEM_CLOCK)
    rows = {0: ("pg1", 1), 1: ("pg2", 1), 2: ("pg1", 2), 4: ("pg2", 3)}
    split = directory(rows, {"pg1": {2}, "pg2": {1, 4}})
    monkeypatch.setattr(shards, "_load", lambda: split)
    written: dict[str, list[tuple[int, str]]] = {"pg1": [], "pg2": []}

    def writer_of(name: str) -> Any:
        async def start(given: Sequence[tuple[int, Start]], *, wait_seconds: float | None) -> dict[str, Any]:
            for slot, _ in given:
                if slot not in split.present[name]:
                    raise SlotMoved(name, slot)
            written[name] += [(slot, one.id) for slot, one in given]
            return {}

        return start

    for name, shard in shards.shards.items():
        monkeypatch.setattr(shard.writer, "start", writer_of(name))
    starts = [Start(f"w{number}", "app/flow", "app", "default", 0, b"null") for number in range(40)]
    asyncio.run(shards.start(starts))
    newer = split.shard_map
    assert sorted(pair for pairs in written.values() for pair in pairs) == sorted(
        (newer.slot_of(one.id), one.id) for one in starts
    )
    assert {name: {slot for slot, _ in pairs} for name, pairs in written.items()} == {"pg1": {2}, "pg2": {1, 4}}


@given(st.integers(1, 6), st.data())
def test_copies_that_know_a_part_make_a_map(base: int, data: st.DataObject) -> None:
    """Splits and moves in any order, each noted on the shard where the slot then lies, and on those that were told: all
    shards together know the map, and every copy by itself makes one in which each hash has a slot."""
    begun = [Placement(slot, f"pg{slot % 3}", 1) for slot in range(base)]
    copies = {f"pg{number}": list(begun) for number in range(3)}
    live = {row.slot: row.shard for row in begun}
    for epoch in range(2, data.draw(st.integers(2, 12))):
        slot = data.draw(st.sampled_from(sorted(live)))
        if data.draw(st.booleans()) and width_of(slot, base) < 64:
            at = live.pop(slot)
            rows = [Placement(half, at, epoch) for half in children_of(slot, base)]
        else:
            at = data.draw(st.sampled_from(sorted(copies)))
            rows = [Placement(slot, at, epoch)]
        live |= {row.slot: row.shard for row in rows}
        for told in {at, *data.draw(st.sets(st.sampled_from(sorted(copies))))}:
            copies[told] += rows
    assert live_slots(merge(copies.values()), base) == dict(sorted(live.items()))
    for copy in copies.values():
        ShardMap(1, live_slots(merge([copy]), base), base)
