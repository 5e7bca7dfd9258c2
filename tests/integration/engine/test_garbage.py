"""Workflows that have ended leave nothing to the garbage collector: it would cost an executor a fifth of its time."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest

from tests.support.cluster import TestCluster
from tests.support.flows import app, chain

WORKFLOWS = 300


@pytest.mark.sampled
def test_ended_workflows_are_freed_without_the_garbage_collector(cluster: TestCluster) -> None:
    async def main() -> Counter[str]:
        async with app.executor(cluster.config), app.connect(cluster.config) as client:

            async def some() -> None:
                handles = await client.start_many(chain.bind(2) for _ in range(WORKFLOWS))
                await asyncio.gather(*(handle.result(30) for handle in handles))

            await some()  # what is made once is made
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                await some()
                gc.collect()
                return Counter(type(thing).__name__ for thing in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    left = asyncio.run(main())
    assert sum(left.values()) < WORKFLOWS, left
