"""How it scales out, on one machine: the same workload on 1, 2, 4 and 8 shards, where each shard's Postgres has the
same small, fixed share of CPU, so that it is Postgres that limits, and more of it is more.

It proves that no shared piece of *software* limits: a client's or executor's work per workflow that grows with the
number of shards would show, and so would anything that all shards wait for. It proves nothing of a shared disk or
network.
Executors and clients have no quota. Each shard has the same number of slots at every point: the same work for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sharded_wf.errors import BenchFailed

from .cgroup import find_hierarchy, held_to, period_and_quota_us
from .cluster import Shape, open_cluster
from .plot import IDEAL, INK, OURS, PARTS, available, figure, heading, save, thousands
from .report import conditions_lines, markdown_table, number
from .result import Result
from .run import Plan, Say, run
from .sampling import postmaster_of

SHARDS = (1, 2, 4, 8)
SLOTS_PER_SHARD = 6
BACKLOG_PER_SHARD = 3_000
PROVES = (
    "It proves the absence of a shared bottleneck in software; not of a shared disk, of a network, or of memory that "
    "one machine's servers share."
)


class Point(msgspec.Struct, frozen=True):
    """One number of shards. ``speedup``: over the first point, in units of its shards. ``quota_used``: the part of
    their share that the servers used; clearly below 1, something else was the limit (most often this machine's
    cores)."""

    shards: int
    workflows_per_second: float
    speedup: float
    quota_used: float
    cpu_us_per_workflow: dict[str, float | None]
    lost: int
    duplicated: int
    misordered: int


class Scale(msgspec.Struct, frozen=True):
    """What ``bench scale`` found. ``growth``: CPU per workflow of executors and clients, last point over first."""

    workload: str
    steps: int
    seconds: float
    quota_cores: float
    quota_period_us: int
    slots_per_shard: int
    executors: int
    clients: int
    points: tuple[Point, ...]
    growth: dict[str, float | None]
    proves: str
    results: tuple[Result, ...]

    @property
    def holds(self) -> bool:
        return all(result.certificate.holds for result in self.results)


def measure(plan: Plan, shards: Sequence[int], share: float, say: Say) -> Scale:
    """One run for each number of shards, each on new servers. ``share``: of one core, for each server."""
    find_hierarchy()  # say no before anything is started
    results: list[Result] = []
    for count in shards:

        def say_here(text: str, count: int = count) -> None:
            say(f"{count} of {max(shards)} shards: {text}")

        say_here("starting the servers")
        slots = SLOTS_PER_SHARD * count
        with open_cluster(Shape(count, None, slots)) as cluster:
            roots = {name: postmaster_of(server) for name, server in cluster.servers.items()}
            with held_to(share, roots):
                results.append(run(cluster, _plan_for(plan, count, slots), say_here))
    return scale_of(plan, share, results)


def _plan_for(plan: Plan, count: int, slots: int) -> Plan:
    return replace(plan, slots=slots, ceiling=False, backlog=BACKLOG_PER_SHARD * count)


def scale_of(plan: Plan, share: float, results: Sequence[Result]) -> Scale:
    """Points out of results, which begin with the fewest shards."""
    if not results:
        raise BenchFailed("no number of shards was named")
    first = results[0]
    one = first.workflows_per_second / first.shards
    points = tuple(
        Point(
            result.shards,
            result.workflows_per_second,
            round(result.workflows_per_second / one, 2),
            _quota_used(result, share),
            msgspec.to_builtins(result.cpu_us_per_workflow),
            result.lost,
            result.duplicated,
            result.misordered,
        )
        for result in results
    )
    period, _ = period_and_quota_us(share)
    return Scale(
        plan.workload, plan.steps, plan.seconds, share, period, SLOTS_PER_SHARD, plan.executors, plan.clients, points,
        {side: _growth(points, side) for side in ("executor", "client")}, PROVES, tuple(results),
    )  # fmt: skip


def _quota_used(result: Result, share: float) -> float:
    cpu_us = result.cpu_us_per_workflow.postgres or 0.0
    return round(cpu_us * result.workflows_per_second / 1e6 / (share * result.shards), 2)


def _growth(points: Sequence[Point], side: str) -> float | None:
    before, after = points[0].cpu_us_per_workflow[side], points[-1].cpu_us_per_workflow[side]
    return None if not before or after is None else round(after / before, 3)


def table_rows(scale: Scale) -> tuple[list[str], list[list[str]]]:
    head = [
        "shards",
        "workflows/s",
        "speedup",
        "quota used",
        "Postgres CPU µs",
        "executor CPU µs",
        "client CPU µs",
        "p50 ms",
    ]
    rows: list[list[str]] = []
    for point, result in zip(scale.points, scale.results, strict=True):
        cpu = point.cpu_us_per_workflow
        cells = [number(cpu[side]) for side in ("postgres", "executor", "client")]
        latency = number(result.latency_ms.p50)
        rows.append(
            [
                str(point.shards),
                number(point.workflows_per_second),
                f"{point.speedup:.2f}",
                f"{point.quota_used:.0%}",
                *cells,
                latency,
            ]
        )
    return head, rows


def conditions_text(scale: Scale) -> str:
    return (
        f"{scale.workload}, {scale.seconds:g} s a point. Each shard's Postgres is held to {scale.quota_cores:.1%} of "
        f"one core, in periods of {scale.quota_period_us / 1000:g} ms; {scale.slots_per_shard} slots a shard; "
        f"{scale.executors} executors and {scale.clients} client, which have no quota. {scale.proves}"
    )


def markdown(scale: Scale, picture: str | None) -> str:
    head, rows = table_rows(scale)
    lines = ["# Scaling out", "", conditions_text(scale), ""]
    if picture:
        lines += [f"![Throughput over shards]({picture})", ""]
    lines += [*markdown_table(head, rows), ""]
    growths = [f"{side} {'–' if value is None else f'{value:.2f}'}" for side, value in scale.growth.items()]
    lines += [f"CPU per workflow, last point over the first: {', '.join(growths)}.", ""]
    lines += ["Certificate: " + ("it holds at every point." if scale.holds else "IT DOES NOT HOLD.")]
    return "\n".join([*lines, *conditions_lines(scale.results[0].conditions), ""])


def write_report(path: Path, scale: Scale) -> None:
    """``path`` as Markdown, and a picture beside it if matplotlib is installed."""
    picture = path.with_suffix(".png")
    drawn = draw(scale, picture)
    path.write_text(markdown(scale, picture.name if drawn else None), encoding="utf-8")


def draw(scale: Scale, path: Path) -> bool:
    """Throughput over shards with the ideal line, and the CPU per workflow at each point."""
    if not available():
        return False
    made, (rate, cpu) = figure(2, (9.5, 4.0))
    shards = [point.shards for point in scale.points]
    rates = [point.workflows_per_second for point in scale.points]
    ideal = [rates[0] / shards[0] * count for count in shards]
    rate.plot(shards, ideal, color=IDEAL, linestyle="--", linewidth=1.5)
    rate.plot(shards, rates, color=OURS, marker="o", linewidth=2)
    for point in scale.points:
        rate.annotate(
            f"{point.workflows_per_second:,.0f}  ({point.speedup:.2f}x)", (point.shards, point.workflows_per_second),
            xytext=(7, -11), textcoords="offset points", fontsize=9, color=INK,
        )  # fmt: skip
    rate.annotate("ideal", (shards[-1], ideal[-1]), xytext=(-6, 2), textcoords="offset points", ha="right", fontsize=9)
    rate.set_xticks(shards)
    rate.set_xlim(0, shards[-1] * 1.4)
    rate.set_ylim(0, max([*ideal, *rates]) * 1.12)
    rate.set_xlabel("shards", fontsize=9, color=INK)
    thousands(rate.yaxis)
    heading(rate, f"Workflows/s ({scale.workload}; each server {scale.quota_cores:.0%} of a core)")
    _draw_cpu(cpu, scale)
    save(made, path)
    return True


def _draw_cpu(one: Any, scale: Scale) -> None:
    names = [str(point.shards) for point in scale.points]
    beneath = [0.0] * len(names)
    for side, label in (("postgres", "Postgres"), ("executor", "executors"), ("client", "client")):
        values = [point.cpu_us_per_workflow[side] or 0.0 for point in scale.points]
        bars = one.bar(names, values, bottom=beneath, color=PARTS[side], label=label, width=0.55)
        one.bar_label(
            bars, labels=[f"{value:,.0f}" for value in values], label_type="center", fontsize=8, color="white"
        )
        beneath = [low + value for low, value in zip(beneath, values, strict=True)]
    one.set_ylim(0, max([*beneath, 1.0]) * 1.3)
    one.set_xlabel("shards", fontsize=9, color=INK)
    one.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    heading(one, "CPU µs per workflow")
