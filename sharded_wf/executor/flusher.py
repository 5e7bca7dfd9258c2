"""Group commit: what runs want saved gathers while the last flush is under way, and the next flush takes all of it.

Exactly one flush of an executor is under way on a shard. It begins with the fence, which holds the lease until the
commit or fails, and carries a number, so that after an answer that was lost there is a question with a certain answer:
was flush N committed? Before asking, the old backend must have ended, since it may still be working on what it was
sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set

import psycopg

from sharded_wf.clock import Clock
from sharded_wf.errors import LeaseLost
from sharded_wf.executor.held import Hold
from sharded_wf.executor.ops import Op, OpKind, Told, inseparable, size_of_flush, statements_of, torn
from sharded_wf.limits import FLUSH_MARKS_KEPT, WRITE_GATHER_SECONDS
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome
from sharded_wf.postgres.binary import UNPACKABLE
from sharded_wf.postgres.failures import is_transient
from sharded_wf.postgres.gathering import Gathering
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost, Statement
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.store import leases

logger = logging.getLogger("sharded_wf.flush")


class Flusher:
    """The one flusher of an executor on a shard. ``saved(ops, told)`` is called after each commit."""

    def __init__(
        self,
        link: Link,
        clock: Clock,
        is_here: Callable[[str], tuple[int, bool]],
        saved: Callable[[list[Op], Told], None],
        moved: Callable[[Exception], int | None] = lambda _: None,
    ) -> None:
        self._link = link
        self._clock = clock
        self._is_here = is_here
        self.saved = saved
        self._moved = moved
        self._waiting: list[Op] = []
        self._wanted = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.number = 0
        self._lease_id = b""
        self._taken = 0
        """How many ops have ever been taken into a flush."""
        self._passing: list[tuple[int, asyncio.Future[None]]] = []
        self._gathering = Gathering(clock, WRITE_GATHER_SECONDS)

    def add(self, op: Op) -> None:
        """Save this with the next flush."""
        if not self._waiting:
            self._wanted.set()
        self._waiting.append(op)

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was added is saved."""
        return not self._waiting and self._quiet.is_set() and not self._wanted.is_set()

    def discard(self) -> None:
        """Forget what waits: the lease is gone."""
        self._waiting.clear()
        self._quiet.set()
        self._let_pass(None)

    async def passed(self) -> None:
        """Wait until everything that was added before now is saved, and its runs told."""
        if self._waiting or not self._quiet.is_set():
            passing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._passing.append((self._taken + len(self._waiting), passing))
            await passing

    def _let_pass(self, saved: int | None) -> None:
        """So many ops are saved (None: all)."""
        for until, passing in self._passing:
            if (saved is None or until <= saved) and not passing.done():
                passing.set_result(None)
        self._passing = [row for row in self._passing if not row[1].done()]

    def forget_slot(self, slot: int) -> None:
        """Save nothing of what is held in this slot: it is not here any more."""
        self._tear({op.hold for op in self._waiting if op.hold.claim.slot == slot})

    def _tear(self, gone: Set[Hold], parted: Set[Hold] = frozenset()) -> None:
        """Of what waits, save nothing of those who are gone. Those who are parted from a child that they are the heir
        of, because of that or as told, begin again from their rows."""
        lost = {*gone, *parted}
        self._waiting = torn(self._waiting, lost)
        for hold in lost - gone:
            hold.leaving = True
            asyncio.get_running_loop().call_soon(hold.run.drop)
            self._waiting.append(Op(OpKind.GIVE_BACK, hold))

    def _put_back(self, ops: list[Op]) -> None:
        """Nothing of these was saved: they are the first that wait."""
        self._waiting[:0] = ops
        self._taken -= len(ops)

    async def wait_quiet(self) -> None:
        """Wait until everything that was added is saved."""
        while self._waiting or not self._quiet.is_set():
            await self._quiet.wait()
            await asyncio.sleep(0)

    async def run(self, lease_id: bytes) -> None:
        """Flush under this lease until cancelled. Raises ``LeaseLost``."""
        self._lease_id = lease_id
        self.number = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._quiet.clear()
            while self._waiting:
                if await self._gathering.waited():
                    continue
                size = size_of_flush(self._waiting)
                batch, self._waiting = self._waiting[:size], self._waiting[size:]
                self._taken += len(batch)
                self._gathering.note(self._clock.monotonic(), len(batch))
                await self._save(batch)
                if self._passing:
                    self._let_pass(self._taken)
            self._quiet.set()
            if self._passing:
                self._let_pass(None)

    async def _save(self, ops: list[Op]) -> None:
        now = self._clock.now_us()
        try:
            body, told = statements_of(ops, self._is_here, now)
        except UNPACKABLE as error:
            await self._bisect(ops, error)
            return
        self.number += 1
        statements = [
            leases.fence(self._lease_id), leases.mark_flush(self._lease_id, self.number), *body, *self._asides(told)
        ]  # fmt: skip
        lost = False
        while True:
            try:
                await self._link.transact(statements)
                break
            except ConnectionLost as error:
                if not lost:
                    reason = " ".join(str(error).split())
                    logger.warning("a flush lost its connection (%s); it will be completed", reason)
                    lost = True
                if error.commit_unknown and await self._was_committed(self._link.token):
                    break
            except psycopg.Error as error:
                if error.sqlstate == leases.LEASE_LOST_SQLSTATE:
                    raise LeaseLost(str(error)) from None
                if (slot := self._moved(error)) is not None:
                    # Nothing of this was written. What is held in a slot that has moved is given back there already.
                    self._put_back(ops)
                    self.forget_slot(slot)
                    return
                if not is_transient(error):
                    await self._bisect(ops, error)
                    return
                logger.warning("a flush has to be tried again: %s", error)
            await self._link.pause()
        self.saved(ops, told)

    def _asides(self, told: Told) -> list[Statement]:
        asides: list[Statement] = []
        if told.ended:
            asides.append(leases.notify_waiters(sorted(told.ended), self._clock.now_us()))
        if told.ready:
            asides.append(leases.notify_if_idle(sorted(told.ready)))
        if self.number % FLUSH_MARKS_KEPT == 0:
            asides.append(leases.forget_flushes(self._lease_id, self.number))
        return asides

    async def _was_committed(self, token: str | None) -> bool:
        """Whether the flush of the current number was committed. Asks until there is an answer."""
        while True:
            try:
                if self._link.pooled:
                    # Behind a pooler nobody can say which backend was ours: give the lease up, which waits for whatever
                    # still runs under it and fences whatever comes late; then everything is read anew.
                    raise LeaseLost("given up after a lost answer")
                await self._link.wait_backend_gone(token)
                return len(await self._link.fetch(leases.read_flush(self._lease_id, self.number))) > 0
            except (ConnectionLost, psycopg.Error):
                await self._link.pause()

    async def _bisect(self, ops: list[Op], error: Exception) -> None:
        """Something in these ops can't be stored. Halve until one run is found; that one fails, alone."""
        groups = inseparable(ops)
        if len(groups) > 1:
            middle = len(groups) // 2
            for half in (groups[:middle], groups[middle:]):
                await self._save([op for group in half for op in group])
            return
        if heirs := {op.heir for op in ops if op.heir is not None}:
            self._put_back(ops)
            self._tear(set(), heirs)
            return
        hold = ops[0].hold
        if any(op.kind is OpKind.FINISH and op.outcome and op.outcome.status is Status.FAILED for op in ops):
            # Even its failure can't be stored as it is: say so in words that can.
            logger.error("workflow %r: its error could not be stored: %s", hold.run.id, error)
        reason = ValueError(f"Postgres refused what it wanted saved: {error}")
        hold.leaving = True
        cancels, cancels_as = hold.run.children_to_end(), hold.run.closer()
        for op in (*ops, *self._waiting):
            if op.hold is hold and op.outcome is not None:
                cancels, cancels_as = op.outcome.cancels, op.outcome.cancels_as
            elif op.hold is hold and op.renewal is not None:
                cancels = op.renewal.cancels
        # What it wanted besides goes with it: it leaves once.
        self._tear({hold})
        asyncio.get_running_loop().call_soon(hold.run.drop)
        outcome = Outcome(Status.FAILED, None, encode_error(reason), cancels, cancels_as)
        await self._save([Op(OpKind.FINISH, hold, outcome=outcome)])
