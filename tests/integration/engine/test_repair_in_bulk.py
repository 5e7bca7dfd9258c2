"""Resumes and forks of all that a filter finds."""

from __future__ import annotations

import asyncio

import pytest

from sharded_wf import Failed, Repaired, Status
from tests.integration.engine.test_repair import running
from tests.support.cluster import TestCluster
from tests.support.flows import chain
from tests.support.repair_flows import Refused, fragile_chain, mend, sync_fragile


def test_in_bulk_with_a_dry_run_and_progress(two_shards: TestCluster) -> None:
    ids = [f"w-{number}" for number in range(30)]

    async def go() -> None:
        async with running(two_shards) as client:
            handles = await client.start_many((id_, fragile_chain.bind(1, 0)) for id_ in ids)
            other = await client.start(sync_fragile.bind("x"), id="other")
            for handle in (*handles, other):
                with pytest.raises((RuntimeError, Refused)):
                    await handle.result(30)
            wanted = Failed(name="engine/fragile_chain", error="RuntimeError")
            assert await client.resume_many(wanted, dry_run=True) == Repaired(30, 0)
            assert await client.resume_many(Failed(error="Elsewhere")) == Repaired(0, 0)
            assert await client.fork_many(Failed(name="engine/sync_fragile"), from_step=1) == Repaired(1, 1)
            await asyncio.to_thread(mend, two_shards.ledger)
            told: list[int] = []
            total = await client.resume_many(wanted, progress=lambda so_far: told.append(so_far.done))
            assert total == Repaired(30, 30)
            assert told[-1] == 30
            assert [await handle.result(30) for handle in handles] == [2] * 30
            assert await other.status() is Status.FAILED

    asyncio.run(go())


def test_forks_in_bulk_skip_what_lacks_the_step(two_shards: TestCluster) -> None:
    async def go() -> None:
        async with running(two_shards) as client:
            handles = await client.start_many(
                [(f"w-{number}", fragile_chain.bind(number % 2, 0)) for number in range(8)]
            )
            for handle in handles:
                with pytest.raises(RuntimeError):
                    await handle.result(30)
            await client.start(chain.bind(0), id="w-3-fork")  # in the way of one
            await asyncio.to_thread(mend, two_shards.ledger)
            wanted = Failed(name="engine/fragile_chain")
            dry = await client.fork_many(wanted, from_step="note", dry_run=True)
            assert (dry.matched, dry.done, dry.skipped) == (8, 0, 4), "those that made no note"
            total = await client.fork_many(wanted, from_step="note")
            assert (total.matched, total.done, total.skipped) == (8, 3, 5)
            assert total.reasons.keys() == {"w-0", "w-2", "w-3", "w-4", "w-6"}
            assert total.reasons["w-0"] == "workflow 'w-0' has recorded no step 'note'"
            assert "is no fork of 'w-3'" in total.reasons["w-3"]
            for number in (1, 5, 7):
                assert await client.get_handle(f"w-{number}-fork", int).result(30) == 2

    asyncio.run(go())
