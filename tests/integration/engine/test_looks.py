"""What was announced before the code awaited it is looked for, and a workflow is not parked before that look."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sharded_wf import App, receive
from sharded_wf.executor.lookups import Lookups
from tests.support.cluster import TestCluster
from tests.support.processes import wait_until

PARK_AFTER_SECONDS = 0.1
SLOW_SECONDS = 1.5
"""Longer than a workflow waits until it is parked, the executor's rounds included."""
app = App("looks")


@app.workflow
async def child() -> str:
    return "x"


@app.workflow
async def awaits_later() -> str:
    handle = await child.start()
    await receive("go")
    return await handle.result()


@app.workflow
def awaits_later_blocking() -> str:
    handle = child.start_blocking()
    receive.blocking("go")
    return handle.result()


def children_have_ended(cluster: TestCluster) -> bool:
    """And their parents, who do not await them yet, were told."""
    rows = cluster.rows()
    return len(rows.message) == 2 and not rows.wake


def test_a_look_takes_longer_than_workflows_wait_in_memory(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Lookups._look

    async def slow_look(self: Lookups, histories: Any, expecting: Any) -> None:
        if expecting:
            await asyncio.sleep(SLOW_SECONDS)
        await look(self, histories, expecting)

    monkeypatch.setattr(Lookups, "_look", slow_look)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config, park_after=PARK_AFTER_SECONDS):
            handles = [
                await client.start(awaits_later.bind(), id="a"),
                await client.start(awaits_later_blocking.bind(), id="b"),
            ]
            await asyncio.to_thread(wait_until, lambda: children_have_ended(cluster), "the children's ends, announced")
            for handle in handles:
                await client.send(handle.id, "go", None)
            assert await asyncio.gather(*(handle.result(20) for handle in handles)) == ["x", "x"]
            await asyncio.to_thread(cluster.certify)

    asyncio.run(go())
