"""Percentiles are values that were measured, by the nearest rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.percentiles import latency_of, nearest_rank

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


def test_known_ranks() -> None:
    ordered = [float(number) for number in range(1, 1001)]
    assert [nearest_rank(ordered, share) for share in (0.5, 0.95, 0.99, 0.999, 1.0)] == [500, 950, 990, 999, 1000]
    assert nearest_rank([7.0], 0.001) == 7.0
    assert nearest_rank([], 0.5) is None


@given(VALUES, st.sampled_from([0.5, 0.95, 0.99, 0.999]))
def test_enough_values_lie_at_or_below_it_and_not_fewer_would_do(values: list[float], share: float) -> None:
    found = nearest_rank(sorted(values), share)
    assert found in values
    assert found is not None
    wanted = share * len(values) - 1e-6
    assert sum(value <= found for value in values) >= wanted
    assert sum(value < found for value in values) < wanted + 2e-6


def test_seconds_become_milliseconds() -> None:
    found = latency_of([0.001, 0.002, 0.003], "here")
    assert (found.p50, found.p999, found.samples, found.of) == (2.0, 3.0, 3, "here")
    nothing = latency_of([], "nowhere")
    assert (nothing.p50, nothing.samples) == (None, 0)
