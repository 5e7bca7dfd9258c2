"""The bare loop (../ceiling.py): the same durable writes, with no engine at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg

from .. import ceiling
from .contender import SPAWN, Count, Process, Shape, Told, Window, query_count


@dataclass(frozen=True)
class BareLoop:
    name: str = "bare loop"
    packages: tuple[str, ...] = ("psycopg",)
    unit: str = "workflows"
    has_steps: bool = True
    not_like_for_like: str = (
        "The bare loop is no engine but the ceiling: it makes the same durable writes, batched, and nothing else, so "
        "it recovers from nothing."
    )
    configuration: dict[str, Any] = field(
        default_factory=lambda: {"batch": ceiling.BATCH, "in_flight": ceiling.IN_FLIGHT, "ahead": ceiling.BACKLOG}
    )

    def prepare(self, dsn: str, shape: Shape) -> None:
        ceiling.create(dsn, shape.slots)

    def processes(self, dsn: str, shape: Shape, told: Told) -> list[Process]:
        done = told.finished
        slots, executors = shape.slots, shape.executors
        return [
            SPAWN.Process(target=ceiling.vacuum, args=(dsn, slots), daemon=True),
            SPAWN.Process(target=ceiling.starter, args=(dsn, slots, done), daemon=True),
            *(
                SPAWN.Process(
                    target=ceiling.executor,
                    args=(f"e{number}", number * slots // executors, dsn, slots, shape.steps, done),
                    daemon=True,
                )
                for number in range(executors)
            ),
        ]

    def count(self, connection: psycopg.Connection[Any], shape: Shape, window: Window) -> Count:
        rows = " union all ".join(
            f"""
            select count(*) filter (where created_at > b and created_at <= e),
                count(*) filter (where status = 2 and completed_at > b and completed_at <= e),
                count(*) filter (where status = 2), (select count(*) from {ceiling.schema(slot)}.step)
            from {ceiling.schema(slot)}.workflow,
                (values (to_timestamp(%(begin)s), to_timestamp(%(end)s))) bounds (b, e)
            """
            for slot in range(shape.slots)
        )
        return query_count(connection, f"select sum(a), sum(b), sum(c), sum(d) from ({rows}) t (a, b, c, d)", window)


BARE_LOOP = BareLoop()
