"""The executor: a process (or a part of one) that runs the workflows of an app."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

from sharded_wf.clock import SYSTEM_CLOCK, Clock
from sharded_wf.cluster.directory import NO_MEMBER
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ConfigError
from sharded_wf.executor.courier import Courier
from sharded_wf.executor.health import Health
from sharded_wf.executor.isolation import Isolation
from sharded_wf.executor.room import Room
from sharded_wf.executor.shard_executor import ShardExecutor
from sharded_wf.limits import (
    DRAIN_DEADLINE_SECONDS,
    PARK_AFTER_SECONDS,
    SYNC_THREADS_DEFAULT,
)
from sharded_wf.maintenance.leases import LeaseKeeper
from sharded_wf.maintenance.requests import Carrier
from sharded_wf.model.workflow import Message
from sharded_wf.postgres.link import Link
from sharded_wf.retention import Retention
from sharded_wf.routing import CONTROL_SCHEMA
from sharded_wf.store.requests import OUTBOX_SCHEMA
from sharded_wf.workflow.app import App

logger = logging.getLogger("sharded_wf.executor")


class Executor:
    """Runs the workflows of one app, on all shards of a cluster or on some.

    ``config``: the cluster. ``shards``: names of the shards to serve (None: all). ``queues``: the queues to serve
    (None: every queue). ``concurrency``: how many workflows it holds in memory at most (None: 2,000 for each shard).
    ``threads``: how many ``def`` steps and workflows of each shard run at once. ``park_after``: seconds that a workflow
    waits in memory before it is parked. ``drain_seconds``: how long unfinished work may take when it stops.
    ``isolation_command``: the command line of an executor with ``isolated=True``, which runs suspects (workflows whose
    executors died) one at a time; None: they wait. ``retention``: how long finished workflows are kept (None: as
    ``config`` says).

    Use it as an async context manager, or call ``start`` and ``stop``. Any number of executors may serve the same
    shards.
    """

    def __init__(
        self,
        app: App,
        config: ClusterConfig,
        *,
        shards: Sequence[str] | None = None,
        queues: Collection[str] | None = None,
        concurrency: int | None = None,
        threads: int = SYNC_THREADS_DEFAULT,
        park_after: float = PARK_AFTER_SECONDS,
        drain_seconds: float = DRAIN_DEADLINE_SECONDS,
        isolated: bool = False,
        isolation_command: Sequence[str] | None = None,
        retention: Retention | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if config.coordinator is None:
            _check_named(config, shards)
        self.app = app
        self.config = config
        self.version = version("sharded-wf")
        self.capabilities: list[str] = app.capabilities()
        self.queues = None if queues is None else sorted(queues)
        self.isolated = isolated
        self.isolation = Isolation(isolation_command, is_isolated=isolated)
        self.drain_seconds = drain_seconds
        self.retention = None if isolated else retention or config.retention
        self.taken_over = 0
        self.finished = 0
        self.given_back = 0
        self._only = shards
        self.room = Room(1 if isolated else concurrency)
        self._thread_count = threads
        self.park_after = park_after
        self._clock = clock
        self.parts: list[ShardExecutor] = []
        self._bare: dict[Shard, asyncio.Task[None]] = {}
        self._exits = contextlib.AsyncExitStack()
        self._serving: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._draining = False
        self.state: object = None

    def new_threads(self) -> ThreadPoolExecutor:
        """Threads for one shard: those of ``def`` workflows on a shard that does not answer wait for it, and must not
        be missing elsewhere."""
        threads = ThreadPoolExecutor(self._thread_count, thread_name_prefix="sharded_wf def")
        self._exits.callback(threads.shutdown, wait=False, cancel_futures=True)
        return threads

    async def start(self) -> None:
        """Check the app, read the shard map, open what the app's lifespan opens, and begin to serve. Raises
        ``DefinitionError`` if an annotation of the app names nothing; of the cluster, as ``load_map``."""
        self.loop = asyncio.get_running_loop()
        self.app.check()
        self.shards = await ShardSet.open(self.config, self._clock)
        self.config = self.shards.config
        _check_named(self.config, self._only)
        self._exits.push_async_callback(self.shards.close)
        if self._only and not self.shards.shards.keys() & set(self._only):
            named = f"shard {self._only[0]!r} is" if len(self._only) == 1 else "the shards that were named are"
            raise ConfigError(f"there is no shard to serve: {named} {NO_MEMBER} from {self.config.source}")
        self.state = await self._exits.enter_async_context(self.app.open_lifespan())
        self.keeper = LeaseKeeper(self._clock)
        self.keeper.start()
        self._exits.push_async_callback(asyncio.to_thread, self.keeper.stop)
        self._exits.push_async_callback(self.isolation.close)
        self.courier = Courier(self.shards)
        self._exits.push_async_callback(self.courier.close)
        self._carry_from_outboxes()
        self._exits.push_async_callback(self._end_bare)
        self._serve_shards()
        self.shards.on_change.append(self._follow_map)
        self.shards.on_failover.append(self._follow_primary)

    def _serve_shards(self) -> None:
        """Serve every shard that is ours to serve, also those without slots: one may be on its way there."""
        served = {part.shard for part in self.parts}
        for shard in self.shards.shards.values():
            if shard not in served and (self._only is None or shard.name in self._only):
                part = ShardExecutor(self, shard)
                self.parts.append(part)
                serving = asyncio.create_task(part.serve(), name=f"serve {shard.name}")
                self._serving.append(serving)
                serving.add_done_callback(partial(self._served, part))
                served.add(shard)
        self._carry_from_bare({shard for shard in self.shards.shards.values() if not shard.slots} - served)

    def _follow_map(self) -> None:
        """The map has changed: slots, or whole shards, have come or gone."""
        if self._stopping is not None:
            return
        for part in self.parts:
            if self.shards.shards.get(part.shard.name) is part.shard:
                part.moving.follow_map()
            else:
                part.drain()  # the shard has left the cluster
        self._serve_shards()

    def _served(self, part: ShardExecutor, serving: asyncio.Task[None]) -> None:
        """A shard is served no more: it has left the cluster, or we stop."""
        if self._stopping is None and self.shards.shards.get(part.shard.name) is not part.shard:
            self.parts.remove(part)
            self._serving.remove(serving)

    def _follow_primary(self, shard: Shard) -> None:
        """Another server is the shard's primary. What it does not have, if its replication was not synchronous, must
        not be built upon: everything is read anew."""
        for part in self.parts:
            if part.shard is shard:
                part.give_up_lease()

    def _carry_from_outboxes(self) -> None:
        """From outboxes in databases that are no shards."""
        for outbox in self.config.outboxes:
            self._exits.push_async_callback(_end, self._carry_from(outbox.name, outbox.dsn, OUTBOX_SCHEMA))

    def _carry_from_bare(self, bare: Collection[Shard]) -> None:
        """From shards without slots that are not ours to serve: perhaps nobody watches them."""
        for shard in [shard for shard in self._bare if shard not in bare]:
            self._bare.pop(shard).cancel()
        for shard in bare:
            if shard not in self._bare:
                self._bare[shard] = self._carry_from(shard.name, shard.dsn, CONTROL_SCHEMA)

    def _carry_from(self, name: str, dsn: str, schema: str) -> asyncio.Task[None]:
        carrier = Carrier(Link(dsn, "outbox", self._clock), self.shards, schema=schema, poll=True)
        task = asyncio.create_task(carrier.run(), name=f"outbox {name}")
        task.add_done_callback(lambda _: carrier.close())
        return task

    async def _end_bare(self) -> None:
        for task in self._bare.values():
            await _end(task)

    def drain(self) -> None:
        """Claim nothing more; ``stop`` then waits for what runs. Draining twice is fine."""
        self._draining = True
        for part in self.parts:
            part.drain()

    async def stop(self) -> None:
        """Drain, give back what has not finished within ``drain_seconds``, and close everything. Twice is fine."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self.drain()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._exits.aclose()

    async def __aenter__(self) -> Executor:
        try:
            await self.start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- between shards -----------------------------------------------------------------------------------------

    def arrived(self, messages: list[Message]) -> None:
        """These messages are in their receivers' mailboxes: those who are in memory here needn't be notified."""
        self.loop.call_soon(self._offer_here, messages)

    def _offer_here(self, messages: list[Message]) -> None:
        for message in messages:
            for part in self.parts:
                if part.runs.offer_if_held(message):
                    break

    def health(self) -> Health:
        """How it fares on each shard that it serves, without asking any."""
        return Health(
            alive=self.keeper.runs, draining=self._draining,
            shards=tuple(part.health() for part in self.parts), **self.statistics(),
        )  # fmt: skip

    def statistics(self) -> dict[str, int]:
        """How many workflows it holds now, has finished so far, and has taken over from dead executors so far."""
        held = sum(len(part.held) for part in self.parts)
        return {"held": held, "finished": self.finished, "taken_over": self.taken_over}


def _check_named(config: ClusterConfig, names: Sequence[str] | None) -> None:
    known = [shard.name for shard in config.shards]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigError(f"no shard is named {unknown[0]!r} in {config.source}; there are {', '.join(known)}")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
