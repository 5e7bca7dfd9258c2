"""Keeping our leases, and watching those of others.

Heartbeats have a thread, an event loop and connections of their own: whatever a user's step does to the executor's
loop, the lease is kept. The same statement that beats also reads everybody's beats. An executor is dead when its beat
has not changed for a full lease on *our* monotonic clock, while our own beats succeeded all the time: no clock is
compared with another machine's, and a database that paused kills nobody, because everyone's observation starts anew
after it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field

import psycopg

from sharded_wf.clock import Clock
from sharded_wf.limits import HEARTBEAT_SECONDS, LEASE_SECONDS
from sharded_wf.maintenance.takeover import TAKEOVER_FAILURES, end_lease, recover_orphans
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.store import leases

logger = logging.getLogger("sharded_wf.leases")


@dataclass(slots=True)
class Observation:
    """Whether other executors' beats move, as one process sees it. Pure, so that tests can try every order of
    events."""

    lease_seconds: float = LEASE_SECONDS
    _seen: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    _last: float | None = None

    def observe(self, beats: list[leases.Beat], mine: bytes, now: float) -> tuple[list[leases.Beat], bool]:
        """Take in one successful look at monotonic time ``now``. Returns the dead, and whether any lease has
        vanished."""
        if self._last is not None and now - self._last > self.lease_seconds / 2:
            self._seen.clear()  # we ourselves were away: what stood still meanwhile proves nothing
        self._last = now
        dead: list[leases.Beat] = []
        others = {beat.lease_id: beat for beat in beats if beat.lease_id != mine}
        vanished = bool(self._seen.keys() - others.keys())
        for lease_id, beat in others.items():
            known = self._seen.get(lease_id)
            if known is None or known[0] != beat.beat:
                self._seen[lease_id] = (beat.beat, now)
            elif now - known[1] >= self.lease_seconds:
                dead.append(beat)
        for lease_id in self._seen.keys() - others.keys():
            del self._seen[lease_id]
        return dead, vanished

    def forget(self) -> None:
        """Our own beat failed: every observation starts anew."""
        self._seen.clear()


class LeaseKeeper:
    """The thread that keeps one process's leases, one on each shard that it serves."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._kept: dict[bytes, asyncio.Task[None]] = {}
        self._beaten: dict[bytes, _Keeping] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Of leases that were released: they close their connections."""

    def start(self) -> None:
        """Start the thread. Starting twice is fine."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sharded_wf leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def stop(self) -> None:
        """Stop the thread and keep nothing any more. Stopping twice is fine."""
        thread, self._thread = self._thread, None
        if thread is not None:
            asyncio.run_coroutine_threadsafe(self._release_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()

    async def _release_all(self) -> None:
        tasks = list(self._kept.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._ending, return_exceptions=True)

    def keep(
        self,
        lease_id: bytes,
        shard: str,
        dsn: str,
        schemas: Mapping[int, str],
        lost: Callable[[], None],
        recovered: Callable[[int], None],
    ) -> None:
        """Keep a lease that was just taken. ``lost`` is called once if it is found gone, ``recovered`` with the number
        of workflows that were taken over from others; both from this thread."""
        keeping = _Keeping(self._clock, lease_id, shard, dsn, schemas, lost, recovered)
        self._beaten[lease_id] = keeping

        def begin() -> None:
            self._kept[lease_id] = self._loop.create_task(keeping.keep())

        self._loop.call_soon_threadsafe(begin)

    @property
    def runs(self) -> bool:
        """Whether the thread does its work."""
        return self._thread is not None and self._thread.is_alive()

    def silent_seconds(self, lease_id: bytes) -> float:
        """How long ago the last beat of this lease was begun that succeeded: for so long the shard may have been
        silent."""
        keeping = self._beaten.get(lease_id)
        return 0.0 if keeping is None else self._clock.monotonic() - keeping.beaten_at

    def release(self, lease_id: bytes) -> None:
        """Keep this lease no longer."""

        self._beaten.pop(lease_id, None)

        def end() -> None:
            task = self._kept.pop(lease_id, None)
            if task is not None:
                task.cancel()
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

        self._loop.call_soon_threadsafe(end)


class _Keeping:
    """The care of one lease on one shard."""

    def __init__(
        self,
        clock: Clock,
        lease_id: bytes,
        shard: str,
        dsn: str,
        schemas: Mapping[int, str],
        lost: Callable[[], None],
        recovered: Callable[[int], None],
    ) -> None:
        self._clock = clock
        self._lease_id = lease_id
        self._shard = shard
        self._schemas = schemas
        self._lost = lost
        self._recovered = recovered
        self._heart = Link(dsn, "lease", clock)
        self._taker = Link(dsn, "takeover", clock)
        self._helper = Link(dsn, "takeover-helper", clock)
        self._takeover: asyncio.Task[None] | None = None
        self.beaten_at = clock.monotonic()

    async def keep(self) -> None:
        observation = Observation()
        self._begin(self._recover())  # what an executor left behind that died while nobody watched
        try:
            while True:
                begun = self._clock.monotonic()
                try:
                    beat = await self._heart.fetch(
                        leases.beat(self._lease_id, self._clock.now_us()), deadline=LEASE_SECONDS
                    )
                except (ConnectionLost, psycopg.Error):
                    observation.forget()
                    await self._heart.pause()
                    continue
                self.beaten_at = begun
                alive, beats = leases.beats_of(beat)
                if not alive:
                    self._lost()
                    return
                dead, vanished = observation.observe(beats, self._lease_id, self._clock.monotonic())
                if dead:
                    self._begin(self._take_over(dead))
                elif vanished:
                    self._begin(self._recover())
                await asyncio.sleep(max(0.0, HEARTBEAT_SECONDS - (self._clock.monotonic() - begun)))
        finally:
            if self._takeover is not None:
                self._takeover.cancel()
                await asyncio.gather(self._takeover, return_exceptions=True)
            for link in (self._heart, self._taker, self._helper):
                link.close()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        """Take over beside the heartbeat, one at a time: what is left out now is seen again at the next beat."""
        if self._takeover is None or self._takeover.done():
            self._takeover = asyncio.create_task(work)
        else:
            work.close()

    async def _take_over(self, dead: list[leases.Beat]) -> None:
        try:
            for beat in dead:
                if await end_lease(self._taker, self._helper, beat.lease_id, beat.beat):
                    logger.warning("shard %s: executor %s is dead; taking over its work", self._shard, beat.executor)
        except TAKEOVER_FAILURES as error:
            logger.warning("shard %s: a takeover has to be tried again: %s", self._shard, error)
            return
        await self._recover()

    async def _recover(self) -> None:
        while True:
            try:
                count = await recover_orphans(self._taker, self._schemas, self._clock)
            except TAKEOVER_FAILURES as error:
                logger.warning("shard %s: recovering claims has to be tried again: %s", self._shard, error)
                await self._taker.pause()
                continue
            self._taker.close_idle()
            self._helper.close_idle()
            if count:
                self._recovered(count)
            return
