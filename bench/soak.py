"""A long run: does it stay as fast, does the memory of executors stay as it is, do the tables stay as small?

The load is a closed loop (near saturation) or an open one. Every ``INTERVAL_SECONDS`` the rate, the sizes, the dead
rows and the memory are read; at the end there are verdicts. Retention removes what ended a while ago, so that
sizes have something to stay at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from sharded_wf.config import ClusterConfig
from sharded_wf.errors import BenchFailed

from .certificate import Certificate, Expected, certify
from .cluster import Cluster
from .conditions import conditions_of
from .plot import BARE, INK, OURS, PARTS, available, figure, heading, save, thousands
from .processes import Processes, open_processes
from .report import certificate_line, conditions_lines, markdown_table, number
from .run import Plan, Say, drain
from .sampling import rss_bytes
from .workloads import find

INTERVAL_SECONDS = 10.0
MINUTE_SECONDS = 60.0
RATE_KEPT_MIN = 0.9
RSS_GROWTH_MAX = 1.15
SIZE_GROWTH_MAX = 1.15
MEGABYTE = 1024 * 1024
RETENTION_SLACK_SECONDS = 30.0
"""Retention removes in rounds: rows may go a little before the certificate thinks of them as old."""


class Reading(msgspec.Struct, frozen=True):
    """One interval, by its end. Bytes and rows are of all shards; ``tables`` are bytes by kind, indexes included."""

    at_seconds: float
    workflows_per_second: float
    database_bytes: int
    tables: dict[str, int]
    dead_rows: int
    executor_rss_bytes: int


class Verdict(msgspec.Struct, frozen=True):
    """One claim. ``holds`` is None if the run was too short to tell."""

    claim: str
    found: str
    holds: bool | None


class Soak(msgspec.Struct, frozen=True):
    """What ``bench soak`` found."""

    workload: str
    minutes: float
    rate: float | None
    shards: int
    executors: int
    retention_seconds: float | None
    readings: tuple[Reading, ...]
    verdicts: tuple[Verdict, ...]
    lost: int
    duplicated: int
    misordered: int
    certificate: Certificate
    conditions: dict[str, dict[str, str]]

    @property
    def holds(self) -> bool:
        return self.certificate.holds and all(verdict.holds is not False for verdict in self.verdicts)


@dataclass(frozen=True)
class Sizes:
    """What the tables of all shards take."""

    database_bytes: int
    tables: dict[str, int]
    dead_rows: int


def sizes_of(config: ClusterConfig) -> Sizes:
    database, dead = 0, 0
    tables: dict[str, int] = {}
    for shard in config.shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            row = conn.execute("select pg_database_size(current_database())").fetchone()
            assert row is not None
            database += row[0]
            for name, size, dead_here in conn.execute(
                "select relname, sum(pg_total_relation_size(relid))::bigint, sum(n_dead_tup)::bigint "
                r"from pg_stat_user_tables where schemaname ~ '^wf_[0-9]{4,}$' group by 1 order by 1"
            ):
                tables[name] = tables.get(name, 0) + size
                dead += dead_here
    return Sizes(database, tables, dead)


def measure(cluster: Cluster, plan: Plan, minutes: float, retention_seconds: float | None, say: Say) -> Soak:
    """Run, read, judge. ``retention_seconds``: how long executors keep finished workflows; None: for ever. Raises
    ``BenchFailed`` if a process ends meanwhile."""
    workload = find(plan.workload, plan.steps)
    with open_processes(cluster.config, cluster.ledger) as processes:
        processes.start_executors(plan.executors, {**plan.options, "retention": retention_seconds})
        processes.start_clients(
            plan.clients, plan.workload, plan.steps, backlog=plan.backlog or workload.backlog, rate=plan.rate
        )
        readings = _read_on(cluster.config, processes, minutes * MINUTE_SECONDS, say)
        drained = drain(cluster, processes, say)
    say("certificate: comparing the rows with the ledger")
    retired_before = None
    if retention_seconds is not None:
        retired_before = datetime.now(UTC) - timedelta(seconds=retention_seconds - RETENTION_SLACK_SECONDS)
    certificate = certify(cluster.config, cluster.ledger, Expected(dict(workload.steps_of), drained, retired_before))
    return Soak(
        plan.workload, minutes, plan.rate, len(cluster.config.shards), plan.executors, retention_seconds,
        tuple(readings), tuple(verdicts_of(readings, retention_seconds)), certificate.count("lost"),
        certificate.count("duplicated"), certificate.count("misordered"), certificate, conditions_of(cluster.first),
    )  # fmt: skip


def _read_on(config: ClusterConfig, processes: Processes, seconds: float, say: Say) -> list[Reading]:
    interval = min(INTERVAL_SECONDS, seconds / 6)
    begun = at = time.monotonic()
    finished = 0
    readings: list[Reading] = []
    while at - begun < seconds - interval / 2:
        shown = f", {readings[-1].workflows_per_second:,.0f} workflows/s" if readings else ""
        say(f"{(at - begun) / 60:.1f} of {seconds / 60:g} min{shown}")
        time.sleep(max(0.0, begun + interval * (len(readings) + 1) - time.monotonic()))
        processes.check()
        now, count = time.monotonic(), processes.finished()
        sizes = sizes_of(config)
        memory = max(rss_bytes(process.pid) for process in processes.executors)
        readings.append(
            Reading(
                round(now - begun, 1), round((count - finished) / (now - at), 1), sizes.database_bytes, sizes.tables,
                sizes.dead_rows, memory,
            )
        )  # fmt: skip
        at, finished = now, count
    return readings


# --- verdicts -------------------------------------------------------------------------------------------------------


def minute(readings: Sequence[Reading], which: int) -> Sequence[Reading]:
    """The readings of one minute: 0 is the first, -1 the last whole one."""
    if not readings:
        return ()
    last = readings[-1].at_seconds
    begin = last - MINUTE_SECONDS if which == -1 else which * MINUTE_SECONDS
    return [one for one in readings if begin + 1 < one.at_seconds <= begin + MINUTE_SECONDS + 1]


def verdicts_of(readings: Sequence[Reading], retention_seconds: float | None) -> list[Verdict]:
    if not readings:
        raise BenchFailed("nothing was read: run it longer")
    if readings[-1].at_seconds < 3 * MINUTE_SECONDS - 2:
        return [Verdict("the last minute is as good as the second", "the run was shorter than three minutes", None)]
    second, last = minute(readings, 1), minute(readings, -1)
    size_from: Sequence[Reading] = ()
    if retention_seconds is not None:
        since = retention_seconds + MINUTE_SECONDS
        size_from = [one for one in readings if since <= one.at_seconds <= since + MINUTE_SECONDS]
    found = [
        _compare("workflows/s of the last minute over the second", second, last, _rate, at_least=RATE_KEPT_MIN),
        _compare("memory of the largest executor, likewise", second, last, _memory, at_most=RSS_GROWTH_MAX),
    ]
    if size_from and size_from[-1].at_seconds < last[0].at_seconds:
        claim = "size of the databases, last minute over the first after the retention period"
        found.append(_compare(claim, size_from, last, _size, at_most=SIZE_GROWTH_MAX))
    else:
        size = f"{_mean(last, _size) / MEGABYTE:,.0f} MB at the end"
        found.append(Verdict("size of the databases stays", f"{size}; no retention, or too short to tell", None))
    return found


def _rate(one: Reading) -> float:
    return one.workflows_per_second


def _memory(one: Reading) -> float:
    return one.executor_rss_bytes


def _size(one: Reading) -> float:
    return one.database_bytes


def _mean(readings: Sequence[Reading], of: Callable[[Reading], float]) -> float:
    return sum(map(of, readings)) / len(readings)


def _compare(
    claim: str, before: Sequence[Reading], after: Sequence[Reading], of: Callable[[Reading], float],
    *, at_least: float | None = None, at_most: float | None = None,
) -> Verdict:  # fmt: skip
    ratio = _mean(after, of) / _mean(before, of)
    if at_least is not None:
        return Verdict(claim, f"{ratio:.2f}, wanted at least {at_least:g}", ratio >= at_least)
    assert at_most is not None
    return Verdict(claim, f"{ratio:.2f}, wanted at most {at_most:g}", ratio <= at_most)


# --- report ---------------------------------------------------------------------------------------------------------


def verdict_mark(verdict: Verdict) -> str:
    return {True: "✓", False: "✗", None: "?"}[verdict.holds]


def write_report(path: Path, soak: Soak) -> None:
    """``path`` as Markdown, and a picture beside it if matplotlib is installed."""
    picture = path.with_suffix(".png")
    drawn = draw(soak, picture)
    head = ["minute", "workflows/s", "databases MB", "dead rows", "largest executor MB"]
    every = max(1, round(MINUTE_SECONDS / max(1.0, soak.readings[0].at_seconds)))
    rows = [
        [
            f"{one.at_seconds / 60:.1f}", number(one.workflows_per_second), number(one.database_bytes / MEGABYTE),
            number(one.dead_rows), number(one.executor_rss_bytes / MEGABYTE),
        ]
        for one in soak.readings[every - 1 :: every]
    ]  # fmt: skip
    shards = "1 shard" if soak.shards == 1 else f"{soak.shards} shards"
    lines = [f"# Soak: {soak.workload}, {soak.minutes:g} minutes, {shards}", ""]
    lines += [f"- {verdict_mark(one)} {one.claim}: {one.found}" for one in soak.verdicts] + [""]
    if drawn:
        lines += [f"![Over time]({picture.name})", ""]
    lines += [*markdown_table(head, rows), "", f"Certificate: {certificate_line(soak.certificate)}.", ""]
    lines += [f"- {violation}" for violation in soak.certificate.violations]
    path.write_text("\n".join([*lines, *conditions_lines(soak.conditions), ""]), encoding="utf-8")


def draw(soak: Soak, path: Path) -> bool:
    """Rate, sizes and memory over time."""
    if not available():
        return False
    made, (rate, size, memory) = figure(3, (12.5, 3.6))
    minutes = [one.at_seconds / 60 for one in soak.readings]
    _line(rate, minutes, [one.workflows_per_second for one in soak.readings], OURS, "Workflows/s")
    _line(size, minutes, [one.database_bytes / MEGABYTE for one in soak.readings], PARTS["postgres"], "Databases, MB")
    if soak.retention_seconds is not None:
        size.axvline(soak.retention_seconds / 60, color=BARE, linestyle="--", linewidth=1)
    used = [one.executor_rss_bytes / MEGABYTE for one in soak.readings]
    _line(memory, minutes, used, PARTS["client"], "Largest executor, MB in RAM")
    save(made, path)
    return True


def _line(axes: Any, minutes: list[float], values: list[float], colour: str, text: str) -> None:
    axes.plot(minutes, values, color=colour, linewidth=2)
    axes.set_ylim(0, max([*values, 1.0]) * 1.15)
    axes.set_xlim(0, minutes[-1])
    axes.set_xlabel("minutes", fontsize=9, color=INK)
    thousands(axes.yaxis)
    heading(axes, text)
