"""Running transactions: the body of a step and the record of its result, in one commit.

Such a transaction begins with the lease's fence, as a flush does, and so keeps a takeover waiting, or fails. It ends
with the step's row. Whoever finds the row knows that the body's writes are there; whoever does not, that they are not.

Order. Replay hands results back by ordinal, so they must be delivered by ordinal. A transaction that is about to commit
takes the next ordinal; from then on what the same run records is held back (``ShardHost.holding_back``); what it
recorded before is waited for; then comes the commit, the delivery, and what was held back. If the commit fails, the
ordinals of what was held back close the gap. Only this one run waits: other runs' flushes go on.

An answer to COMMIT that was lost: the backend is ended first, then the row is looked for, as with flushes; behind a
transaction-pooling proxy the lease is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Callable
from contextvars import Context as VariableContext
from typing import Any

import msgspec
import psycopg
from psycopg import pq

from sharded_wf.cluster.shard import Shard
from sharded_wf.errors import TransactionRefused
from sharded_wf.executor.flusher import Flusher
from sharded_wf.executor.held import Hold
from sharded_wf.executor.host import ShardHost
from sharded_wf.executor.ops import Op, OpKind
from sharded_wf.limits import (
    ROOM_RECHECK_SECONDS,
    STATEMENT_DEADLINE_SECONDS,
    TRANSACTION_BACKOFF_FIRST_SECONDS,
    TRANSACTION_BACKOFF_MAX_SECONDS,
    TRANSACTION_FLUSH_WAIT_SECONDS,
    TRANSACTION_LOCK_TIMEOUT_SECONDS,
    TRANSACTION_TRIES_MAX,
)
from sharded_wf.model.history import Entry
from sharded_wf.postgres.failures import is_transient
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.postgres.transactions import OpenTransaction, TransactionPool
from sharded_wf.store import leases, steps
from sharded_wf.workflow.transactions import TransactionCommand

logger = logging.getLogger("sharded_wf.transactions")

_CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_LOCK_TIMEOUT_MS = int(TRANSACTION_LOCK_TIMEOUT_SECONDS * 1000)


class _Again(Exception):
    """This try wrote nothing, and another may succeed. ``counts``: whether the body may be to blame."""

    def __init__(self, error: BaseException, *, counts: bool = True) -> None:
        super().__init__(str(error))
        self.error = error
        self.counts = counts


class _FlushIsLate(Exception):
    """What the run recorded before is not durable yet."""


class _Call:
    """One attempt of a transaction of one held workflow."""

    __slots__ = ("attempt", "command", "hold", "lease_id", "variables")

    def __init__(self, hold: Hold, command: TransactionCommand, lease_id: bytes, variables: VariableContext) -> None:
        self.hold = hold
        self.command = command
        self.attempt = command.attempt
        self.lease_id = lease_id
        self.variables = variables

    def is_wanted(self) -> bool:
        return not self.hold.leaving and self.command.is_wanted(self.attempt)


class Transactions:
    """The transactions of one executor on one shard. ``give_up`` gives the lease up, without delay; ``moved`` is told
    of errors, and drops what is held of a slot that has left."""

    def __init__(
        self,
        shard: Shard,
        flusher: Flusher,
        give_up: Callable[[], None],
        moved: Callable[[Exception], int | None] = lambda _: None,
    ) -> None:
        self._pool = TransactionPool(shard.dsn)
        self._link = shard.link("transactions")
        self._flusher = flusher
        self._give_up = give_up
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._lease_id = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing: dict[Hold, asyncio.Event] = {}

    def begin_lease(self, lease_id: bytes) -> None:
        """From now on transactions are made under this lease."""
        self._lease_id = lease_id

    def begin(self, hold: Hold, command: TransactionCommand, variables: VariableContext) -> asyncio.Task[None]:
        """As ``Host.transact``."""
        call = _Call(hold, command, self._lease_id, variables)
        task = asyncio.Task(self._run(call), loop=self._loop, name=f"transaction {command.name}", context=variables)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def discard(self) -> None:
        """Stop all: the lease is gone, or given up."""
        for task in self._tasks:
            task.cancel()

    async def settle(self) -> None:
        """Wait until no commit is under way."""
        while self._committing:
            await next(iter(self._committing.values())).wait()

    def is_committing(self, hold: Hold) -> bool:
        """Whether a commit of this workflow is under way."""
        return hold in self._committing

    def close(self) -> None:
        """Stop, and end every connection. Closing twice is fine."""
        self.discard()
        self._pool.close()
        self._link.close()

    # --- one call -----------------------------------------------------------------------------------------------

    async def _run(self, call: _Call) -> None:
        tries, pause = 0, TRANSACTION_BACKOFF_FIRST_SECONDS
        while True:
            try:
                await self._try(call)
                return
            except _Again as again:
                tries += again.counts
                if not call.is_wanted():
                    return
                if tries >= TRANSACTION_TRIES_MAX:
                    call.command.fail(again.error)
                    return
                logger.info("transaction %r is tried again: %s", call.command.name, again.error)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._fail(call, error)  # the body's own
                return
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it raised is its result
                self._fail(call, error)
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, TRANSACTION_BACKOFF_MAX_SECONDS)
            if not call.is_wanted():
                return

    def _fail(self, call: _Call, error: BaseException) -> None:
        if call.is_wanted():
            call.command.fail(error)

    async def _try(self, call: _Call) -> None:
        """One try, to the end. Raises ``_Again``, or what the body raised."""
        try:
            transaction = await self._pool.take(call.command.step.is_async)
        except psycopg.Error as error:
            raise _Again(error, counts=False) from None
        usable = False
        try:
            mark = uuid.uuid4().hex
            result = await self._body(call, transaction, mark)
            while call.hold in self._committing:  # another of the same run: one after the other
                await self._committing[call.hold].wait()
            if call.is_wanted():
                await self._record(call, transaction, result, mark)
                usable = True
        except asyncio.CancelledError:
            raise
        except BaseException:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROOM_RECHECK_SECONDS):
                    await transaction.roll_back()
                    usable = True
            raise
        finally:
            self._pool.give_back(transaction, usable=usable)

    async def _body(self, call: _Call, transaction: OpenTransaction, mark: str) -> Any:
        command = call.command
        limit = asyncio.timeout(command.step.timeout_seconds)
        begun = False
        try:
            async with limit:
                await transaction.begin(command.step.isolation, steps.begin_transaction(call.lease_id, mark))
                begun = True
                result = await transaction.call(command.call, call.variables.copy().run)
        except TimeoutError as error:
            if limit.expired():
                transaction.cut()
                raise TimeoutError(command.timeout_text()) from None
            raise error from None
        except psycopg.Error as error:
            if not begun and error.sqlstate == leases.LEASE_LOST_SQLSTATE:
                await self._lease_gone()
            if not begun and (transaction.lost or is_transient(error)):
                raise _Again(error, counts=False) from None
            if transaction.lost or _is_conflict(error):
                raise _Again(error) from None
            raise
        except Exception as error:
            if _is_conflict(error):
                raise _Again(error) from None
            raise
        status = transaction.conn.info.transaction_status
        if status == pq.TransactionStatus.INERROR:
            raise TransactionRefused(
                f"transaction {command.name!r} caught the error of a statement, after which Postgres accepts nothing "
                "more; put what may fail into `with connection.transaction():`, a savepoint"
            )
        return result

    # --- its end ------------------------------------------------------------------------------------------------

    async def _record(self, call: _Call, transaction: OpenTransaction, result: Any, mark: str) -> None:
        """Commit, deliver, and let what the run recorded meanwhile follow."""
        hold, command = call.hold, call.command
        run = command.run
        entry = command.begin_commit(result)
        host = run.host
        assert isinstance(host, ShardHost)
        run.host, held_back = host.holding_back()
        self._committing[hold] = asyncio.Event()
        failure: BaseException | None = None
        cancelled = wanted = False
        try:
            failure = await self._commit(call, transaction, entry, mark)
        except asyncio.CancelledError:
            cancelled = True  # the lease is gone: the run is dropped, and everything read anew
            raise
        finally:
            run.host = host
            self._committing.pop(hold).set()
            if not cancelled:
                wanted = self._conclude(call, entry, held_back, failure)
        if failure is not None and hold.leaving:
            raise _Again(failure, counts=False)  # it was taken from us, perhaps moved with its slot: nobody waits
        if failure is not None and wanted:
            if isinstance(failure, _FlushIsLate):
                raise _Again(failure, counts=False)
            if transaction.lost or _is_conflict(failure) or isinstance(failure, psycopg.errors.LockNotAvailable):
                raise _Again(failure)
            raise failure

    def _conclude(self, call: _Call, entry: Entry, held_back: list[Op], failure: BaseException | None) -> bool:
        """After the commit, or its failure; whether the code still waits for a transaction that failed."""
        hold, command = call.hold, call.command
        wanted = False
        if failure is None:
            command.committed()
            self._loop.call_soon(_deliver, hold, entry)
        else:
            wanted = command.not_committed()
            held_back = [_closing_the_gap(op) for op in held_back]
        # A run that was taken from us meanwhile (a row of its was refused) has its end already.
        if not hold.leaving or any(op.kind is OpKind.FINISH for op in held_back):
            for op in held_back:
                self._flusher.add(op)
        return wanted

    async def _commit(self, call: _Call, transaction: OpenTransaction, entry: Entry, mark: str) -> BaseException | None:
        """Commit with the step's row. Returns why it certainly was not committed, or ``None``."""
        try:
            async with asyncio.timeout(TRANSACTION_FLUSH_WAIT_SECONDS):
                await self._flusher.passed()
        except TimeoutError:
            # Where connections are few (a pooler's), the flush may be waiting for the one that we hold: let go of it.
            return _FlushIsLate("a flush that must come first is late")
        hold = call.hold
        schema, id_ = hold.claim.schema, hold.run.id
        committing = False
        try:
            async with asyncio.timeout(STATEMENT_DEADLINE_SECONDS):
                recorded = await transaction.write(
                    steps.record_transaction(schema, id_, entry, hold.claim.id, mark, _LOCK_TIMEOUT_MS)
                )
                if not len(recorded):
                    return TransactionRefused(
                        f"transaction {entry.name!r} is not the one that was begun for it any more: nothing may end it "
                        "but its own function's return"
                    )
                committing = True
                await transaction.commit()
        except (psycopg.Error, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                transaction.cut()
            if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "step_pkey":
                await self._lease_gone()  # somebody else recorded this very step
            if not committing or not (transaction.lost or isinstance(error, TimeoutError)):
                # A slot that has left has taken its workflows with it: what they recorded, and nothing of this one.
                self._moved(error)
                return error
            logger.warning("a transaction lost its connection at commit (%s); looking whether it was committed", error)
            if not await self._was_committed(transaction, schema, id_, entry.place):
                return error
        return None

    async def _was_committed(self, transaction: OpenTransaction, schema: str, id_: str, place: int) -> bool:
        if transaction.pooled:
            await self._lease_gone()
        while True:
            try:
                await self._link.wait_backend_gone(transaction.token)
                return len(await self._link.fetch(steps.read_step(schema, id_, place))) > 0
            except (ConnectionLost, psycopg.Error) as error:
                if self._moved(error) is not None:
                    return False  # the answer has moved, and the workflow with it: it is not ours any more
                await self._link.pause()

    async def _lease_gone(self) -> None:
        """Give the lease up, and wait for the end that this means for everything under it."""
        self._give_up()
        await self._loop.create_future()


def _deliver(hold: Hold, entry: Entry) -> None:
    if not hold.leaving:
        hold.run.deliver(entry)


def _closing_the_gap(op: Op) -> Op:
    """The same op, one ordinal earlier."""
    if op.entry is None:
        return op
    return msgspec.structs.replace(op, entry=msgspec.structs.replace(op.entry, ordinal=op.entry.ordinal - 1))


def _is_conflict(error: BaseException | None) -> bool:
    """Whether Postgres ended the transaction for the sake of another; libraries wrap such errors."""
    while error is not None:
        if isinstance(error, _CONFLICTS):
            return True
        error = error.__cause__
    return False
