"""Resuming what ended badly, and forks, in the rows of one slot."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.limits import INLINE_INPUT_MAX_BYTES
from sharded_wf.model.history import Entry
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.store import steps

_SQL = load("repair")


class Failure(msgspec.Struct, frozen=True):
    """A workflow that ended badly, as a page of them has it."""

    id: str
    name: str
    queue: str
    status: Status
    failed_at: Microseconds
    fits: bool
    undone_from: int | None
    """It has undone its work, which began with the step of this number: it can't be resumed."""


class Origin(msgspec.Struct, frozen=True):
    """What a fork takes over from the workflow that it is made of."""

    name: str
    capability: str
    queue: str
    priority: int
    started_at: Microseconds | None
    input: bytes
    time_us: int | None
    """How long it may take from its creation on."""
    undone_from: int | None
    """As of ``Failure``."""


class Closed(IntEnum):
    """Whether a child was cancelled by the end of its parent."""

    NOT = 0
    """It goes on, or ended otherwise, or there is none."""
    ON_ITS_WAY = 1
    """It is told, and has not ended yet."""
    ENDED = 2


class Life(NamedTuple):
    """A workflow from its start or a resume to its end."""

    number: int
    """The number of its outcome; as long as it has none, the least that it can have."""
    outcome: Outcome | None


def resume(schema: str, ids: Sequence[str], now: Microseconds) -> Statement:
    """Those among these workflows that ended badly go on; the answer lists them."""
    return Statement(_SQL["resume"], schema, (binary.text_array(sorted(ids)), binary.timestamp(now)))


def withdraw_cancels(schema: str, id_: str, senders: Sequence[str]) -> Statement:
    """Take back requests to cancel a workflow, of these senders, unless somebody who runs it may have read them."""
    return Statement(_SQL["withdraw_cancels"], schema, (id_.encode(), binary.text_array(senders)))


def read_unsent(schema: str, receiver: str, topic: str, senders: Sequence[str]) -> Statement:
    """Ask for messages to a workflow that wait in the outbox; a row for each."""
    return Statement(_SQL["read_unsent"], schema, (receiver.encode(), topic.encode(), binary.text_array(senders)))


def read_revived(schema: str, parent: str, child: str, resumes: int) -> Statement:
    """Ask what a parent that was resumed so often has noted of a child; a row with the note's text, or none."""
    return Statement(_SQL["read_revived"], schema, (parent.encode(), child.encode(), binary.int4(resumes)))


def read_life(schema: str, id_: str) -> Statement:
    """Ask for the number of a workflow's outcome, or that which it will have at least, and for the outcome."""
    return Statement(_SQL["read_life"], schema, (id_.encode(),))


def life_of(result: Result) -> Life:
    """The answer to ``read_life``, of a workflow that exists."""
    ((number, status, output, error),) = result.rows()
    assert number is not None
    ended = Status(binary.read_int(status)) if status is not None else Status.PENDING
    return Life(binary.read_int(number), Outcome(ended, output, error) if ended.is_final else None)


def read_closed(schema: str, child: str, senders: Sequence[str]) -> Statement:
    """Ask what became of a child that its parent told, under one of these names, to end."""
    return Statement(_SQL["read_closed"], schema, (child.encode(), binary.text_array(senders)))


def closed_of(result: Result) -> Closed:
    """The answer to ``read_closed``."""
    for (state,) in result.rows():
        assert state is not None
        return Closed(binary.read_int(state))
    return Closed.NOT


def page_failed(
    schema: str,
    after: tuple[Microseconds, str],
    limit: int,
    name: str | None,
    status: Status | None,
    queue: str | None,
    error: str | None,
) -> Statement:
    """Ask for the next that ended badly after a place in their order; those that fit the rest are marked."""
    return Statement(
        _SQL["page_failed"],
        schema,
        (
            binary.timestamp(after[0]), after[1].encode(), binary.int4(limit),
            None if name is None else name.encode(), None if status is None else binary.int2(status),
            None if queue is None else queue.encode(), None if error is None else error.encode(),
        ),
    )  # fmt: skip


def failures_of(result: Result) -> list[Failure]:
    """The answer to ``page_failed``."""
    return [
        Failure(
            id_.decode(), name.decode(), queue.decode(), Status(binary.read_int(status)), binary.read_timestamp(at),
            fits == b"\x01", None if undone is None else binary.read_int(undone),
        )
        for at, id_, name, queue, status, fits, undone in result.rows()
    ]  # fmt: skip


def read_origin(schema: str, id_: str) -> Statement:
    """Ask for what a fork of this workflow takes over."""
    return Statement(_SQL["read_origin"], schema, (id_.encode(),))


def origin_of(result: Result) -> Origin | None:
    """The answer to ``read_origin``."""
    for name, capability, queue, priority, started, input_, created, deadline, undone in result.rows():
        assert name is not None and capability is not None and queue is not None
        assert priority is not None and created is not None
        return Origin(
            name.decode(), capability.decode(), queue.decode(), binary.read_int(priority),
            None if started is None else binary.read_timestamp(started), input_ or b"null",
            None if deadline is None else binary.read_timestamp(deadline) - binary.read_timestamp(created),
            None if undone is None else binary.read_int(undone),
        )  # fmt: skip
    return None


def fork(schema: str, id_: str, origin: Origin, entries: Sequence[Entry], now: Microseconds) -> Statement:
    """Make a workflow that begins with these entries; the answer has a row if it was made."""
    large = len(origin.input) > INLINE_INPUT_MAX_BYTES
    return Statement(
        _SQL["fork"],
        schema,
        (
            id_.encode(), origin.name.encode(), origin.capability.encode(), origin.queue.encode(),
            binary.int2(origin.priority), binary.timestamp(now),
            None if origin.started_at is None else binary.timestamp(origin.started_at),
            None if large else origin.input, origin.input if large else None, *steps.columns_of(entries),
            None if origin.time_us is None else binary.timestamp(now + origin.time_us),
        ),
    )  # fmt: skip
