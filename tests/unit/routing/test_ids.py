"""The IDs that we make: UUIDv7, in order of time, away from slots that are unwell."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.routing import ShardMap, new_id, new_id_avoiding


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
    assert shard_map.slot_of(new_id_avoiding(SYSTEM_CLOCK, shard_map, unhealthy)) not in unhealthy


def test_if_every_slot_is_unhealthy_any_id_will_do() -> None:
    assert new_id_avoiding(SYSTEM_CLOCK, ShardMap(1, dict.fromkeys(range(4), "a")), range(4))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_ids() -> None:
    clock = FixedClock(1_800_000_000_000_000)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, new_id(clock).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(theirs) == 36
    assert theirs != new_id(clock)
