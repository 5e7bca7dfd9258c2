"""Percentiles, by the nearest rank: a figure that was measured, never one between two."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds, and of how many samples; ``of`` says from when to when."""

    p50: float | None
    p95: float | None
    p99: float | None
    p999: float | None
    samples: int
    of: str


def nearest_rank(ordered: list[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of all values don't exceed; None of nothing."""
    if not ordered:
        return None
    # The product of 0.999 and 1000 is a little more than 999, which must not count as one more.
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


def latency_of(seconds: Iterable[float], of: str) -> Latency:
    ordered = sorted(seconds)

    def at(share: float) -> float | None:
        found = nearest_rank(ordered, share)
        return None if found is None else round(found * 1000, 3)

    return Latency(at(0.5), at(0.95), at(0.99), at(0.999), len(ordered), of)
