"""What a run found, as JSON names it. Numbers that could not be measured are null, and ``notes`` says why."""

from __future__ import annotations

import msgspec

from .certificate import Certificate
from .percentiles import Latency


class Cpu(msgspec.Struct, frozen=True):
    """CPU microseconds (user and system) for each workflow that ended within the window, on each side. ``postgres``:
    all processes of the shards' servers; null where they are not ours to look at."""

    postgres: float | None
    executor: float | None
    client: float | None


class ShardResult(msgspec.Struct, frozen=True):
    """One shard's part, by its own rows. Executors and clients serve all shards: their CPU is not split."""

    workflows_per_second: float
    steps_per_second: float
    latency_ms: Latency
    cpu_us_per_workflow: Cpu
    wal_bytes_per_workflow: float | None
    commits_per_workflow: float | None
    lost: int
    duplicated: int
    misordered: int


class Result(msgspec.Struct, frozen=True):
    """One run of one workload."""

    workload: str
    steps: int
    loop: str
    """``closed``: as fast as it goes; ``open``: at ``rate`` starts a second."""
    rate: float | None
    seconds: float
    shards: int
    slots: int
    executors: int
    clients: int
    workflows_per_second: float
    steps_per_second: float
    round_trips_per_second: float | None
    ceiling_workflows_per_second: float | None
    ceiling_before_and_after: tuple[float, ...]
    ratio_to_ceiling: float | None
    latency_ms: Latency
    cpu_us_per_workflow: Cpu
    wal_bytes_per_workflow: float | None
    commits_per_workflow: float | None
    lost: int
    duplicated: int
    misordered: int
    rates: tuple[float, ...]
    """Workflows a second, every ``rates_every_seconds``."""
    rates_every_seconds: float
    per_shard: dict[str, ShardResult]
    certificate: Certificate
    notes: tuple[str, ...]
    conditions: dict[str, dict[str, str]]
    """``machine``, ``versions``, ``settings`` (of the first shard's server), ``run`` (when, which command, commit)."""
