"""Resume and fork of what continued as new: they go on from the present run, not from the first."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.support.cluster import TestCluster
from tests.support.repair_flows import app, fragile_meter, mend


def test_what_continued_as_new_is_resumed_and_forked_in_its_present_run(cluster: TestCluster) -> None:
    async def go() -> None:
        async with app.executor(cluster.config), app.connect(cluster.config) as client:
            handle = await client.start(fragile_meter.bind(1), id="w")
            with pytest.raises(Exception, match="number 10"):
                await handle.result(30)
            await asyncio.to_thread(mend, cluster.ledger)
            assert await client.resume("w")
            assert await handle.result(30) == [3, 3]
            forked = await client.fork("w", from_step=1, new_id="f")
            assert await forked.result(30) == [3, 3]
            assert not (await client.fork("w", from_step=1, new_id="f")).created
            later = await client.fork("w", from_step="fragile_note", new_id="g")
            assert await later.result(30) == [3, 3]

    asyncio.run(go())
    assert Counter((workflow, number) for workflow, _, number, _, _ in cluster.bodies()) == {
        ("w", 1): 1, ("w", 2): 1, ("w", 3): 1, ("w", 10): 2, ("f", 3): 1, ("f", 10): 1, ("g", 10): 1,
    }  # fmt: skip
