"""Does what grows cost more? The same closed loop four times, on one cluster:

- ``fresh``: empty tables;
- ``finished``: beside so many finished workflows of long ago (rows written with plain SQL);
- ``ready``: with so many workflows in the queue before the first is claimed, and kept there;
- ``pinned``: with an idle transaction elsewhere in the database that holds back vacuum, for the whole window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import msgspec
import psycopg
from psycopg import sql

from sharded_wf.config import ClusterConfig

from .certificate import slots_of
from .cluster import Cluster, Shape, open_cluster
from .parked import start_all
from .result import Result
from .run import Plan, Say, run

CHUNK_ROWS = 500_000
DRAINED_PER_SECOND_MIN = 2_000

# Rows as the engine leaves them; the IDs are in order of time, and the outcome is that of a workflow without steps.
_FINISHED = """
insert into {s}.workflow (created_at, started_at, completed_at, claim_id, status, priority, claims, id, name,
    capability, queue, input, output)
select at, at, at, gen_random_uuid(), 3, 0, 1, 'finished-' || lpad(n::text, 12, '0'), 'bench/finished', 'bench',
    'default', '[0,"hello world"]', '{{"ok":true}}'
from (select n, now() - interval '30 days' + n * interval '1 ms' as at from generate_series({first}, {last}) n) g
"""


class Case(msgspec.Struct, frozen=True):
    """One condition. ``ratio``: its rate over the fresh cluster's; ``late_ratio``: its last part over its first."""

    name: str
    about: str
    workflows_per_second: float
    ratio: float
    late_ratio: float
    result: Result


class Flat(msgspec.Struct, frozen=True):
    """What ``bench flat`` found."""

    cases: tuple[Case, ...]

    @property
    def holds(self) -> bool:
        return all(case.result.certificate.holds for case in self.cases)


def measure(shape: Shape, plan: Plan, finished: int, ready: int, pinned_seconds: float, say: Say) -> Flat:
    """Each case on a cluster of its own; ``plan.seconds`` is the window of all but ``pinned``."""
    plain = replace(plan, ceiling=False)

    def measure_one(
        name: str, case: Plan, prepare: Callable[[Cluster], object] | None = None, *, pin: bool = False
    ) -> Result:
        def say_here(text: str) -> None:
            say(f"{name}: {text}")

        with open_cluster(shape) as cluster, pinned(cluster.config) if pin else nullcontext():
            if prepare is not None:
                say_here("preparing")
                prepare(cluster)
            return run(cluster, case, say_here)

    fresh = measure_one("fresh", plain)
    results = [
        ("fresh", "empty tables", fresh),
        (
            "finished",
            f"{finished:,} finished workflows beside it",
            measure_one("finished", plain, lambda cluster: insert_finished(cluster.config, finished)),
        ),
        (
            "ready",
            f"{ready:,} workflows more in the queue all the time",
            measure_one(
                "ready",
                replace(plain, drain_seconds=plain.drain_seconds + ready / DRAINED_PER_SECOND_MIN),
                lambda cluster: asyncio.run(start_all(cluster, ready, None, say)),
            ),
        ),
        (
            "pinned",
            f"an idle transaction holds back vacuum for {pinned_seconds:g} s and the window",
            measure_one("pinned", replace(plain, seconds=pinned_seconds), pin=True),
        ),
    ]
    return Flat(
        tuple(
            Case(
                name, about, one.workflows_per_second, round(one.workflows_per_second / fresh.workflows_per_second, 3),
                round(one.rates[-1] / one.rates[0], 3) if one.rates[0] else 0.0, one,
            )
            for name, about, one in results
        )
    )  # fmt: skip


def insert_finished(config: ClusterConfig, count: int) -> None:
    """Write finished workflows into all slots evenly, then tell the planner and the visibility map."""
    for number, shard in enumerate(config.shards):
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            schemas = slots_of(conn)
            each = count // (len(config.shards) * len(schemas))
            for place, schema in enumerate(schemas):
                base = (number * len(schemas) + place) * each
                for first in range(base, base + each, CHUNK_ROWS):
                    last = min(base + each, first + CHUNK_ROWS) - 1
                    query = sql.SQL(_FINISHED).format(
                        s=sql.Identifier(schema), first=sql.Literal(first), last=sql.Literal(last)
                    )
                    conn.execute(query)
                conn.execute(sql.SQL("vacuum analyze {}.workflow").format(sql.Identifier(schema)))


@contextmanager
def pinned(config: ClusterConfig) -> Generator[None]:
    """While the block runs, a snapshot is held on each shard: nothing that dies meanwhile can be vacuumed."""
    with ExitStack() as exits:
        for shard in config.shards:
            conn = exits.enter_context(psycopg.connect(shard.dsn))
            conn.execute("set transaction isolation level repeatable read")
            conn.execute("select pg_current_xact_id()")
            exits.callback(conn.rollback)
        yield
