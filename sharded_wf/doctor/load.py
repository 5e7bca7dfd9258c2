"""Where the load is: by slot, by queue, by hash tag.

By slot it is what was written, from Postgres' own counters of each table: exact, and free of charge. Of queues and tags
nobody keeps count, so they are judged by a bounded sample of each slot: the workflows that were created a short while
ago, that run, and that are ready.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from sharded_wf.cluster.fanout import ask_each
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.doctor import commands
from sharded_wf.doctor.look import time_limits
from sharded_wf.errors import ShardUnavailable
from sharded_wf.limits import (
    LOOK_SECONDS,
    TOP_HOT_MIN_WORKFLOWS,
    TOP_HOT_PART,
    TOP_HOT_SLOT_FACTOR,
    TOP_SAMPLE_MAX_ROWS,
    TOP_WINDOW_SECONDS,
)
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import slots_present
from sharded_wf.postgres.queries import load
from sharded_wf.routing import slot_schema

_SQL = load("doctor")
_MAP = load("shard_map")
_STARTED, _RUNNING, _READY = range(3)


@dataclass(frozen=True, slots=True)
class Busy:
    """Workflows of a sample: created within ``TOP_WINDOW_SECONDS``, running, ready."""

    started: int = 0
    running: int = 0
    ready: int = 0

    def __add__(self, other: Busy) -> Busy:
        return Busy(self.started + other.started, self.running + other.running, self.ready + other.ready)

    @property
    def total(self) -> int:
        """All of them; one that was just created and runs counts twice."""
        return self.started + self.running + self.ready


@dataclass(frozen=True, slots=True)
class SlotLoad:
    """One slot. ``starts``, ``steps``, ``writes``: rows per second since the last look (writes: all of them, the
    workflows' changes of state included). ``part``: of all writes of the cluster. ``bytes``: with indexes."""

    slot: int
    shard: str
    starts: float
    steps: float
    writes: float
    part: float
    busy: Busy
    bytes: int


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """One queue, over all shards."""

    queue: str
    busy: Busy


@dataclass(frozen=True, slots=True)
class TagLoad:
    """One hash tag: the text in braces by which workflows share a slot. ``part``: of what its slot is busy with."""

    tag: str
    slot: int
    shard: str
    busy: Busy
    part: float


@dataclass(frozen=True, slots=True)
class Advice:
    """A tag that keeps a slot much busier than others, and the commands that give its slot a shard of its own.
    ``weight``: for that shard in shards.toml, so that `rebalance` leaves it at that one slot."""

    tag: TagLoad
    what: str
    commands: tuple[str, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Load:
    """One look at the cluster, the busiest first. ``seconds``: since the look before. ``silent``: why shards are
    missing."""

    seconds: float
    slots: tuple[SlotLoad, ...]
    queues: tuple[QueueLoad, ...]
    tags: tuple[TagLoad, ...]
    advice: tuple[Advice, ...]
    silent: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one shard said. ``counters``: starts, changes of workflows, steps, bytes, by slot."""

    at: float
    counters: Mapping[int, tuple[int, int, int, int]]
    sample: Mapping[int, list[tuple[int, str, str | None, int]]]


class Sampler:
    """Looks at the cluster again and again; each look tells what was done since the one before."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._before: dict[str, _Seen] = {}

    def look(self) -> Load:
        """Ask every shard; of what was not seen before there are no rates yet. Blocks for as long as the slowest shard,
        at most ``LOOK_SECONDS``. A shard that is away is named, and the others are shown."""
        answers = ask_each(
            self._config.shards, _look, purpose="top", deadline_seconds=LOOK_SECONDS, patience_seconds=LOOK_SECONDS
        )
        silent: dict[str, str] = {}
        for name, error in answers.failed.items():
            silent[name] = error.reason if isinstance(error, ShardUnavailable) else str(error).partition("\n")[0]
        before, self._before = self._before, {**self._before, **answers.given}
        seconds = max((seen.at - before[name].at for name, seen in answers.given.items() if name in before), default=0)
        slots = _slots(before, answers.given)
        tags = _tags(answers.given, slots)
        return Load(seconds, slots, _queues(answers.given), tags, _advise(self._config, slots, tags), silent)


def _look(_shard: ShardConfig, conn: Connection) -> _Seen:
    conn.read_only = True
    present = slots_present(conn)
    with conn.transaction(), conn.pipeline():
        fences = [(slot, conn.execute(_MAP["read_fence"].on(slot_schema(slot)))) for slot in present]
    live = [slot for slot, cursor in fences if any(row[3] for row in cursor.fetchall())]
    bounds = (TOP_WINDOW_SECONDS, TOP_SAMPLE_MAX_ROWS)
    with conn.transaction(), conn.pipeline():
        conn.execute(_SQL["set_bounds"].on(), time_limits())
        activity = conn.execute(_SQL["read_activity"].on(), ([slot_schema(slot) for slot in live],))
        at = time.monotonic()
        samples = [(slot, conn.execute(_SQL["sample_load"].on(slot_schema(slot)), bounds)) for slot in live]
    rows = cast(list[tuple[str, int, int, int, int]], activity.fetchall())
    counters = {int(schema.removeprefix("wf_")): counts for schema, *counts in rows}
    found = {slot: cast(list[tuple[int, str, str | None, int]], cursor.fetchall()) for slot, cursor in samples}
    return _Seen(at, cast(dict[int, tuple[int, int, int, int]], counters), found)


def _busy(rows: Iterable[tuple[int, str, str | None, int]]) -> Busy:
    counts = [0, 0, 0]
    for kind, _, _, count in rows:
        counts[kind] += count
    return Busy(counts[_STARTED], counts[_RUNNING], counts[_READY])


def _slots(before: Mapping[str, _Seen], now: Mapping[str, _Seen]) -> tuple[SlotLoad, ...]:
    found: list[SlotLoad] = []
    for shard, seen in now.items():
        known = before.get(shard)
        for slot, (starts, changes, steps, size) in seen.counters.items():
            old = known.counters.get(slot) if known is not None else None
            seconds = seen.at - known.at if known is not None else 0.0
            # Counters begin anew when the server was restarted after a crash, or they were reset.
            if old is None or seconds <= 0 or starts < old[0] or changes < old[1] or steps < old[2]:
                rates = (0.0, 0.0, 0.0)
            else:
                rates = ((starts - old[0]) / seconds, (steps - old[2]) / seconds,
                         (starts - old[0] + changes - old[1] + steps - old[2]) / seconds)  # fmt: skip
            found.append(SlotLoad(slot, shard, *rates, 0.0, _busy(seen.sample[slot]), size))
    whole = sum(one.writes for one in found)
    shared = [
        SlotLoad(one.slot, one.shard, one.starts, one.steps, one.writes, one.writes / whole if whole else 0.0, one.busy,
                 one.bytes)
        for one in found
    ]  # fmt: skip
    return tuple(sorted(shared, key=lambda one: (-one.writes, -one.busy.total, one.slot)))


def _queues(now: Mapping[str, _Seen]) -> tuple[QueueLoad, ...]:
    found: dict[str, Busy] = {}
    for seen in now.values():
        for row in (row for rows in seen.sample.values() for row in rows):
            found[row[1]] = found.get(row[1], Busy()) + _busy([row])
    return tuple(sorted((QueueLoad(*item) for item in found.items()), key=lambda one: (-one.busy.total, one.queue)))


def _tags(now: Mapping[str, _Seen], slots: Iterable[SlotLoad]) -> tuple[TagLoad, ...]:
    whole = {one.slot: one.busy.total for one in slots}
    found: list[TagLoad] = []
    for shard, seen in now.items():
        for slot, rows in seen.sample.items():
            tags: dict[str, Busy] = {}
            for row in rows:
                if row[2] is not None:
                    tags[row[2]] = tags.get(row[2], Busy()) + _busy([row])
            found += [TagLoad(tag, slot, shard, busy, busy.total / whole[slot]) for tag, busy in tags.items()]
    return tuple(sorted(found, key=lambda one: (-one.busy.total, one.tag)))


def _advise(config: ClusterConfig, slots: tuple[SlotLoad, ...], tags: Iterable[TagLoad]) -> tuple[Advice, ...]:
    """For tags that are most of what a slot is busy with, where that slot is much busier than the average one and has
    company."""
    if len(slots) < 2:
        return ()
    held = {shard.name: [one for one in slots if one.shard == shard.name] for shard in config.shards}
    by_slot = {one.slot: one for one in slots}
    # Without a rate yet, or with nothing moving, by what waits.
    weighs = {one.slot: one.writes for one in slots} if any(one.writes for one in slots) else {
        one.slot: float(one.busy.total) for one in slots}  # fmt: skip
    mean = sum(weighs.values()) / len(slots)
    found: list[Advice] = []
    for tag in tags:
        hot = tag.part >= TOP_HOT_PART and tag.busy.total >= TOP_HOT_MIN_WORKFLOWS
        if not hot or weighs[tag.slot] < TOP_HOT_SLOT_FACTOR * mean or len(held[tag.shard]) == 1:
            continue
        part = by_slot[tag.slot].part
        load_of_slot = f"which makes {part:.0%} of all writes" if part else "the busiest"
        what = f"{tag.part:.0%} of the load of slot {tag.slot} ({load_of_slot}) is of {{{tag.tag}}}"
        others = [shard.name for shard in config.shards if shard.name != tag.shard and shard.name in held]
        free = [name for name in others if not held[name]]
        if free:
            todo: tuple[str, ...] = (commands.cli(config, "shards", "move", str(tag.slot), "--to", free[0]),)
        else:
            todo = (
                commands.cli(config, "shards", "add", "NAME", "--dsn", "DSN"),
                commands.cli(config, "shards", "move", str(tag.slot), "--to", "NAME"),
            )
        weights = sum(shard.weight for shard in config.shards if shard.name not in free[:1])
        found.append(Advice(tag, what, todo, weights / (len(slots) - 1)))
    return tuple(found)
