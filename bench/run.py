"""One run: bare loop, engine, bare loop; then drain, and the certificate. What ``bench run`` does, and ``scale`` for
each of its points."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sharded_wf.errors import BenchFailed

from .bare import run_bare_loop
from .certificate import Certificate, Expected, certify, unfinished, untidied
from .checks import DUPLICATED, LOST, MISORDERED
from .cluster import Cluster
from .conditions import conditions_of
from .features import find
from .percentiles import Latency, latency_of
from .processes import Processes, open_processes
from .result import Cpu, Result, ShardResult
from .rows import ShardRows, rows_of
from .sampling import Sampler, Usage
from .workloads import Workload

WARM_UP_SECONDS = 3.0
FIRST_START_SECONDS_MAX = 30.0
FIRST_START_POLL_SECONDS = 0.05
RATES_EVERY_SECONDS = 5.0
DRAIN_SECONDS_MAX = 60.0
DRAIN_POLL_SECONDS = 0.2
FROM_ROWS = (
    "created_at to completed_at, by the rows of all workflows that ended in the window (the backlog's wait included)"
)
FROM_CLIENT = "intended start to result in the client's hand, of sampled starts"

Say = Callable[[str], None]
"""Shows what goes on; one line, which the next one may replace."""


@dataclass(frozen=True)
class Plan:
    """What to run. ``rate``: starts of units a second of the open loop; None: closed. ``ceiling``: run the bare loop
    before and after, if the workload has a like there. ``slots``: of the whole cluster. ``backlog``: workflows
    that clients may be ahead, None: the workload's own. ``options``: keywords of ``Executor``."""

    workload: str
    steps: int
    seconds: float
    slots: int
    rate: float | None = None
    executors: int = 2
    clients: int = 1
    ceiling: bool = True
    backlog: int | None = None
    warm_up_seconds: float = WARM_UP_SECONDS
    drain_seconds: float = DRAIN_SECONDS_MAX
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """What was read while the engine ran."""

    first: datetime
    last: datetime
    first_monotonic: float
    last_monotonic: float
    finished: int
    usage: Usage
    rates: tuple[float, ...]
    drained: bool
    timed: Sequence[tuple[str, float]]
    """Of the open loop: shard and seconds, for each sampled start that was intended within the window."""

    @property
    def seconds(self) -> float:
        return self.last_monotonic - self.first_monotonic


def run(cluster: Cluster, plan: Plan, say: Say) -> Result:
    """Measure, and judge. A violation is no error: it is in the result. Raises ``BenchFailed`` if there is none."""
    workload = find(plan.workload, plan.steps)
    ceilings: list[float] = []
    measure_ceiling = plan.ceiling and workload.ceiling_steps is not None and plan.rate is None
    if measure_ceiling:
        ceilings.append(_ceiling(cluster, plan, workload, say))
    with open_processes(cluster.config, cluster.ledger) as processes:
        window = _run_engine(cluster, plan, processes, say)
    if measure_ceiling:
        ceilings.append(_ceiling(cluster, plan, workload, say))
    say("certificate: comparing the rows with the ledger")
    certificate = certify(cluster.config, cluster.ledger, Expected(dict(workload.steps_of), window.drained))
    return _result(cluster, plan, workload, window, ceilings, certificate)


