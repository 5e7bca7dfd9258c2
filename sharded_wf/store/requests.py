"""Starts and messages that users' own transactions leave in a database, to be carried to where they belong."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.model.attributes import Attribute
from sharded_wf.model.workflow import Message, Start
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.routing import slot_schema

OUTBOX_SCHEMA = "wf_outbox"
"""Where the outbox is in a database that is no shard."""
_SQL = load("requests")
_READ = _SQL["read_requests"]
_CLEAR = _SQL["clear_requests"]
_REFUSE = _SQL["refuse_requests"]


class StoredStart(msgspec.Struct, frozen=True, tag="start"):
    """A start as it lies in an outbox; the fields of ``Start``."""

    id: str
    name: str
    capability: str
    queue: str
    priority: int
    input: msgspec.Raw
    not_before: Microseconds | None
    same: bool
    """Whether an existing workflow with other arguments is a conflict."""
    attributes: tuple[Attribute, ...] = ()
    deadline: Microseconds | None = None


class StoredMessage(msgspec.Struct, frozen=True, tag="message"):
    """A message as it lies in an outbox; the fields of ``Message``."""

    receiver: str
    topic: str
    sender: str
    seq: int
    payload: msgspec.Raw
    sent_at: Microseconds


class Request(msgspec.Struct, frozen=True):
    """One row: a start, or a message. ``same``: a start must find no workflow with other arguments."""

    id: int
    start: Start | None
    message: Message | None
    same: bool = True

    @property
    def workflow_id(self) -> str:
        """Whom it concerns."""
        if self.start is not None:
            return self.start.id
        assert self.message is not None
        return self.message.receiver


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredStart | StoredMessage).decode


def leave_start(schema: str, start: Start, *, same: bool) -> Statement:
    """Leave a start to the executors."""
    body = StoredStart(
        start.id, start.name, start.capability, start.queue, start.priority, msgspec.Raw(start.input),
        start.not_before, same, start.attributes, start.deadline,
    )  # fmt: skip
    return Statement(_SQL["request"], schema, (_encode(body),))


def leave_message(schema: str, message: Message) -> Statement:
    """Leave a message to the executors."""
    body = StoredMessage(
        message.receiver, message.topic, message.sender, message.seq, msgspec.Raw(message.payload), message.sent_at
    )
    return Statement(_SQL["request"], schema, (_encode(body),))


def read_requests(schema: str, after: int, limit: int) -> Statement:
    """Ask for requests from an ID on, in order."""
    return Statement(_READ, schema, (binary.int8(after), binary.int4(limit)))


def requests_of(result: Result) -> list[Request]:
    """The answer to ``read_requests``."""
    found: list[Request] = []
    for id_, body in result.rows():
        stored = _decode(body)
        if isinstance(stored, StoredStart):
            start = Start(
                stored.id, stored.name, stored.capability, stored.queue, stored.priority, bytes(stored.input),
                stored.not_before, attributes=stored.attributes, deadline=stored.deadline,
            )  # fmt: skip
            found.append(Request(binary.read_int(id_), start, None, stored.same))
        else:
            message = Message(
                stored.receiver, stored.topic, stored.sender, stored.seq, bytes(stored.payload), stored.sent_at
            )
            found.append(Request(binary.read_int(id_), None, message))
    return found


def clear_requests(schema: str, ids: Sequence[int]) -> Statement:
    """Remove what was carried out."""
    return Statement(_CLEAR, schema, (binary.int8_array(ids),))


def refuse_requests(schema: str, errors: Sequence[tuple[int, str]]) -> Statement:
    """Set aside what can never be carried out, with the reason."""
    return Statement(
        _REFUSE,
        schema,
        (binary.int8_array([id_ for id_, _ in errors]), binary.text_array([error for _, error in errors])),
    )


def where_am_i() -> Statement:
    """Ask whether the database is a shard, and whether it holds an outbox."""
    return Statement(_SQL["where_am_i"], "")


def is_shard_and_outbox(result: Result) -> tuple[bool, bool, bool]:
    """The answer to ``where_am_i``; and whether the shard is a node of a Citus cluster."""
    ((shard, outbox, guarded),) = result.rows()
    return shard == b"\x01", outbox == b"\x01", guarded == b"\x01"


def read_owner() -> Statement:
    """Ask whose outbox this is."""
    return Statement(_SQL["read_owner"], OUTBOX_SCHEMA)


def read_cluster() -> Statement:
    """Ask which cluster, and which shard of it, a shard is."""
    return Statement(load("shard_map")["read_cluster"], "")


def identity_of(result: Result) -> tuple[uuid.UUID, str, str] | None:
    """The answer to ``read_cluster`` or ``read_owner``: the cluster's ID and name, and the shard's (an outbox: "")."""
    rows = result.rows()
    if not rows:
        return None
    first = rows[0]
    return uuid.UUID(bytes=first[0]), first[1].decode(), first[2].decode() if len(first) > 2 else ""


def has_live_slot(slot: int) -> Statement:
    """Ask whether a slot lies in this database."""
    return Statement(_SQL["has_live_slot"], "", (f"{slot_schema(slot)}.fence".encode(), binary.int4(slot)))


def write_owner(cluster_id: uuid.UUID, name: str, version: int) -> Statement:
    """Say whose outbox this is."""
    return Statement(_SQL["write_owner"], OUTBOX_SCHEMA, (cluster_id.bytes, name.encode(), binary.int4(version)))
