"""Watching a shard: what became ready, came due, arrived, or was left behind.

Three sources, from fast to slow: notifications; our own timers; and a look over all slots (``peek``), which is one
statement, rare where notifications arrive, and else (PgBouncer) as often as there was work of late. An executor that
runs out of work says so in its lease (``idle``), *then looks once more*, and only then sleeps: a start that did not see
it idle committed before that look.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping

import psycopg

from sharded_wf.clock import SECOND_US, Clock, Microseconds
from sharded_wf.executor.intake import Intake
from sharded_wf.limits import (
    BUSY_AFTER_SECONDS,
    IDLE_POLL_SECONDS,
    LOOK_BESIDE_SECONDS,
    LOOK_PAUSE_FACTOR,
    POLL_FIRST_SECONDS,
    POLL_MAX_SECONDS,
    TIMERS_FLOODED_SLOTS_MAX,
    TIMERS_HELD_BACK_SECONDS,
    TIMERS_PER_BATCH_MAX,
    TIMERS_RECHECK_SECONDS,
)
from sharded_wf.postgres.failures import is_no_shard
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.listen import Listener
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.store import leases, slots, timers

logger = logging.getLogger("sharded_wf.watch")


class Watch:
    """The watch of one executor over one shard."""

    def __init__(
        self,
        shard: str,
        link: Link,
        listener: Listener,
        clock: Clock,
        schemas: Mapping[int, str],
        moved: Callable[[Exception], object],
        intake: Intake,
        work: Callable[[], None],
        wakes: Callable[[Iterable[int]], None],
        outgoing: Callable[[Iterable[int]], None],
        awaited: Callable[[Iterable[int]], None],
        suspects: Callable[[], None],
        requests: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._link = link
        self._listener = listener
        self._clock = clock
        self._schemas = schemas
        self._moved = moved
        self._intake = intake
        self._work = work
        self._wakes = wakes
        self._outgoing = outgoing
        self._awaited = awaited
        self._suspects = suspects
        self._requests = requests
        self._peek = slots.peek(schemas)
        self._due: dict[int, Microseconds] = {}
        self._stir = asyncio.Event()
        self._look = True
        self._idle = False
        self._next_look = 0.0
        self._looked_at = 0.0
        self._fired_at = float("-inf")
        self._flooded: set[int] = set()
        self._look_took = 0.0
        self._quiet_rounds = 0
        self._busy_since: float | None = None
        self._lease_id = b""
        self._away = False

    def slots_changed(self) -> None:
        """Other slots are served now."""
        self._peek = slots.peek(self._schemas)
        self._due = {slot: due for slot, due in self._due.items() if slot in self._schemas}
        self._look = True
        self._stir.set()

    def heard(self, channel: str, payload: str) -> None:
        """A notification (or, with an empty channel, that some may have been missed)."""
        if payload in ("", "*"):
            self._look = True
            self._stir.set()
            return
        numbers = [int(number) for number in payload.split(",")]
        if channel == leases.WAKE_CHANNEL:
            self._wakes(numbers)
        else:
            self.ready(numbers)

    def ready(self, numbers: Iterable[int]) -> None:
        """Work was announced in these slots."""
        if self._intake.notified(number for number in numbers if number in self._schemas):
            self._work()
        else:
            self._look = True
        self._stir.set()

    def exhausted(self, *, missed: bool) -> None:
        """The claims found nothing more (``missed``: not even what had been announced, so its lane is unknown)."""
        self._busy_since = None
        if missed:
            pause = self._look_took * LOOK_PAUSE_FACTOR  # looking must not become the work
            self._next_look = min(self._next_look, self._looked_at + pause)
        elif not self._listener.works:
            self._quiet_rounds = 0
            self._next_look = min(self._next_look, self._clock.monotonic() + POLL_FIRST_SECONDS)
        self._stir.set()

    def look(self) -> None:
        """Look now at what is due, and at everything else."""
        self._look = True
        self._stir.set()

    def timer_set(self, slot: int, due_at: Microseconds) -> None:
        """A timer of ours was saved."""
        if slot in self._schemas and due_at < self._due.get(slot, 1 << 62):
            self._due[slot] = due_at
            self._stir.set()

    async def run(self, lease_id: bytes) -> None:
        """Watch under this lease, until cancelled."""
        self._lease_id = lease_id
        self._idle = False
        self._look = True
        while True:
            try:
                await self._turn()
            except (ConnectionLost, psycopg.Error) as error:
                self._look = True
                if self._moved(error):
                    continue
                if not self._away and not is_no_shard(error):  # then the map is read anew, which says so
                    reason = " ".join(str(error).split())
                    logger.warning("shard %s: does not answer; tried again until it does: %s", self._shard, reason)
                    self._away = True
                await self._link.pause()

    async def _turn(self) -> None:
        await self._fire_due()
        now = self._clock.monotonic()
        if self._look or now >= self._next_look:
            await self._glance()
            self._quiet_rounds = 0 if self._intake.is_busy else self._quiet_rounds + 1
            self._next_look = now + self._interval()
        if not self._intake.is_busy:
            self._busy_since = None
            if not self._idle and self._listener.works:
                await self._say_idle(True)
                self._look = True  # once more, before sleeping
                return
        elif self._busy_since is None:
            self._busy_since = now
        elif self._idle and now - self._busy_since > BUSY_AFTER_SECONDS:
            await self._say_idle(False)
        await self._sleep(self._next_look - now)

    def _interval(self) -> float:
        """Seconds until the next look without any other reason."""
        if self._due and min(self._due.values()) <= self._clock.now_us():
            # Nobody tells a busy executor of new work, and what came due together may keep it busy for long.
            return self._pause()
        if self._intake.is_busy or self._listener.works:
            return IDLE_POLL_SECONDS
        return min(POLL_MAX_SECONDS, POLL_FIRST_SECONDS * 2.0 ** min(self._quiet_rounds, 30))

    def _pause(self) -> float:
        return max(self._look_took * LOOK_PAUSE_FACTOR, LOOK_BESIDE_SECONDS)

    async def _say_idle(self, idle: bool) -> None:
        await self._link.fetch(leases.set_idle(self._lease_id, idle))
        self._idle = idle

    async def _glance(self) -> None:
        self._look = False
        begun = self._clock.monotonic()
        glance = slots.glance_of(await self._link.fetch(self._peek))
        self._looked_at = self._clock.monotonic()
        self._look_took = self._looked_at - begun
        if self._away:
            self._away = False
            logger.info("shard %s: answers again", self._shard)
        found = False
        for slot, lanes in glance.lanes.items():
            # (A slot that was left while we looked is not looked into: the intake knows.)
            found |= self._intake.found(slot, lanes)
            if any(map(self._intake.is_suspect, lanes)):
                self._suspects()
        self._due = {slot: due for slot, due in glance.due.items() if slot in self._schemas}
        self._wakes(glance.wakes)
        self._outgoing(glance.outgoing)
        self._awaited(glance.awaited)
        if glance.requests:
            self._requests()
        if found:
            self._work()

    async def _fire_due(self) -> None:
        now = self._clock.now_us()
        due = sorted(slot for slot, at in self._due.items() if at <= now)
        if not due or self._holds_back():
            return
        # However many are due together, others must get their turn between two batches. Of slots that gave all they
        # were asked for, few at a time: a statement for many rows costs little more than one for few, here and in
        # all that follows.
        flooded = [slot for slot in due if slot in self._flooded]
        if len(flooded) > TIMERS_FLOODED_SLOTS_MAX:
            rest = set(flooded) - set(random.sample(flooded, TIMERS_FLOODED_SLOTS_MAX))
            due = [slot for slot in due if slot not in rest]
        limit = max(1, TIMERS_PER_BATCH_MAX // len(due))
        answers = await self._link.transact([timers.fire_timers(self._schemas[slot], now, limit) for slot in due])
        for slot, answer in zip(due, answers, strict=True):
            self._due.pop(slot, None)
            (self._flooded.add if answer.count >= limit else self._flooded.discard)(slot)
        self._fired_at = self._clock.monotonic()
        if any(answer.count for answer in answers):
            self._look = True
        else:  # nobody waited for these any more (or another executor has them); others may stand behind them
            self._next_look = min(self._next_look, self._fired_at + self._pause())

    def _holds_back(self) -> bool:
        """Whether what is due has to wait: what came due before is still in the queue. It would only make the queue
        longer, and those behind it wait; and the turns that it takes are turns in which new work is found."""
        waited = self._clock.monotonic() - self._fired_at
        return self._intake.has_work_again and waited < TIMERS_HELD_BACK_SECONDS

    async def _sleep(self, seconds: float) -> None:
        """Sleep until something stirs, a timer is due, or the time is up."""
        if self._look:
            return
        if self._due:
            due_in = (min(self._due.values()) - self._clock.now_us()) / SECOND_US
            seconds = min(seconds, due_in if due_in > 0 or not self._holds_back() else TIMERS_RECHECK_SECONDS)
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stir.wait()
            except TimeoutError:
                pass
        self._stir.clear()
