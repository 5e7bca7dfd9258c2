"""The routing is pinned: a changed hash would look for existing workflows in the wrong slots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.routing import HASH_NAME, HASH_SEED, ShardMap, children_of, hash_of, routing_key

# ID, routing key, hash, slot of 48; where the first 12 of the 48 were split, the remainder by 96 of those in them, else
# the slot. Never change a line of it.
GOLDEN = [
    ("a", "a", 1234600018, 34, 34),
    ("order-1", "order-1", 2017762966, 22, 22),
    ("{customer-42}/order-1", "customer-42", 3238456877, 29, 29),
    ("{customer-42}/order-2", "customer-42", 3238456877, 29, 29),
    ("customer-42", "customer-42", 3238456877, 29, 29),
    ("{}", "{}", 1315082911, 31, 31),
    ("{}x", "{}x", 4029737495, 23, 23),
    ("a{b}c{d}", "b", 1657570966, 22, 22),
    ("a{b", "a{b", 3143326685, 29, 29),
    ("}{x}", "x", 3310442932, 4, 52),
    ("{{x}}", "{x", 3679331167, 31, 31),
    ("", "", 1808018868, 36, 36),
    ("naïve-ключ-订单", "naïve-ключ-订单", 3190665522, 18, 18),
    ("0192f0c1-7d3a-7abc-8def-0123456789ab", "0192f0c1-7d3a-7abc-8def-0123456789ab", 2957587975, 7, 7),
    ("x" * 512, "x" * 512, 2818876380, 12, 12),
]

text = st.text(st.characters(exclude_categories=["Cs"]))
tagless = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"))


@pytest.mark.parametrize(("workflow_id", "key", "hashed", "slot", "grown"), GOLDEN)
def test_golden_vectors(workflow_id: str, key: str, hashed: int, slot: int, grown: int) -> None:
    assert routing_key(workflow_id) == key
    assert hash_of(workflow_id) == hashed
    assert ShardMap(1, dict.fromkeys(range(48), "a")).slot_of(workflow_id) == slot
    halves = [half for parent in range(12) for half in children_of(parent, 48)]
    split = ShardMap(2, dict.fromkeys([*range(12, 48), *halves], "a"), base=48)
    assert split.slot_of(workflow_id) == (grown if slot >= 12 else 48 + grown)


def test_hash_and_seed_are_what_the_databases_hold() -> None:
    assert (HASH_NAME, HASH_SEED) == ("mmh3_x86_32", 1526616327)


def murmur3_x86_32(data: bytes, seed: int) -> int:
    """MurmurHash3 x86_32 as published, slowly."""

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (32 - by)) & 0xFFFFFFFF

    def scramble(block: int) -> int:
        return rotate(block * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF

    state, end = seed, len(data) & ~3
    for at in range(0, end, 4):
        state = rotate(state ^ scramble(int.from_bytes(data[at : at + 4], "little")), 13) * 5 + 0xE6546B64 & 0xFFFFFFFF
    state ^= scramble(int.from_bytes(data[end:], "little")) ^ len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    state = (state ^ state >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return state ^ state >> 16


@given(tagless)
def test_the_hash_is_murmur3_of_the_utf8_key(workflow_id: str) -> None:
    assert hash_of(workflow_id) == murmur3_x86_32(workflow_id.encode(), HASH_SEED)


@given(tagless, tagless.filter(bool), text)
def test_a_tag_decides_alone(before: str, tag: str, after: str) -> None:
    assert routing_key(f"{before}{{{tag}}}{after}") == tag
    assert hash_of(f"{before}{{{tag}}}{after}") == hash_of(tag)


@given(text)
def test_a_key_is_never_empty_unless_the_id_is(workflow_id: str) -> None:
    key = routing_key(workflow_id)
    assert key in workflow_id
    assert bool(key) == bool(workflow_id)


def test_a_lone_surrogate_has_no_hash() -> None:
    with pytest.raises(UnicodeEncodeError):
        hash_of("\ud800")
