"""The shard map: every hash has one slot, and splitting a slot moves only what was in it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.limits import SLOTS_MAX
from sharded_wf.routing import ShardMap, children_of, parent_of, remainder_of, slot_schema, width_of

hashes = st.integers(0, 2**32 - 1)


def whole(slots: int) -> ShardMap:
    return ShardMap(1, {slot: f"s{slot % 3}" for slot in range(slots)})


def split(shard_map: ShardMap, slot: int) -> ShardMap:
    placement, base = dict(shard_map.placement), shard_map.base
    shard = placement.pop(slot)
    return ShardMap(shard_map.epoch + 1, placement | dict.fromkeys(children_of(slot, base), shard), base)


def grown(base: int, splits: int, seed: int = 0) -> ShardMap:
    """A cluster in which so many slots were split, in any order."""
    chance = random.Random(seed)
    shard_map = whole(base)
    for _ in range(splits):
        narrow = [slot for slot in shard_map.placement if width_of(slot, base) * 2 <= min(SLOTS_MAX, base * 16)]
        if narrow:
            shard_map = split(shard_map, chance.choice(narrow))
    return shard_map


@given(hashes, st.integers(1, SLOTS_MAX))
def test_without_a_split_the_slot_is_the_remainder(hashed: int, slots: int) -> None:
    assert whole(slots).slot_of_hash(hashed) == hashed % slots


@given(hashes, st.integers(1, 100), st.integers(0, 60), st.integers(0))
def test_a_split_moves_only_hashes_of_the_slot_that_splits(hashed: int, base: int, splits: int, seed: int) -> None:
    before = grown(base, splits, seed)
    old = before.slot_of_hash(hashed)
    for slot in list(before.placement)[:: max(len(before.placement) // 4, 1)]:
        new = split(before, slot).slot_of_hash(hashed)
        assert new in children_of(slot, base) if old == slot else new == old


@given(hashes, st.integers(1, 100), st.integers(0, 60), st.integers(0))
def test_a_slot_holds_the_hashes_of_its_remainder(hashed: int, base: int, splits: int, seed: int) -> None:
    slot = grown(base, splits, seed).slot_of_hash(hashed)
    assert hashed % width_of(slot, base) == remainder_of(slot, base)


@given(st.integers(1, 60), st.integers(0, 200), st.integers(0))
def test_every_slot_is_some_hashs_slot(base: int, splits: int, seed: int) -> None:
    shard_map = grown(base, splits, seed)
    assert {shard_map.slot_of_hash(hashed) for hashed in range(base * 16)} == set(shard_map.placement)
    assert shard_map.slots == len(shard_map.placement)


@given(st.integers(0, 2 * SLOTS_MAX), st.integers(1, SLOTS_MAX))
def test_a_number_is_a_slots_for_ever(slot: int, base: int) -> None:
    """No two sets of hashes have the same number: a slot is its parent's child and no other's."""
    lower, higher = children_of(slot, base)
    assert parent_of(lower, base) == parent_of(higher, base) == slot
    assert (width_of(lower, base), width_of(higher, base)) == (2 * width_of(slot, base),) * 2
    assert remainder_of(lower, base) == remainder_of(slot, base)
    assert remainder_of(higher, base) == remainder_of(slot, base) + width_of(slot, base)
    if slot >= base:
        assert slot in children_of(parent_of(slot, base) or 0, base)
    else:
        assert (parent_of(slot, base), width_of(slot, base), remainder_of(slot, base)) == (None, base, slot)


def test_the_numbers_of_a_doubled_cluster() -> None:
    assert children_of(7, 48) == (55, 103)
    doubled = whole(48)
    for slot in range(48):
        doubled = split(doubled, slot)
    assert list(doubled.placement) == list(range(48, 144))
    assert [doubled.slot_of_hash(hashed) for hashed in (0, 47, 48, 95, 96)] == [48, 95, 96, 143, 48]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 100), st.integers(0, 60), st.integers(0))
def test_an_id_and_its_shard_agree(workflow_id: str, base: int, splits: int, seed: int) -> None:
    shard_map = grown(base, splits, seed)
    slot = shard_map.slot_of(workflow_id)
    assert slot in shard_map.slots_of(shard_map.shard_of(workflow_id))
    assert shard_map.shard_of_slot(slot) == shard_map.shard_of(workflow_id)


def test_the_shards_share_the_slots_out() -> None:
    shard_map = ShardMap(7, dict(enumerate(("b", "a", "b", "c"))))
    assert shard_map.shards == ("b", "a", "c")
    assert [shard_map.slots_of(shard) for shard in ("a", "b", "c", "d")] == [(1,), (0, 2), (3,), ()]
    assert (shard_map.slots, shard_map.base, shard_map.epoch) == (4, 4, 7)


@pytest.mark.parametrize("splits", [0, 48])
def test_ids_spread_evenly(splits: int) -> None:
    shard_map = whole(48)
    for slot in range(splits):
        shard_map = split(shard_map, slot)
    counts = Counter(shard_map.slot_of(f"order-{number}") for number in range(1000 * shard_map.slots))
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_there_is_no_slot_outside_the_map() -> None:
    shard_map = split(whole(4), 2)
    for slot in (-1, 2, 4):
        with pytest.raises(KeyError):
            shard_map.shard_of_slot(slot)


@pytest.mark.parametrize(
    ("slots", "base"),
    [
        ([], 0),
        ([-1, 0], 0),
        ([0, 1, 2], 4),  # no slot for some hashes
        ([0, 1, 2, 3, 6], 4),  # a slot and its half
        ([0, 1, 3, 6], 4),  # only one half
        (range(SLOTS_MAX + 1), 0),
        ([*range(1, SLOTS_MAX), *children_of(0, SLOTS_MAX)], SLOTS_MAX),
    ],
)
def test_an_impossible_map_is_refused(slots: list[int], base: int) -> None:
    with pytest.raises(ValueError, match="shard map"):
        ShardMap(1, dict.fromkeys(slots, "a"), base=base)


def test_slot_schemas_sort_as_their_slots() -> None:
    assert slot_schema(7) == "wf_0007"
    assert slot_schema(2 * SLOTS_MAX - 1) == "wf_8191"
