"""Where an executor claims next: lanes, limits, marks."""

from __future__ import annotations

from sharded_wf.executor.intake import Intake
from sharded_wf.limits import CLAIM_BATCH_MAX_WORKFLOWS, MARK_MARGIN_SECONDS, RESCAN_BUSY_SECONDS
from sharded_wf.store.claims import START_OF_TIME, Lane

FRESH = Lane("shop", "default", 0)
AGAIN = Lane("~shop", "default", 0)
SUSPECT = Lane("!shop", "default", 0)
LATER = START_OF_TIME + 1_000_000_000


def test_it_claims_only_what_it_can_run() -> None:
    intake = Intake(["shop"], None)
    assert not intake.found(0, [Lane("other", "default", 0), SUSPECT])
    assert not intake.has_work
    assert intake.found(0, [FRESH, AGAIN])
    assert {pick.lane for pick in intake.picks(100, 0.0)} == {FRESH, AGAIN}


def test_an_isolated_executor_claims_suspects_and_nothing_else() -> None:
    intake = Intake(["shop"], None, isolated=True)
    assert intake.found(0, [FRESH, AGAIN, SUSPECT])
    assert [pick.lane for pick in intake.picks(1, 0.0)] == [SUSPECT]


def test_only_the_queues_it_serves() -> None:
    intake = Intake(["shop"], ["gpu"])
    assert not intake.found(0, [FRESH])
    assert intake.found(0, [Lane("shop", "gpu", 3)])


def test_never_more_than_there_is_room_for() -> None:
    intake = Intake(["shop"], None)
    for slot in range(48):
        intake.found(slot, [FRESH])
    assert sum(pick.limit for pick in intake.picks(70, 0.0)) <= 70


def test_of_one_queue_the_lower_priority_number_comes_first() -> None:
    urgent, patient = Lane("shop", "default", -1), Lane("shop", "default", 5)
    intake = Intake(["shop"], None)
    intake.found(0, [patient, urgent])
    (pick,) = intake.picks(1000, 0.0)
    assert pick.lane == urgent
    intake.came(pick, 0, None)
    assert [pick.lane for pick in intake.picks(1000, 0.0)] == [patient]


def test_a_full_lane_stays_hot_and_its_limit_grows_to_the_batch() -> None:
    intake = Intake(["shop"], None)
    intake.found(7, [FRESH])
    limits = []
    for _ in range(6):
        (pick,) = intake.picks(10_000, 0.0)
        limits.append(pick.limit)
        intake.came(pick, pick.limit, LATER)
    assert limits == sorted(limits)
    assert limits[-1] == CLAIM_BATCH_MAX_WORKFLOWS


def test_claims_start_at_the_mark_and_rescan_now_and_then() -> None:
    intake = Intake(["shop"], None)
    intake.found(0, [FRESH])
    (first,) = intake.picks(100, 0.0)
    assert first.mark == START_OF_TIME
    intake.came(first, first.limit, LATER)
    (second,) = intake.picks(100, 1.0)
    assert second.mark == LATER - int(MARK_MARGIN_SECONDS * 1_000_000)
    intake.came(second, second.limit, LATER)
    (third,) = intake.picks(100, RESCAN_BUSY_SECONDS + 1)
    assert third.mark == START_OF_TIME


def test_a_rescan_that_finds_nothing_keeps_the_mark() -> None:
    intake = Intake(["shop"], None)
    intake.found(0, [FRESH])
    (pick,) = intake.picks(100, 0.0)
    intake.came(pick, 1, LATER)
    intake.notified([0])
    (rescan,) = intake.picks(100, 100.0)
    assert rescan.mark == START_OF_TIME
    intake.came(rescan, 0, None)
    intake.notified([0])
    (pick,) = intake.picks(100, 100.1)
    assert pick.mark > START_OF_TIME


def test_a_notification_heats_every_lane_that_is_known() -> None:
    intake = Intake(["shop"], None)
    assert not intake.notified([3])
    intake.found(0, [FRESH])
    for pick in intake.picks(100, 0.0):
        intake.came(pick, 0, None)
    assert intake.notified([3])
    assert [(pick.slot, pick.lane) for pick in intake.picks(100, 0.0)] == [(3, FRESH)]


def test_a_claim_that_failed_leaves_its_lanes_hot() -> None:
    intake = Intake(["shop"], None)
    intake.found(0, [FRESH])
    intake.failed(intake.picks(100, 0.0))
    assert intake.has_work


def test_new_work_is_in_the_next_claim_however_much_of_what_ran_before_waits() -> None:
    intake = Intake(["shop"], None)
    for slot in range(48):
        intake.found(slot, [AGAIN])
    now, room = 0.0, 2_000
    for turn in range(200):
        if turn % 10 == 9:
            intake.found(turn % 48, [FRESH])
        picks = intake.picks(room, now)
        assert sum(pick.limit for pick in picks) <= room
        fresh = [pick for pick in picks if pick.lane == FRESH]
        assert [pick.slot for pick in fresh] == ([turn % 48] if turn % 10 == 9 else [])
        for pick in picks:
            came = 1 if pick.lane == FRESH else pick.limit
            intake.came(pick, came, LATER)


def test_neither_new_work_nor_what_ran_before_starves_the_other() -> None:
    for room in (1, 2, 7, 300, 5_000):
        intake = Intake(["shop"], None)
        for slot in range(48):
            intake.found(slot, [FRESH, AGAIN])
        taken = {FRESH: 0, AGAIN: 0}
        for _ in range(100):
            for pick in intake.picks(room, 0.0):
                taken[pick.lane] += pick.limit
                intake.came(pick, pick.limit, LATER)
        assert min(taken.values()) > 0.3 * sum(taken.values()), (room, taken)


def test_leaving_a_slot_forgets_its_lanes_of_both_kinds() -> None:
    intake = Intake(["shop"], None)
    intake.found(0, [FRESH, AGAIN])
    intake.leave_slot(0)
    assert not intake.has_work
    assert not intake.has_work_again
