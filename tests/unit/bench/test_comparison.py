"""What a comparison shows is what was measured: table, Markdown, plot, JSON."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from bench.comparison import Comparison, Described, Measured, cells, draw, make_markdown, make_table, rows
from bench.peers.contender import AHEAD_MAX, AHEAD_MIN, Pace, Told


def measured(contender: str, steps: int, number: int, rate: float) -> Measured:
    return Measured(contender, steps, number, 10.0, round(rate * 10), round(rate * 10), rate)


COMPARISON = Comparison(
    machine={"cores": "2"},
    postgres={"fsync": "on"},
    seconds=10,
    rounds=3,
    executors=2,
    slots=48,
    steps=(0, 1),
    contenders=(
        Described("sharded_wf", "0.1", "workflows", {}, ""),
        Described("queue", "7.0", "jobs", {"batch": 10}, "A queue has no steps."),
    ),
    left_out=("absent",),
    failed=("queue, 0 steps, round 2: it died.",),
    measured=(
        measured("sharded_wf", 0, 0, 40_000),
        measured("sharded_wf", 0, 1, 42_000),
        measured("sharded_wf", 0, 2, 10_000),
        measured("sharded_wf", 1, 0, 20_000),
        measured("queue", 0, 0, 400),
        measured("queue", 0, 2, 600),
    ),
)


def test_a_cell_is_the_median_of_its_rounds_and_their_span() -> None:
    found = {(cell.contender, cell.steps): cell for cell in cells(COMPARISON)}
    assert set(found) == {("sharded_wf", 0), ("sharded_wf", 1), ("queue", 0)}
    ours = found["sharded_wf", 0]
    assert (ours.median, ours.lowest, ours.highest, ours.times_slower) == (40_000, 10_000, 42_000, 1)
    assert found["queue", 0].times_slower == 80


def test_the_table_has_a_dash_where_nothing_was_measured() -> None:
    assert rows(COMPARISON) == [
        ["sharded_wf", "0.1", "40,000", "1.000", "20,000", "1.000"],
        ["queue", "7.0", "500", "0.013", "–", "–"],
    ]
    assert make_table(COMPARISON).row_count == 2


def test_the_report_says_what_is_not_comparable_what_failed_and_who_is_missing() -> None:
    text = make_markdown(COMPARISON)
    assert "- **queue**: A queue has no steps." in text
    assert "- **absent** is left out" in text
    assert "queue, 0 steps, round 2: it died." in text
    assert "- fsync: on" in text
    assert "| queue | 0 | 3 | 6,000 | 6,000 | 600 |" in text


def test_json_round_trips() -> None:
    assert msgspec.json.decode(msgspec.json.encode(COMPARISON), type=Comparison) == COMPARISON


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs the extra 'bench'")
    draw(COMPARISON, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("rate", "ahead"), [(10, AHEAD_MIN), (5_000, 5_000), (10**9, AHEAD_MAX)])
def test_a_client_runs_ahead_by_one_second_of_work_within_bounds(
    monkeypatch: pytest.MonkeyPatch, rate: int, ahead: int
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("bench.peers.contender.time.monotonic", lambda: now)
    told = Told()
    pace = Pace(told)
    assert pace.may_start(AHEAD_MIN)
    assert not pace.may_start(1)
    told.add(rate)
    pace.seen_at = now - 1  # a second has passed
    pace.may_start(1)
    assert pace.ahead == pytest.approx(ahead)
    room = round(pace.ahead) - (pace.started - rate)
    assert pace.may_start(room)
    assert not pace.may_start(1)
