"""Starts and messages as part of the caller's own transaction: nothing is there before its commit, nothing after its
rollback.

Where the caller's database is the shard on which the workflow lives, the rows go straight in. Where it is another, they
go into the outbox there, and executors carry them over. Nothing here waits for another database, or for what an
executor does; and since senders never touch a workflow's row, no executor waits for the caller's transaction either.

A start goes in by a timer that is due at once, not into the queue: claims begin at a low-water mark of time, and this
transaction may be committed long after the moment at which its rows were written.

What is to be asked and written is a generator of statements, so that blocking and asyncio connections share it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import msgspec
import psycopg

from sharded_wf.clock import Clock
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import TransactionRefused, WorkflowNotFound
from sharded_wf.model.workflow import Message, Start
from sharded_wf.postgres import borrowed
from sharded_wf.postgres.failures import moved_slot
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.postgres.statements import on_citus
from sharded_wf.routing import CONTROL_SCHEMA, slot_schema
from sharded_wf.store import leases, messages, outcomes, requests, starts
from sharded_wf.store.starts import Existing

T = TypeVar("T")
Asking = Generator[Statement, Result, T]
LEFT = "left"
"""The start was left to the executors."""


class InTransaction:
    """What one client asks of the databases that its callers' transactions are in."""

    def __init__(self, shards: ShardSet, clock: Clock) -> None:
        self._shards = shards
        self._clock = clock

    def start(self, start: Start, *, same: bool) -> Asking[Existing | str | None]:
        """Start a workflow: what existed before, or ``None`` if it is new, or ``LEFT``."""
        slot = self._shards.map.slot_of(start.id)
        schema, here, citus = yield from self._place_of(slot)
        if not here:
            yield requests.leave_start(schema, start, same=same)
            if schema == CONTROL_SCHEMA:
                yield leases.notify_look()
            return LEFT
        now = self._clock.now_us()
        due = msgspec.structs.replace(start, not_before=start.not_before or now)
        statements, counted = starts.start_statements(schema, (due,), now)
        created = 0
        for at, statement in enumerate(statements):
            result = yield from _say(statement, citus=citus)
            if at in counted:
                created += result.count
        if not created:
            found = starts.existing_of((yield starts.read_starts(schema, (start.id,))))
            return found[0] if found else None
        yield leases.notify_look()
        return None

    def send(self, message: Message) -> Asking[None]:
        """Send a message. Raises ``WorkflowNotFound``, if that can be known here."""
        slot = self._shards.map.slot_of(message.receiver)
        schema, here, citus = yield from self._place_of(slot)
        if not here:
            yield requests.leave_message(schema, message)
            if schema == CONTROL_SCHEMA:
                yield leases.notify_look()
            return
        missing = yield outcomes.missing_workflows(schema, {message.receiver})
        if len(missing):
            raise WorkflowNotFound(f"no workflow has the ID {message.receiver!r}")
        yield from _say(messages.deliver(schema, (message,)), citus=citus)
        yield leases.notify_wakes([slot])

    def _place_of(self, slot: int) -> Asking[tuple[str, bool, bool]]:
        """The schema to write into, whether it is the slot itself, and whether this is a node of a Citus cluster.
        Raises ``TransactionRefused``."""
        is_shard, has_outbox, citus = requests.is_shard_and_outbox((yield requests.where_am_i()))
        if is_shard:
            identity = requests.identity_of((yield requests.read_cluster()))
            self._check_cluster(identity)
            schema = slot_schema(slot)
            if (yield requests.has_live_slot(slot)).value() == b"\x01":
                return schema, True, citus
            return CONTROL_SCHEMA, False, citus
        if has_outbox:
            self._check_cluster(requests.identity_of((yield requests.read_owner())))
            return requests.OUTBOX_SCHEMA, False, False
        raise TransactionRefused(
            "the connection leads to a database that is neither a shard of the cluster nor has an outbox; make one: "
            "sharded-wf outbox init DSN"
        )

    def _check_cluster(self, identity: tuple[Any, str, str] | None) -> None:
        if identity is None or identity[0] != self._shards.cluster_id:
            other = "an unfinished one" if identity is None else repr(identity[1])
            raise TransactionRefused(
                f"the connection leads to a database of another cluster ({other}) than this client's "
                f"({self._shards.config.name!r})"
            )


def _say(statement: Statement, *, citus: bool) -> Asking[Result]:
    """The answer to a statement, in the words of where it is."""
    if not citus:
        return (yield statement)
    answers = {}
    for words in on_citus(statement):
        answers[words.query.name] = yield words
    return answers[statement.query.name]


def drive(conn: borrowed.AnyConnection, asking: Asking[T], what: str) -> T:
    """Run the statements on a blocking connection. Raises ``psycopg.Error``, ``TransactionRefused``."""
    borrowed.check_in_transaction(conn, what)
    try:
        statement = next(asking)
        while True:
            statement = asking.send(borrowed.run(conn, statement))
    except StopIteration as end:
        value: T = end.value
        return value
    except psycopg.Error as error:
        _check_moved(error)
        raise


async def drive_async(conn: borrowed.AnyAsyncConnection, asking: Asking[T], what: str) -> T:
    """As ``drive``."""
    borrowed.check_in_transaction(conn, what)
    try:
        statement = next(asking)
        while True:
            statement = asking.send(await borrowed.run_async(conn, statement))
    except StopIteration as end:
        value: T = end.value
        return value
    except psycopg.Error as error:
        _check_moved(error)
        raise


def _check_moved(error: psycopg.Error) -> None:
    """The slot was here when it was looked for, and not when it was written to: only now, and not the next time."""
    slot = moved_slot(error)
    if slot is not None:
        raise TransactionRefused(
            f"slot {slot} was moved or split at this very moment; roll back, and make the transaction again"
        ) from error
