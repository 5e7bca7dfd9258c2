"""The shard map: every hash has one slot, and splitting a slot moves only what was in it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.limits import SLOTS_MAX
from sharded_wf.routing import ShardMap, slot_schema

hashes = st.integers(0, 2**32 - 1)


def grown(base: int, count: int) -> ShardMap:
    return ShardMap(1, tuple(f"s{slot % 3}" for slot in range(count)), base=base)


@given(hashes, st.integers(1, SLOTS_MAX))
def test_without_a_split_the_slot_is_the_remainder(hashed: int, slots: int) -> None:
    assert grown(slots, slots).slot_of_hash(hashed) == hashed % slots


@given(hashes, st.integers(1, 300), st.integers(0, 1500))
def test_a_split_moves_only_hashes_of_the_slot_that_splits(hashed: int, base: int, more: int) -> None:
    before, after = grown(base, base + more), grown(base, base + more + 1)
    width = base
    while width * 2 <= base + more:
        width *= 2
    splitting, made = base + more - width, base + more
    old, new = before.slot_of_hash(hashed), after.slot_of_hash(hashed)
    assert new == old or (old, new) == (splitting, made)


@given(st.integers(1, 60), st.integers(0, 200))
def test_every_slot_is_some_hashs_slot(base: int, more: int) -> None:
    shard_map = grown(base, base + more)
    assert {shard_map.slot_of_hash(hashed) for hashed in range(4 * (base + more))} == set(range(base + more))


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 100), st.integers(0, 100))
def test_an_id_and_its_shard_agree(workflow_id: str, base: int, more: int) -> None:
    shard_map = grown(base, base + more)
    slot = shard_map.slot_of(workflow_id)
    assert slot in shard_map.slots_of(shard_map.shard_of(workflow_id))
    assert shard_map.shard_of_slot(slot) == shard_map.shard_of(workflow_id)


def test_the_shards_share_the_slots_out() -> None:
    shard_map = ShardMap(7, ("b", "a", "b", "c"))
    assert shard_map.shards == ("b", "a", "c")
    assert [shard_map.slots_of(shard) for shard in ("a", "b", "c", "d")] == [(1,), (0, 2), (3,), ()]
    assert (shard_map.slots, shard_map.base, shard_map.epoch) == (4, 4, 7)


def test_ids_spread_evenly() -> None:
    shard_map = grown(48, 48)
    counts = Counter(shard_map.slot_of(f"order-{number}") for number in range(48_000))
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_there_is_no_slot_outside_the_map() -> None:
    shard_map = grown(4, 4)
    for slot in (-1, 4):
        with pytest.raises(IndexError):
            shard_map.shard_of_slot(slot)


@pytest.mark.parametrize(("count", "base"), [(0, 0), (3, 4), (SLOTS_MAX + 1, 0)])
def test_an_impossible_map_is_refused(count: int, base: int) -> None:
    with pytest.raises(ValueError, match="shard map"):
        ShardMap(1, ("a",) * count, base=base)


def test_slot_schemas_sort_as_their_slots() -> None:
    assert slot_schema(7) == "wf_0007"
    assert slot_schema(SLOTS_MAX - 1) == "wf_4095"
