"""Plans give every shard its share with as few moves as can be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.reshard.plan import doubling, drain, rebalance, shares

SHARDS = ("pg1", "pg2", "pg3", "pg4")
WEIGHTS = st.dictionaries(st.sampled_from(SHARDS), st.sampled_from([1.0, 2.0, 3.5]), min_size=1)
PLACEMENTS = st.lists(st.sampled_from(SHARDS), min_size=1, max_size=60).map(lambda shards: dict(enumerate(shards)))


def after(placement: dict[int, str], moves: list[tuple[int, str]]) -> dict[int, str]:
    found = dict(placement)
    for slot, target in moves:
        assert found[slot] != target
        found[slot] = target
    assert len({slot for slot, _ in moves}) == len(moves)
    return found


@given(PLACEMENTS, WEIGHTS)
def test_a_rebalanced_cluster_has_its_shares(placement: dict[int, str], weights: dict[str, float]) -> None:
    moves = rebalance(placement, weights)
    found = Counter(after(placement, moves).values())
    total = sum(weights.values())
    for shard in SHARDS:
        exact = len(placement) * weights.get(shard, 0) / total
        assert abs(found[shard] - exact) < 1
    before = Counter(placement.values())
    for shard in SHARDS:  # nobody both gives and takes
        given_away = sum(1 for slot, _ in moves if placement[slot] == shard)
        taken = sum(1 for _, target in moves if target == shard)
        assert min(given_away, taken) == 0
        assert found[shard] == before[shard] - given_away + taken
    assert rebalance(after(placement, moves), weights) == []


def test_a_new_shard_takes_its_share_and_nothing_else_moves() -> None:
    placement = dict(enumerate(["pg1", "pg2"] * 24))
    moves = rebalance(placement, {"pg1": 1, "pg2": 1, "pg3": 1})
    assert len(moves) == 16
    assert {target for _, target in moves} == {"pg3"}
    assert Counter(placement[slot] for slot, _ in moves) == {"pg1": 8, "pg2": 8}


def test_fixed_slots_stay() -> None:
    moves = rebalance(dict.fromkeys(range(4), "pg1"), {"pg1": 1, "pg2": 1}, fixed={2, 3})
    assert sorted(slot for slot, _ in moves) == [0, 1]


@given(PLACEMENTS, WEIGHTS)
def test_a_drained_shard_is_empty(placement: dict[int, str], weights: dict[str, float]) -> None:
    if not weights.keys() - {"pg1"}:
        with pytest.raises(ValueError, match="no other shard"):
            drain(placement, "pg1", weights)
        return
    found = after(placement, drain(placement, "pg1", weights))
    assert "pg1" not in found.values()
    assert all(found[slot] == shard for slot, shard in placement.items() if shard != "pg1")


def test_weights_that_mean_nothing_are_refused() -> None:
    for weights in ({}, {"pg1": 0.0}, {"pg1": 1.0, "pg2": -1.0}):
        with pytest.raises(ValueError, match="weights"):
            shares(4, weights, {})


def test_a_doubling_that_was_cut_off_goes_on_where_it_stopped() -> None:
    """Of 4 slots; then with slot 0 split already; then with all split; then with one of those split on its own."""
    for slots, wanted in [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([1, 2, 3, 4, 8], [1, 2, 3]),
        (list(range(4, 12)), list(range(4, 12))),
        ([*range(5, 12), 12, 20], list(range(5, 12))),
    ]:
        assert doubling(dict.fromkeys(slots, "pg1"), 4) == wanted
