"""The pace of retention: gentle while it keeps up, and never so gentle that tables grow without end."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from sharded_wf import Retention
from sharded_wf.limits import RETENTION_BATCH_BEHIND_MAX_ROWS, RETENTION_BATCH_MAX_ROWS
from sharded_wf.maintenance.sweep import Page, Sweep
from tests.support.aging import slots_of
from tests.support.cluster import TestCluster
from tests.support.flows import app
from tests.support.processes import until

LARGE, SMALL = 3 * RETENTION_BATCH_BEHIND_MAX_ROWS, RETENTION_BATCH_MAX_ROWS // 2


def test_who_is_behind_takes_larger_batches(cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    full, little = slots_of(cluster)[:2]
    with psycopg.connect(cluster.direct[0], autocommit=True) as conn:
        for slot, count in ((full, LARGE), (little, SMALL)):
            made = f"generate_series(1, {count}) n"
            conn.execute(
                f"insert into {slot}.workflow (created_at, completed_at, status, priority, id, name, capability, queue,"
                " claims, input) select now() - interval '3 h' + n * interval '1 ms', now() - interval '2 h', 3, 0,"
                f" '{slot}-' || n, 'engine/echo', 'engine', 'default', 1, '[]' from {made}".encode()
            )
    limits: dict[str, list[int]] = {full: [], little: []}
    look = Sweep.page

    async def noted(self: Sweep, slot: int, *place: Any, limit: int) -> Page:
        page = await look(self, slot, *place, limit=limit)
        if page.old:
            limits[f"wf_{slot:04}"].append(limit)
        return page

    monkeypatch.setattr(Sweep, "page", noted)

    def left() -> list[tuple[int]]:
        return cluster.ask_all("workflow", "true")

    async def go() -> None:
        async with app.executor(cluster.config, retention=Retention(3600)):
            await until(lambda: not left(), "that all are gone")

    asyncio.run(go())
    assert limits[little] == [RETENTION_BATCH_MAX_ROWS]
    assert limits[full][:3] == [RETENTION_BATCH_MAX_ROWS, *[RETENTION_BATCH_BEHIND_MAX_ROWS] * 2]