def _ceiling(cluster: Cluster, plan: Plan, workload: Workload, say: Say) -> float:
    say("the bare loop on the first shard's server")
    assert workload.ceiling_steps is not None
    slots = max(1, plan.slots // len(cluster.config.shards))
    answer = run_bare_loop(
        cluster.bare, seconds=plan.seconds / 2, steps=workload.ceiling_steps, slots=slots, executors=plan.executors
    )
    return float(answer["workflows_per_second"])


# --- while it runs --------------------------------------------------------------------------------------------------


def _run_engine(cluster: Cluster, plan: Plan, processes: Processes, say: Say) -> Window:
    say("starting executors and clients")
    processes.start_executors(plan.executors, plan.options)
    processes.start_clients(
        plan.clients,
        plan.workload,
        plan.steps,
        rate=plan.rate,
        backlog=plan.backlog or find(plan.workload, plan.steps).backlog,
    )
    sampler = Sampler(cluster.config, cluster.servers)
    try:
        _wait_for_starts(processes)
        _wait(processes, plan.warm_up_seconds, say, "warming up")
        executors = [process.pid for process in processes.executors]
        clients = [process.pid for process in processes.clients]
        first, first_monotonic = datetime.now(UTC), time.monotonic()
        before, counted = sampler.read(executors, clients), processes.finished()
        rates = _count_rates(processes, plan.seconds, say)
        last, last_monotonic = datetime.now(UTC), time.monotonic()
        finished = processes.finished() - counted
        usage = sampler.read(executors, clients).since(before)
    finally:
        sampler.close()
    drained = drain(cluster, processes, say, plan.drain_seconds)
    timed = [
        (one.shard, one.seconds)
        for one in processes.timed()
        if first_monotonic <= one.intended_at < last_monotonic
    ]  # fmt: skip
    return Window(first, last, first_monotonic, last_monotonic, finished, usage, tuple(rates), drained, timed)


def _wait_for_starts(processes: Processes) -> None:
    """Until the first client starts something: on a busy machine its process alone takes a while to come up."""
    deadline = time.monotonic() + FIRST_START_SECONDS_MAX
    while not processes.started() and time.monotonic() < deadline:
        processes.check()
        time.sleep(FIRST_START_POLL_SECONDS)


def _wait(processes: Processes, seconds: float, say: Say, what: str) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        say(what)
        time.sleep(min(left, 0.5))
        processes.check()


def _count_rates(processes: Processes, seconds: float, say: Say) -> list[float]:
    """Let the window pass; workflows a second for each part of it."""
    rates: list[float] = []
    parts = max(1, round(seconds / RATES_EVERY_SECONDS))
    begun = time.monotonic()
    for part in range(1, parts + 1):
        first, at = processes.finished(), time.monotonic()
        shown = f"{rates[-1]:,.0f} workflows/s, " if rates else ""
        _wait(processes, begun + seconds * part / parts - at, say, f"{shown}{at - begun:.0f} of {seconds:g} s")
        rates.append((processes.finished() - first) / (time.monotonic() - at))
    return rates


def drain(cluster: Cluster, processes: Processes, say: Say, seconds: float = DRAIN_SECONDS_MAX) -> bool:
    """Stop starting, let what was started come to its end, end the executors; whether all has ended. The clients end
    beside it: those of the open loop wait for results."""
    say("draining: nothing is started any more")
    processes.end(processes.clients)
    deadline = time.monotonic() + seconds
    drained = False
    while not drained and time.monotonic() < deadline:
        processes.check()
        left = processes.started() - processes.finished()
        say(f"draining: {max(0, left):,} workflows to go")
        if left <= 0 or unfinished_is_close(processes):
            drained = unfinished(cluster.config.shards) == 0
        if not drained:
            time.sleep(DRAIN_POLL_SECONDS)
    while drained and untidied(cluster.config.shards) and time.monotonic() < deadline:
        time.sleep(DRAIN_POLL_SECONDS)
    processes.end(processes.executors)
    return drained


def unfinished_is_close(processes: Processes) -> bool:
    """Executors may count less than all (they count what they flushed): when nothing moves, look at the rows."""
    before = processes.finished()
    time.sleep(DRAIN_POLL_SECONDS)
    return processes.finished() == before


# --- afterwards -----------------------------------------------------------------------------------------------------


def _result(
    cluster: Cluster,
    plan: Plan,
    workload: Workload,
    window: Window,
    ceilings: Sequence[float],
    certificate: Certificate,
) -> Result:
    config = cluster.config
    closed = plan.rate is None
    rows = {one.name: rows_of(one, window.first, window.last, latencies=closed) for one in config.shards}
    workflows = sum(one.workflows for one in rows.values())
    if not workflows:
        raise BenchFailed(
            "no workflow ended within the window: run it longer, at a lower rate, or with a smaller backlog"
        )
    timed: dict[str, list[float]] = {name: one.latencies for name, one in rows.items()}
    if not closed:
        timed = {name: [seconds for shard, seconds in window.timed if shard == name] for name in rows}
    of = FROM_ROWS if closed else FROM_CLIENT
    everything = latency_of((seconds for found in timed.values() for seconds in found), of)
    usage = window.usage
    postgres = sum(usage.postgres_cpu_seconds.values()) if usage.postgres_cpu_seconds else None
    rate = workflows / window.seconds
    ceiling = sum(ceilings) / len(ceilings) if ceilings else None
    round_trips = rate / workload.workflows * workload.round_trips if workload.round_trips else None
    return Result(
        workload=plan.workload, steps=plan.steps, loop="closed" if closed else "open", rate=plan.rate,
        seconds=round(window.seconds, 3), shards=len(config.shards), slots=plan.slots, executors=plan.executors,
        clients=plan.clients,
        workflows_per_second=round(rate, 1),
        steps_per_second=round(sum(one.steps for one in rows.values()) / window.seconds, 1),
        round_trips_per_second=None if round_trips is None else round(round_trips, 1),
        ceiling_workflows_per_second=None if ceiling is None else round(ceiling, 1),
        ceiling_before_and_after=tuple(round(one, 1) for one in ceilings),
        ratio_to_ceiling=None if ceiling is None else round(rate / ceiling, 3),
        latency_ms=everything,
        cpu_us_per_workflow=Cpu(
            _each(postgres, workflows, 1e6), _each(usage.executor_cpu_seconds, workflows, 1e6),
            _each(usage.client_cpu_seconds, workflows, 1e6),
        ),
        wal_bytes_per_workflow=_each(sum(usage.wal_bytes.values()), workflows),
        commits_per_workflow=_each(sum(usage.commits.values()), workflows, digits=4),
        lost=certificate.count(LOST), duplicated=certificate.count(DUPLICATED),
        misordered=certificate.count(MISORDERED),
        rates=tuple(round(one, 1) for one in window.rates),
        rates_every_seconds=round(window.seconds / len(window.rates), 2),
        per_shard={name: _shard(name, rows[name], timed[name], of, window, certificate) for name in rows},
        certificate=certificate,
        notes=tuple(_notes(cluster, plan, workload, window, workflows)),
        conditions=conditions_of(cluster.first),
    )  # fmt: skip


def _shard(
    name: str, rows: ShardRows, timed: list[float], of: str, window: Window, certificate: Certificate
) -> ShardResult:
    usage = window.usage
    latency: Latency = latency_of(timed, of)
    return ShardResult(
        round(rows.workflows / window.seconds, 1),
        round(rows.steps / window.seconds, 1),
        latency,
        Cpu(_each(usage.postgres_cpu_seconds.get(name), rows.workflows, 1e6), None, None),
        _each(usage.wal_bytes[name], rows.workflows),
        _each(usage.commits[name], rows.workflows, digits=4),
        certificate.count(LOST, name),
        certificate.count(DUPLICATED, name),
        certificate.count(MISORDERED, name),
    )


def _each(total: float | None, workflows: int, unit: float = 1.0, digits: int = 1) -> float | None:
    return None if total is None or not workflows else round(total * unit / workflows, digits)


def _notes(cluster: Cluster, plan: Plan, workload: Workload, window: Window, workflows: int) -> list[str]:
    notes: list[str] = []
    if not cluster.servers:
        notes.append("The servers are not ours: their CPU is not measured, and WAL is that of the whole server.")
    if plan.ceiling and plan.rate is None:
        if workload.ceiling_steps is None:
            notes.append(f"The bare loop has nothing like {plan.workload}: no ceiling.")
        elif len(cluster.config.shards) > 1:
            notes.append("The ceiling is that of the bare loop on one server, the first shard's.")
    if abs(window.finished - workflows) > max(100, workflows * 0.05):
        notes.append(f"The executors counted {window.finished:,} workflows in the window, the rows {workflows:,}.")
    if not window.drained:
        notes.append(f"Not all had ended {plan.drain_seconds:g} s after the last start: only what has ended is judged.")
    return notes
