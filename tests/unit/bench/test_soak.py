"""The verdicts of a soak can be good, bad, and unknown."""

from __future__ import annotations

from collections.abc import Callable

from bench.soak import Reading, minute, verdicts_of


def readings(
    minutes: int,
    rate: Callable[[float], float] = lambda _: 100.0,
    memory: Callable[[float], int] = lambda _: 100,
    size: Callable[[float], int] = lambda _: 1000,
) -> list[Reading]:
    ends = [10.0 * number for number in range(1, minutes * 6 + 1)]
    return [Reading(at, rate(at), size(at), {}, 0, memory(at)) for at in ends]


def holds(found: list[Reading], retention_seconds: float | None = None) -> list[bool | None]:
    return [verdict.holds for verdict in verdicts_of(found, retention_seconds)]


def test_minutes_hold_what_ended_within_them() -> None:
    found = readings(4)
    assert [one.at_seconds for one in minute(found, 1)] == [70, 80, 90, 100, 110, 120]
    assert [one.at_seconds for one in minute(found, -1)] == [190, 200, 210, 220, 230, 240]


def test_what_stays_is_good_and_what_does_not_is_bad() -> None:
    assert holds(readings(6), 60) == [True, True, True]
    assert holds(readings(6, rate=lambda at: 100 if at < 200 else 80), 60) == [False, True, True]
    assert holds(readings(6, memory=lambda at: int(100 + at)), 60) == [True, False, True]
    assert holds(readings(6, size=lambda at: int(1000 + 10 * at)), 60) == [True, True, False]


def test_a_growing_first_minute_is_no_reproach() -> None:
    assert holds(readings(6, rate=lambda at: 500 if at <= 60 else 100), 60)[0] is True


def test_unknown_is_said() -> None:
    assert holds(readings(2)) == [None]
    assert holds(readings(6)) == [True, True, None]
