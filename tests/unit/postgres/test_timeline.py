"""Which server is taken for the primary, and which is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from sharded_wf.postgres.connect import connect_seconds, conninfo_of, hosts_of
from sharded_wf.postgres.timeline import Primary, Reading, Timeline, latest

SYSTEM, OTHER = 7, 8
TIMELINES = st.builds(Timeline, st.sampled_from([SYSTEM]), st.integers(1, 5), st.integers(0, 3))


def says(number: int, system: int = SYSTEM) -> Reading:
    return Reading(1, False, Timeline(system, number))


def test_the_first_that_is_seen_is_taken() -> None:
    assert Primary().refusal(says(3)) is None


def test_a_lower_timeline_is_refused_and_a_higher_one_is_not() -> None:
    primary = Primary()
    primary.learn(Timeline(SYSTEM, 3, 1))
    assert "old primary, on timeline 2; timeline 3 was seen" in (primary.refusal(says(2)) or "")
    assert primary.refusal(says(3)) is None
    assert primary.refusal(says(4)) is None


def test_another_system_is_refused_until_somebody_says_so() -> None:
    primary = Primary()
    primary.learn(Timeline(SYSTEM, 3, 1))
    assert "shards accept" in (primary.refusal(says(9, OTHER)) or "")
    primary.learn(Timeline(OTHER, 1, 2))
    assert primary.refusal(says(1, OTHER)) is None
    assert "another database system" in (primary.refusal(says(9)) or "")


def test_a_standby_and_a_server_that_cant_say() -> None:
    primary = Primary()
    primary.learn(Timeline(SYSTEM, 3, 1))
    assert "standby" in (primary.refusal(Reading(1, True, None)) or "")
    assert primary.refusal(Reading(1, False, None)) is None


def test_who_listens_is_told_of_another_primary_and_of_nothing_else() -> None:
    told: list[int] = []
    primary = Primary()
    end = primary.subscribe(lambda: told.append(1))
    primary.learn(Timeline(SYSTEM, 1))
    primary.learn(Timeline(SYSTEM, 1, 1))
    assert told == []
    primary.learn(Timeline(SYSTEM, 2, 1))
    assert told == [1]
    primary.learn(Timeline(SYSTEM, 1, 1))
    end()
    primary.learn(Timeline(SYSTEM, 3, 1))
    assert told == [1]


@given(TIMELINES, TIMELINES, TIMELINES)
def test_copies_can_be_merged_in_any_order_once_confirmed(one: Timeline, two: Timeline, three: Timeline) -> None:
    if all(timeline.term for timeline in (one, two, three)):
        assert latest(latest(one, two), three) == latest(one, latest(two, three)) == latest(latest(three, two), one)
    assert latest(one, one) == one


def test_what_was_only_seen_gives_way_to_what_the_shards_have_heard() -> None:
    assert latest(Timeline(SYSTEM, 2), Timeline(SYSTEM, 1, 1)) == Timeline(SYSTEM, 2, 1)
    assert latest(Timeline(OTHER, 9), Timeline(SYSTEM, 1, 1)) == Timeline(SYSTEM, 1, 1)


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://wf@a/wf", [("a", "", "")]),
        ("postgresql://wf@a,b/wf", [("a", "", ""), ("b", "", "")]),
        ("postgresql://wf@a,b,c/wf", [("a", "", ""), ("b", "", ""), ("c", "", "")]),
        ("postgresql://wf@a:1,b:2/wf", [("a", "", "1"), ("b", "", "2")]),
        ("host=a,b port=5", [("a", "", "5"), ("b", "", "5")]),
        ("host=a,b hostaddr=1.1.1.1,2.2.2.2", [("a", "1.1.1.1", ""), ("b", "2.2.2.2", "")]),
        ("hostaddr=1.1.1.1,2.2.2.2", [("", "1.1.1.1", ""), ("", "2.2.2.2", "")]),
        ("dbname=wf", [("", "", "")]),
    ],
)
def test_the_hosts_of_a_dsn(dsn: str, hosts: list[tuple[str, str, str]]) -> None:
    assert hosts_of(dsn) == hosts
    if hosts[0][0]:
        assert hosts_of(conninfo_of(dsn, "test", hosts[::-1])) == hosts[::-1]
        left = conninfo_to_dict(conninfo_of(dsn, "test", hosts[-1:]))  # without one that turned out to be old
        assert (left["host"], left.get("port") or "") == (hosts[-1][0], hosts[-1][2])


def test_each_of_several_hosts_gets_less_patience_than_a_single_one() -> None:
    assert conninfo_to_dict(conninfo_of("host=a,b", "x"))["connect_timeout"] == "3"
    assert conninfo_to_dict(conninfo_of("host=a", "x"))["connect_timeout"] == "5"
    assert connect_seconds("host=a,b,c connect_timeout=4") == 17
