"""Group commit for what anybody may write to a shard: starts and messages.

Requests gather while the last transaction is under way, and the next one takes all of them: no delay when idle, batches
of hundreds when busy. Every write here is idempotent (a start by its ID, a message by its sender and number), so a
transaction whose answer was lost is simply made again, and a request is acknowledged only by a COMMIT that was seen.
An attempt waits for less than its callers do: a connection that died without a sign costs them seconds, not the write.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from sharded_wf.clock import Clock, Microseconds
from sharded_wf.errors import ShardedWfError, ShardUnavailable
from sharded_wf.limits import (
    START_FLUSH_MAX_ROWS,
    STATEMENT_DEADLINE_SECONDS,
    WRITE_ATTEMPT_SECONDS,
    WRITE_DEADLINE_SECONDS,
    WRITE_GATHER_SECONDS,
    WRITE_SUSPICIOUS_SECONDS,
)
from sharded_wf.model.workflow import Message, Start
from sharded_wf.postgres.binary import UNPACKABLE
from sharded_wf.postgres.failures import is_transient, moved_slot, unavailable
from sharded_wf.postgres.gathering import Gathering
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost, Result, Statement
from sharded_wf.routing import slot_schema
from sharded_wf.store import leases, messages, outcomes, starts


class SlotMoved(Exception):
    """Nothing was written: the slot is not on this shard any more. The caller looks for it and asks there."""

    def __init__(self, shard: str, slot: int) -> None:
        super().__init__(f"slot {slot} is not on shard {shard!r}")
        self.shard = shard
        self.slot = slot


class Written(NamedTuple):
    """What a request learns: which of its starts existed before, and which of its receivers do not exist."""

    existing: dict[str, starts.Existing]
    unknown: set[str]


_NOTHING_SPECIAL = Written({}, set())


class _Request:
    """Rows that one caller wants written, all by one COMMIT."""

    __slots__ = ("created_at", "done", "first", "messages", "rows", "starts")

    def __init__(
        self,
        done: asyncio.Future[Written],
        start_rows: Sequence[tuple[int, Start]],
        message_rows: Sequence[tuple[int, Message]],
    ) -> None:
        self.done = done
        self.starts = start_rows
        self.messages = message_rows
        self.first: tuple[int, Start, Message] | None = None
        """A message that comes with one of the starts."""
        self.rows = len(start_rows) + len(message_rows)
        self.created_at: Microseconds | None = None


class Writer:
    """The one writer of this process to one shard."""

    def __init__(self, shard: str, link: Link, clock: Clock) -> None:
        self.link = link
        self._shard = shard
        self._clock = clock
        self._waiting: deque[_Request] = deque()
        self._gathering = Gathering(clock, WRITE_GATHER_SECONDS)
        self._pump: asyncio.Task[None] | None = None
        self._last_created_at: Microseconds = 0
        self._begun: float | None = None
        self._away_since: float | None = None
        self._trouble: ShardUnavailable | None = None
        self._lost: str | None = None

    async def start(
        self, rows: Sequence[tuple[int, Start]], *, wait_seconds: float | None = None
    ) -> dict[str, starts.Existing]:
        """Start workflows, each given with its slot, no ID twice. Returns those that existed before, by ID.

        ``wait_seconds``: how long to wait for a shard that does not answer (``math.inf``: for ever); None: for
        ``WRITE_DEADLINE_SECONDS``, less what it has been away already. Raises ``ShardUnavailable``.
        """
        return (await self._submit(rows, (), wait_seconds)).existing

    async def start_with_message(
        self, slot: int, start: Start, message: Message, *, wait_seconds: float | None = None
    ) -> dict[str, starts.Existing]:
        """Start a workflow and deliver its first message in one transaction; to one that exists under the same name,
        just the message. As ``start`` for the rest."""
        return (await self._submit(((slot, start),), (), wait_seconds, (slot, start, message))).existing

    async def deliver(self, rows: Sequence[tuple[int, Message]], *, wait_seconds: float | None = None) -> set[str]:
        """Deliver messages, each given with its receiver's slot. Returns the receivers that do not exist. As ``start``
        for the rest."""
        return (await self._submit((), rows, wait_seconds)).unknown

    async def _submit(
        self,
        start_rows: Sequence[tuple[int, Start]],
        message_rows: Sequence[tuple[int, Message]],
        wait_seconds: float | None,
        first: tuple[int, Start, Message] | None = None,
    ) -> Written:
        loop = asyncio.get_running_loop()
        if wait_seconds is None:
            # A short absence (a failover) is sat out. Of a longer one callers learn at once: waiting would help nobody.
            away = self.away_seconds
            wait_seconds = WRITE_DEADLINE_SECONDS - away
            if wait_seconds <= 0:
                raise self._refusal(away)
        done: asyncio.Future[Written] = loop.create_future()
        request = _Request(done, start_rows, message_rows)
        request.first = first
        self._waiting.append(request)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._write_waiting(), name=f"writer {self._shard}")
        if wait_seconds == math.inf:
            return await done
        # Counted from here, whatever is under way before it: a hung shard gives no sign of its own for long.
        timer = loop.call_later(wait_seconds, self._give_up, done, wait_seconds)
        try:
            return await done
        finally:
            timer.cancel()

    def _give_up(self, done: asyncio.Future[Written], waited_seconds: float) -> None:
        if not done.done():
            done.set_exception(self._refusal(waited_seconds))

    def _refusal(self, waited_seconds: float) -> ShardUnavailable:
        if (trouble := self._trouble) is not None:
            return type(trouble)(trouble.shard, trouble.reason)
        return ShardUnavailable(self._shard, f"no answer within {waited_seconds:.3g} s")

    @property
    def healthy(self) -> bool:
        """Whether the shard answered when it was last asked, and is not taking suspiciously long just now."""
        if self._begun is not None and self._clock.monotonic() - self._begun > WRITE_SUSPICIOUS_SECONDS:
            return False
        return self.link.healthy

    @property
    def away_seconds(self) -> float:
        """For how long the shard has not answered; 0 if it did when it was last asked."""
        if self.healthy or self._away_since is None:
            return 0.0
        return self._clock.monotonic() - self._away_since

    async def _write_waiting(self) -> None:
        while self._waiting:
            if await self._gathering.waited():
                continue
            if batch := self._next_batch():
                self._gathering.note(self._clock.monotonic(), sum(request.rows for request in batch))
                await self._write(batch)

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        rows, ids = 0, set[str]()
        while self._waiting:
            request = self._waiting[0]
            if not request.done.done():
                if batch and rows + request.rows > START_FLUSH_MAX_ROWS:
                    break
                # The same ID twice in one transaction: the second must see the first as a row that exists.
                if any(start.id in ids for _, start in request.starts):
                    break
                ids.update(start.id for _, start in request.starts)
                batch.append(request)
                rows += request.rows
            self._waiting.popleft()
        return batch

    async def _write(self, batch: list[_Request]) -> None:
        """Write a batch until it is written, or its requests give up, or the bad one among them is found."""
        self._date(batch)
        patience = WRITE_ATTEMPT_SECONDS
        while batch:
            self._begun = self._clock.monotonic()
            if self._away_since is None or self.link.healthy:
                self._away_since = self._begun
            try:
                if self._lost is not None:
                    await self._end_lost(self._lost, patience)
                while not await self._write_once(batch, patience):
                    pass  # what stood in the way of a start has been removed meanwhile: start it again
                self._trouble = self._away_since = None
                return
            except ConnectionLost as error:
                self._trouble = unavailable(self._shard, error)
                if error.commit_unknown:
                    self._lost = self._lost or (None if self.link.pooled else self.link.token)
                    patience = min(2 * patience, STATEMENT_DEADLINE_SECONDS)
            except psycopg.Error as error:
                if (slot := moved_slot(error)) is not None and self._refuse_moved(batch, slot):
                    batch = [request for request in batch if not request.done.done()]
                    continue
                if not is_transient(error):
                    await self._bisect(batch, error)
                    return
                self._trouble = unavailable(self._shard, error)
            except UNPACKABLE as error:
                await self._bisect(batch, error)
                return
            finally:
                self._begun = None
            await self.link.pause()
            batch = [request for request in batch if not request.done.done()]

    def _refuse_moved(self, batch: list[_Request], slot: int) -> bool:
        """Requests that concern a slot which is not here leave the batch; they must not hold up the others."""
        refused = False
        for request in batch:
            if any(at == slot for at, _ in (*request.starts, *request.messages)):
                refused = True
                if not request.done.done():
                    request.done.set_exception(SlotMoved(self._shard, slot))
        return refused

    async def _end_lost(self, token: str, deadline: float) -> None:
        """End the backend of the connection that was lost: while its network is gone it may sit on half a transaction
        for long, and its locks would stop us. A matter of time only: the writes are idempotent, whatever it did."""
        with contextlib.suppress(psycopg.Error):
            await self.link.wait_backend_gone(token, deadline=deadline)
        self._lost = None

    def _date(self, batch: list[_Request]) -> None:
        # One moment for all, so that alike starts share a statement; never the same twice, because it is by this moment
        # that a start recognises its own row after an answer that was lost.
        moment = max(self._clock.now_us(), self._last_created_at + 1)
        self._last_created_at = moment
        for request in batch:
            request.created_at = moment

    async def _bisect(self, batch: list[_Request], error: Exception) -> None:
        if len(batch) == 1:
            if not batch[0].done.done():
                refusal = ShardedWfError(f"shard {self._shard!r} refused the row: {error}")
                refusal.__cause__ = error
                batch[0].done.set_exception(refusal)
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            await self._write(half)

    async def _write_once(self, batch: list[_Request], deadline: float) -> bool:
        """Write a batch. False: an ID was in use when it was to be started, and is not any more."""
        created_at = batch[0].created_at
        assert created_at is not None
        by_slot: dict[int, tuple[list[Start], list[Message]]] = {}
        for request in batch:
            for slot, start in request.starts:
                by_slot.setdefault(slot, ([], []))[0].append(start)
            for slot, message in request.messages:
                by_slot.setdefault(slot, ([], []))[1].append(message)
        statements: list[Statement] = []
        missing_at: list[int] = []
        counted: list[tuple[list[int], int, int]] = []  # positions, slot, how many rows are expected
        for slot in sorted(by_slot):
            new, told = by_slot[slot]
            schema = slot_schema(slot)
            if new:
                made, positions = starts.start_statements(schema, new, created_at)
                counted.append(([len(statements) + at for at in positions], slot, len(new)))
                statements += made
            if told:
                missing_at.append(len(statements))
                statements.append(messages.deliver(schema, told))
        first = [request.first for request in batch if request.first is not None]
        for slot, start, message in first:
            statements.append(messages.deliver_with_start(slot_schema(slot), message, start.name))
        starting = [slot for slot, (new, _) in by_slot.items() if new]
        telling = sorted({slot for slot, (_, told) in by_slot.items() if told} | {slot for slot, *_ in first})
        if telling:
            statements.append(leases.notify_wakes(telling))
        if starting:
            statements.append(leases.notify_if_idle(starting))
        results = await self.link.transact(statements, deadline=deadline)
        existing = await self._read_existing(results, counted, by_slot, created_at, deadline)
        if existing is None:
            return False
        unknown = {id_ for at in missing_at for id_ in outcomes.ids_of(results[at])}
        for request in batch:
            if not request.done.done():
                request.done.set_result(_share_of(request, existing, unknown))
        if starting and not len(results[-1]):
            await self._wake_late_sleepers(starting)
        return True

    async def _read_existing(
        self,
        results: list[Result],
        counted: list[tuple[list[int], int, int]],
        by_slot: dict[int, tuple[list[Start], list[Message]]],
        created_at: Microseconds,
        deadline: float,
    ) -> dict[str, starts.Existing] | None:
        """What stood in the way of these starts, by ID; None if some of it is gone again (retention)."""
        conflicts = [
            slot for positions, slot, expected in counted if sum(results[at].count for at in positions) != expected
        ]
        if not conflicts:
            return {}
        answers = await self.link.transact(
            [starts.read_starts(slot_schema(slot), {start.id for start in by_slot[slot][0]}) for slot in conflicts],
            deadline=deadline,
        )
        present = {found.id: found for answer in answers for found in starts.existing_of(answer)}
        if any(start.id not in present for slot in conflicts for start in by_slot[slot][0]):
            return None
        # A row of this very moment is our own, from this attempt or from one whose answer was lost.
        return {id_: found for id_, found in present.items() if found.created_at != created_at}

    async def _wake_late_sleepers(self, slots: list[int]) -> None:
        """An executor may have fallen asleep after our transaction looked and before it committed."""
        with contextlib.suppress(ConnectionLost, psycopg.Error):  # it will poll
            await self.link.fetch(leases.notify_if_idle(slots), deadline=WRITE_ATTEMPT_SECONDS)

    async def close(self) -> None:
        """Stop; requests still waiting fail with ``ShardUnavailable``."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        for request in self._waiting:
            if not request.done.done():
                request.done.set_exception(ShardUnavailable(self._shard, "closed"))
        self._waiting.clear()
        self.link.close()


def _share_of(request: _Request, existing: dict[str, starts.Existing], unknown: set[str]) -> Written:
    if not existing and not unknown:
        return _NOTHING_SPECIAL
    return Written(
        {start.id: existing[start.id] for _, start in request.starts if start.id in existing},
        {message.receiver for _, message in request.messages if message.receiver in unknown},
    )
