"""The IDs that we make: UUIDv7, in order of time, away from slots that are unwell."""

from __future__ import annotations

import os
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.limits import ID_TURN_US, IDS_PER_TURN_MAX, SLOTS_PER_TURN_MIN
from sharded_wf.routing import IdMaker, ShardMap, new_id


class FixedClock:
    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return self._now_us / 1e6


times = st.integers(0, 2**48 * 1000 - 1)


@given(times)
def test_it_is_a_uuid_7_of_its_time(now_us: int) -> None:
    made = uuid.UUID(new_id(FixedClock(now_us)))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == now_us // 1000


@given(times, times)
def test_later_ids_sort_after_earlier_ones(one: int, other: int) -> None:
    if one != other:
        assert (new_id(FixedClock(one)) < new_id(FixedClock(other))) == (one < other)


@given(times)
def test_it_is_written_as_uuids_are(now_us: int) -> None:
    made = new_id(FixedClock(now_us))
    assert made == str(uuid.UUID(made))


def test_ids_of_one_moment_differ() -> None:
    clock = FixedClock(1_800_000_000_000_000)
    assert len({new_id(clock) for _ in range(10_000)}) == 10_000


@given(st.sets(st.integers(0, 11), max_size=11))
def test_unhealthy_slots_are_avoided(unhealthy: set[int]) -> None:
    shard_map = ShardMap(1, dict(enumerate(("a", "b", "c") * 4)))
    assert shard_map.slot_of(IdMaker(SYSTEM_CLOCK, shard_map, frozenset(unhealthy))()) not in unhealthy


def test_if_every_slot_is_unhealthy_any_id_will_do() -> None:
    assert IdMaker(SYSTEM_CLOCK, ShardMap(1, dict.fromkeys(range(4), "a")), frozenset(range(4)))()


def test_ids_of_one_moment_fall_into_few_slots_of_each_shard_and_in_time_into_all_alike() -> None:
    shard_map = ShardMap(1, dict(enumerate(("a", "b") * 24)))
    clock = FixedClock(1_800_000_000_000_000)
    make = IdMaker(clock, shard_map)
    counts: Counter[int] = Counter()
    for turn in range(48):
        clock._now_us = 1_800_000_000_000_000 + turn * ID_TURN_US
        made = [make() for _ in range(100)]
        assert len(set(made)) == 100
        slots = {shard_map.slot_of(id_) for id_ in made}
        assert len(slots) <= 2 * SLOTS_PER_TURN_MIN and {shard_map.placement[slot] for slot in slots} == {"a", "b"}
        counts.update(map(shard_map.slot_of, made))
    assert len(counts) == 48 and min(counts.values()) > 50 and max(counts.values()) < 160
    many = 24 // SLOTS_PER_TURN_MIN * IDS_PER_TURN_MAX
    assert len({shard_map.slot_of(make()) for _ in range(many)}) == 48, "who makes many at once uses all slots"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_ids() -> None:
    clock = FixedClock(1_800_000_000_000_000)
    make = IdMaker(clock, ShardMap(1, dict.fromkeys(range(48), "a")))
    make()  # the child inherits a search that is under way
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, (new_id(clock) + make()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(theirs) == 72
    assert theirs[:36] != new_id(clock) and theirs[36:] != make()
