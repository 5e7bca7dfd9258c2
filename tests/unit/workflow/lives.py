"""A workflow that is killed again and again, and lives on from what is durable."""

from __future__ import annotations

import asyncio
from typing import Any

from sharded_wf import App
from sharded_wf.model.history import EMPTY_HISTORY, History
from sharded_wf.workflow.bound import Bound
from tests.unit.workflow.memory_host import START_US, MemoryHost, run_virtual


def lives(
    app: App, bound: Bound[Any], *, after_entries: int | None = None, after_beats: int | None = None
) -> tuple[Any, int]:
    """Run a workflow, its host killed after so many entries or heartbeats, again and again; its result and the number
    of lives."""
    history, now = EMPTY_HISTORY, 0.0
    for life in range(1, 200):

        async def main(history: History = history, skipped: float = now) -> tuple[Any, History, float]:
            host = MemoryHost(app, crash_after=after_entries)
            host.clock._first -= skipped  # time went on while nobody was there
            host.crash_after_beats = after_beats
            try:
                run = host.begin(bound, history=history, started_at=START_US)
                ended = asyncio.create_task(host.outcome(run.id))
                died = asyncio.create_task(host.crashed.wait())
                await asyncio.wait([ended, died], return_when=asyncio.FIRST_COMPLETED)
                died.cancel()
                later = (host.clock.now_us() - START_US) / 1e6
                if not ended.done():
                    ended.cancel()
                    return None, host.stored[run.id].history(), later
                return (await host.result(bound),), host.stored[run.id].history(), later
            finally:
                host.close()

        result, history, now = run_virtual(main())
        if result is not None:
            return result[0], life
    raise AssertionError("it never ended")
