"""Who is dead: judged by beats that stand still on the observer's own clock, and by nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.limits import HEARTBEAT_SECONDS, LEASE_SECONDS
from sharded_wf.maintenance.leases import Observation
from sharded_wf.store.leases import Beat

MINE = b"m" * 16
OTHER = b"o" * 16


def beats(other: int | None) -> list[Beat]:
    return [Beat(MINE, 1, "me"), *([] if other is None else [Beat(OTHER, other, "other")])]


def test_a_beat_that_moves_is_alive_for_ever() -> None:
    observation = Observation()
    for count in range(100):
        dead, vanished = observation.observe(beats(count), MINE, count * HEARTBEAT_SECONDS)
        assert not dead and not vanished


def test_a_beat_that_stands_still_for_a_lease_is_dead() -> None:
    observation = Observation()
    now = 0.0
    while True:
        dead, _ = observation.observe(beats(7), MINE, now)
        if dead:
            break
        now += HEARTBEAT_SECONDS
    assert [beat.lease_id for beat in dead] == [OTHER]
    assert LEASE_SECONDS <= now <= LEASE_SECONDS + HEARTBEAT_SECONDS


def test_detection_and_takeover_fit_into_ten_seconds() -> None:
    # Killed just after a beat that was seen just before the next look: a beat, a lease, a look.
    assert LEASE_SECONDS + 2 * HEARTBEAT_SECONDS < 10


def test_an_observer_that_was_away_starts_anew() -> None:
    observation = Observation()
    observation.observe(beats(7), MINE, 0.0)
    dead, _ = observation.observe(beats(7), MINE, LEASE_SECONDS * 10)
    assert not dead, "it was we who stood still"


def test_a_beat_of_ours_that_failed_starts_anew() -> None:
    observation = Observation()
    now = 0.0
    for _ in range(20):
        dead, _ = observation.observe(beats(7), MINE, now)
        assert not dead
        now += HEARTBEAT_SECONDS * 2
        observation.forget()


def test_a_lease_that_vanished_is_told_once() -> None:
    observation = Observation()
    observation.observe(beats(1), MINE, 0.0)
    assert observation.observe(beats(None), MINE, 1.0)[1]
    assert not observation.observe(beats(None), MINE, 2.0)[1]


def test_we_never_judge_ourselves() -> None:
    observation = Observation()
    for look in range(50):
        dead, _ = observation.observe([Beat(MINE, 1, "me")], MINE, look * HEARTBEAT_SECONDS)
        assert not dead


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, LEASE_SECONDS * 2)), max_size=60))
def test_nobody_is_dead_who_moved_within_a_lease(looks: list[tuple[bool, float]]) -> None:
    observation = Observation()
    now, count, moved_at = 0.0, 0, 0.0
    for moved, pause in looks:
        now += pause
        if moved:
            count, moved_at = count + 1, now
        dead, _ = observation.observe(beats(count), MINE, now)
        if dead:
            assert now - moved_at >= LEASE_SECONDS
