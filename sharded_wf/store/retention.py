"""Finding and removing old workflows, in one slot."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.model.attributes import AttributeKind, decode
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("retention")
_FIND_OLD = _SQL["find_old"]
_DELETE_OLD_INPUTS = _SQL["delete_old_inputs"]
_DELETE_OLD = _SQL["delete_old"]
_VACUUM = _SQL["vacuum_history"]

_decode_attributes = msgspec.json.Decoder(list[tuple[str, AttributeKind, str]]).decode

HISTORY_TABLES = ("workflow", "input", "step", "attempt", "heartbeat", "event", "failed", "attribute")
Place = tuple[Microseconds, str]
"""Where a walk stands: the moment of creation and the ID of the row that it saw last."""
START: Place = (binary.POSTGRES_EPOCH_US, "")


class Cutoffs(msgspec.Struct, frozen=True):
    """What ended before these moments is old: by the workflow's name, else by its queue, else ``default``."""

    names: dict[str, Microseconds]
    queues: dict[str, Microseconds]
    default: Microseconds

    @property
    def latest(self) -> Microseconds:
        """What ended after this is not old, whatever it is."""
        return max(self.default, *self.names.values(), *self.queues.values(), START[0])


class Seen(msgspec.Struct, frozen=True, gc=False):
    """One row that a walk came by. ``old``: it has ended and its time is over. ``input_apart``: its input
    lies in a table of its own."""

    created_at: Microseconds
    id: str
    parent_id: str | None
    queue: str
    name: str
    old: bool
    input_apart: bool


def hold(holder: bytes, seconds: int) -> Statement:
    """Become, or stay, the one who sweeps this shard for so long; the count is 1 if it is so."""
    return Statement(_SQL["hold_retention"], "", (holder, binary.int4(seconds)))


def release(holder: bytes) -> Statement:
    """Leave the sweeping to others."""
    return Statement(_SQL["release_retention"], "", (holder,))


def find_old(schema: str, after: Place, before: Microseconds, limit: int, cutoffs: Cutoffs) -> Statement:
    """Look at up to ``limit`` workflows after a place that were created before a moment."""
    return Statement(
        _FIND_OLD,
        schema,
        (
            binary.timestamp(after[0]), after[1].encode(), binary.timestamp(before), binary.int4(limit),
            binary.text_array(list(cutoffs.names)), binary.timestamp_array(list(cutoffs.names.values())),
            binary.text_array(list(cutoffs.queues)), binary.timestamp_array(list(cutoffs.queues.values())),
            binary.timestamp(cutoffs.default),
        ),
    )  # fmt: skip


def seen_of(result: Result) -> list[Seen]:
    """The answer to ``find_old``."""
    return [
        Seen(
            binary.read_timestamp(created_at), id_.decode(), None if parent is None else parent.decode(),
            queue.decode(), name.decode(), old == b"\x01", apart == b"\x01",
        )
        for created_at, id_, parent, queue, name, old, apart in result.rows()
    ]  # fmt: skip


def find_unfinished_parents(schema: str, children: Sequence[Seen]) -> Statement:
    """Ask which parents of these workflows, all in one slot, have not ended."""
    return Statement(
        _SQL["find_unfinished_parents"],
        schema,
        (
            binary.text_array([child.parent_id or "" for child in children]),
            binary.timestamp_array([child.created_at for child in children]),
        ),
    )


def _keys(rows: Sequence[Seen], cutoffs: Cutoffs) -> tuple[bytes, bytes, bytes]:
    return (
        binary.text_array([row.id for row in rows]), binary.timestamp_array([row.created_at for row in rows]),
        binary.timestamp(cutoffs.latest),
    )  # fmt: skip


def _by_id(row: Seen) -> str:
    return row.id


def read_old(schema: str, rows: Sequence[Seen], cutoffs: Cutoffs) -> Statement:
    """Ask for everything about these workflows."""
    return Statement(_SQL["read_old"], schema, _keys(rows, cutoffs))


def lines_of(result: Result) -> dict[str, bytes]:
    """The answer to ``read_old``: a JSON object each, by ID."""
    found: dict[str, bytes] = {}
    for id_, text, stored in result.rows():
        values = {name: decode(kind, value) for name, kind, value in _decode_attributes(stored)} if stored else {}
        found[id_.decode()] = text[:-1] + b', "attributes" : ' + msgspec.json.encode(values) + b"}"
    return found


def delete_old(schema: str, rows: Sequence[Seen], cutoffs: Cutoffs) -> list[Statement]:
    """Remove these workflows with all that hangs on them, unless they were resumed since, in one transaction;
    ``deleted_of`` the last answer tells how many there still were."""
    rows = sorted(rows, key=_by_id)  # the order in which starts lock the same rows
    statements = [Statement(_DELETE_OLD, schema, _keys(rows, cutoffs))]
    if apart := [row for row in rows if row.input_apart]:
        statements.insert(0, Statement(_DELETE_OLD_INPUTS, schema, _keys(apart, cutoffs)))
    return statements


def deleted_of(results: Sequence[Result]) -> int:
    """How many workflows ``delete_old`` removed."""
    return binary.read_int(results[-1].value() or b"")


def estimate_rows(schema: str) -> Statement:
    """Ask how many workflows the slot holds, by the planner's statistics; negative: not known."""
    return Statement(_SQL["estimate_rows"], schema)


def vacuums(schema: str) -> list[str]:
    """The vacuum commands for a slot's history; each runs outside any transaction."""
    return [_VACUUM.text.replace("{slot}", schema).replace("{table}", table) for table in HISTORY_TABLES]
