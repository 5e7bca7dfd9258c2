"""Retention at once, by a command: over all shards, from the beginning to the end of every slot's history.

It may run beside the executors' own, and beside itself: what another one removed is not there any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from sharded_wf.clock import SYSTEM_CLOCK, Clock, Microseconds
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ShardedWfError
from sharded_wf.limits import RETENTION_BATCH_MAX_ROWS, RETENTION_DRY_RUN_MAX_ROWS, RETENTION_PAUSE_FACTOR_BEHIND
from sharded_wf.maintenance.export import Export
from sharded_wf.maintenance.sweep import Page, Sweep, cutoffs_at
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.retention import Retention
from sharded_wf.store import retention as rows


@dataclass(slots=True)
class Group:
    """What is old of one workflow in one queue."""

    count: int = 0
    oldest: Microseconds = 0


@dataclass(slots=True)
class Swept:
    """What was found and removed. ``complete``: all was looked at; ``failed``: why a shard was left, by its name."""

    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    looked_at_slots: int = 0
    slots: int = 0
    old: int = 0
    deleted: int = 0
    complete: bool = True
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, page: Page) -> None:
        """Count a page."""
        self.old += len(page.old)
        self.deleted += page.deleted
        for row in page.old:
            group = self.groups.setdefault((row.queue, row.name), Group(0, row.created_at))
            group.count += 1
            group.oldest = min(group.oldest, row.created_at)


async def sweep_once(
    config: ClusterConfig,
    retention: Retention,
    *,
    dry_run: bool,
    report: Callable[[Swept], None] = lambda _: None,
    clock: Clock = SYSTEM_CLOCK,
) -> Swept:
    """Remove, or with ``dry_run`` count, what is old now. A dry run looks at a bounded number of workflows a shard.
    ``report`` is called now and then. Raises as ``load_map``; a shard that fails later is named in the answer."""
    swept = Swept()
    shards = await ShardSet.open(config, clock)
    try:
        swept.slots = sum(len(shard.slots) for shard in shards.shards.values())
        await asyncio.gather(
            *(_sweep_shard(shard, shards, retention, swept, report, dry_run) for shard in shards.shards.values())
        )
    finally:
        await shards.close()
    return swept


async def _sweep_shard(
    shard: Shard, shards: ShardSet, retention: Retention, swept: Swept, report: Callable[[Swept], None], dry_run: bool
) -> None:
    link = shard.link("retention-once")
    export = None if dry_run or retention.export is None else Export(retention.export, shard.name, shard.clock)
    sweep = Sweep(link, shards, shard.schemas, export)
    now = shard.clock.now_us()
    cutoffs = cutoffs_at(retention, now)
    newest = cutoffs.latest
    looks = 0
    try:
        for slot in shard.slots:
            place, more = rows.START, True
            while more:
                if dry_run and looks >= RETENTION_DRY_RUN_MAX_ROWS:
                    swept.complete = False
                    return
                begun = shard.clock.monotonic()
                page = await sweep.page(slot, place, newest, cutoffs, dry_run=dry_run)
                place, more = page.end, page.full
                looks += RETENTION_BATCH_MAX_ROWS
                swept.add(page)
                report(swept)
                await asyncio.sleep((shard.clock.monotonic() - begun) * RETENTION_PAUSE_FACTOR_BEHIND)
            swept.looked_at_slots += 1
    except (ConnectionLost, psycopg.Error, OSError, ShardedWfError) as error:
        swept.failed[shard.name] = str(error)
    finally:
        link.close()
        if export is not None:
            export.close()
