"""Points, speed-up and growth follow from the results; and the pictures are drawn from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import plot
from bench.certificate import Certificate
from bench.percentiles import latency_of
from bench.result import Cpu, Result
from bench.run import Plan
from bench.scale import draw, markdown, scale_of

PLAN = Plan("noop", 0, 10.0, 0, executors=1)
CERTIFICATE = Certificate(True, 10, 10, 10, 0, 0, 0, 0, 0, ())


def result(shards: int, rate: float, executor: float) -> Result:
    return Result(
        workload="noop", steps=0, loop="closed", rate=None, seconds=10.0, shards=shards, slots=6 * shards, executors=1,
        clients=1, workflows_per_second=rate, steps_per_second=0.0, round_trips_per_second=None,
        ceiling_workflows_per_second=None, ceiling_before_and_after=(), ratio_to_ceiling=None,
        latency_ms=latency_of([1.0], "here"), cpu_us_per_workflow=Cpu(30.0, executor, 10.0),
        wal_bytes_per_workflow=1000.0, commits_per_workflow=0.01, lost=0, duplicated=0, misordered=0,
        rates=(rate,), rates_every_seconds=10.0, per_shard={}, certificate=CERTIFICATE, notes=(),
        conditions={"machine": {"cores": "2"}},
    )  # fmt: skip


def test_points_are_measured_against_the_first() -> None:
    scale = scale_of(PLAN, 0.06, [result(2, 4000, 14), result(4, 7600, 14.7), result(8, 14800, 16.1)])
    assert [(point.shards, point.speedup) for point in scale.points] == [(2, 2.0), (4, 3.8), (8, 7.4)]
    assert scale.points[0].quota_used == pytest.approx(4000 * 30e-6 / 0.12, abs=0.01)
    assert scale.growth == {"executor": 1.15, "client": 1.0}
    assert scale.holds
    text = markdown(scale, None)
    assert "6.0% of one core" in text
    assert "not of a shared disk" in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    if not plot.available():
        pytest.skip("matplotlib is not installed: the picture was NOT drawn")
    scale = scale_of(PLAN, 0.06, [result(1, 2000, 14), result(8, 14800, 16.1)])
    assert draw(scale, tmp_path / "scale.png")
    assert plot.draw_run(result(1, 2000, 14), tmp_path / "run.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
