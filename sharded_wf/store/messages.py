"""Messages, the wakes that announce them, and the outbox of those that could not be delivered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sharded_wf.clock import Microseconds
from sharded_wf.model.workflow import Message
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import Query, load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("messages")
_DELIVER = _SQL["deliver_messages"]
_DELIVER_WITH_START = _SQL["deliver_with_start"]
_READ = _SQL["read_messages"]
_CONSUME = _SQL["consume_messages"]
_READ_WAKES = _SQL["read_wakes"]
_FORGET_WAKES = _SQL["forget_wakes"]
_CLEAR_MAILBOXES = _SQL["clear_mailboxes"]
_FORGET_IDLE_WAKES = _SQL["forget_idle_wakes"]
_WAKE_PARKED = _SQL["wake_parked"]
_FILL_OUTBOX = _SQL["fill_outbox"]
_READ_OUTBOX = _SQL["read_outbox"]
_CLEAR_OUTBOX = _SQL["clear_outbox"]


class Wake(NamedTuple):
    """The announcement of a message. ``unheld``: nobody runs its receiver, nor will by itself: it is parked, has ended,
    or is gone."""

    workflow_id: str
    id: bytes
    unheld: bool


def _key(message: Message) -> tuple[str, str, str, int]:
    return message.receiver, message.topic, message.sender, message.seq


def _whole(query: Query, schema: str, messages: Sequence[Message]) -> Statement:
    rows = sorted(messages, key=_key)  # primary-key order: two that insert the same rows wait and don't deadlock
    return Statement(
        query,
        schema,
        (
            *_key_columns(rows),
            binary.timestamp_array([message.sent_at for message in rows]),
            binary.json_array([message.payload for message in rows]),
        ),
    )


def _key_columns(messages: Sequence[Message]) -> tuple[bytes, bytes, bytes, bytes]:
    return (
        binary.text_array([message.receiver for message in messages]),
        binary.text_array([message.topic for message in messages]),
        binary.text_array([message.sender for message in messages]),
        binary.int4_array([message.seq for message in messages]),
    )


def deliver(schema: str, messages: Sequence[Message]) -> Statement:
    """Hand messages to receivers in this slot; the answer lists those that do not exist. Delivering again changes
    nothing."""
    return _whole(_DELIVER, schema, messages)


def deliver_with_start(schema: str, message: Message, name: str) -> Statement:
    """Hand a message to the workflow that was started just now or before, unless its name is another."""
    return Statement(
        _DELIVER_WITH_START,
        schema,
        (
            message.receiver.encode(), name.encode(), message.topic.encode(), message.sender.encode(),
            binary.int4(message.seq), binary.timestamp(message.sent_at), message.payload,
        ),
    )  # fmt: skip


def fill_outbox(schema: str, messages: Sequence[Message]) -> Statement:
    """Keep messages for other slots, in the transaction that sends them."""
    return _whole(_FILL_OUTBOX, schema, messages)


def consume(schema: str, messages: Sequence[Message]) -> Statement:
    """Remove received messages, in the transaction that records their reception."""
    return Statement(_CONSUME, schema, _key_columns(messages))


def clear_outbox(schema: str, messages: Sequence[Message]) -> Statement:
    """Remove delivered messages."""
    return Statement(_CLEAR_OUTBOX, schema, _key_columns(messages))


def read_messages(schema: str, receivers: Sequence[str]) -> Statement:
    """Ask what waits for these workflows."""
    return Statement(_READ, schema, (binary.text_array(receivers),))


def read_outbox(schema: str, until: Microseconds, limit: int, after: str) -> Statement:
    """Ask for messages that have waited since before ``until``, to receivers whose IDs sort after ``after``."""
    return Statement(_READ_OUTBOX, schema, (binary.timestamp(until), binary.int4(limit), after.encode()))


def messages_of(result: Result) -> list[Message]:
    """The answer to ``read_messages`` or ``read_outbox``."""
    return [
        Message(
            receiver.decode(), topic.decode(), sender.decode(), binary.read_int(seq), payload,
            binary.read_timestamp(sent_at),
        )
        for receiver, topic, sender, seq, sent_at, payload in result.rows()
    ]  # fmt: skip


def read_wakes(schema: str, after: str, limit: int) -> Statement:
    """Ask for wakes of workflows whose IDs sort after ``after``."""
    return Statement(_READ_WAKES, schema, (after.encode(), binary.int4(limit)))


def wakes_of(result: Result) -> list[Wake]:
    """The answer to ``read_wakes``."""
    return [
        Wake(id_.decode(), wake, unheld == b"\x01")
        for id_, wake, unheld in result.rows()
        if id_ is not None and wake is not None
    ]


def forget_wakes(schema: str, wakes: Sequence[Wake]) -> Statement:
    """Remove wakes that were acted on."""
    return Statement(
        _FORGET_WAKES,
        schema,
        (binary.text_array([wake.workflow_id for wake in wakes]), binary.uuid_array([wake.id for wake in wakes])),
    )


def clear_mailboxes(schema: str, ids: Sequence[str]) -> Statement:
    """Remove what workflows that end now have not received: late messages, and ones that were delivered twice."""
    return Statement(_CLEAR_MAILBOXES, schema, (binary.text_array(ids),))


def forget_idle_wakes(schema: str, ids: Sequence[str]) -> Statement:
    """Remove the wakes, and the messages, of those among these workflows that have ended."""
    return Statement(_FORGET_IDLE_WAKES, schema, (binary.text_array(ids),))


def withdraw_requests(schema: str, id_: str, topics: Sequence[str]) -> Statement:
    """Remove requests on these reserved topics from a workflow's mailbox."""
    return Statement(_SQL["withdraw_requests"], schema, (id_.encode(), binary.text_array(topics)))


def wake_parked(schema: str, ids: Sequence[str], now: Microseconds) -> Statement:
    """Those among these workflows that are parked go back to the queue; the answer lists them."""
    return Statement(_WAKE_PARKED, schema, (binary.text_array(ids), binary.timestamp(now)))
