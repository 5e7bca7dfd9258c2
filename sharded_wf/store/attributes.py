"""Attributes of workflows in one slot: set, read, searched."""

from __future__ import annotations

from collections.abc import Sequence

from sharded_wf.clock import Microseconds
from sharded_wf.model.attributes import Attribute, AttributeKind, Value, Where, decode
from sharded_wf.model.status import Status
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import Query, load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("attributes")
Owned = tuple[str, Attribute]
"""An attribute, with the ID of its workflow."""


def save_attributes(schema: str, owned: Sequence[Owned], created_at: Microseconds) -> Statement:
    """The attributes of workflows that are started at this moment."""
    return _set(_SQL["save_attributes"], schema, owned, binary.timestamp(created_at))


def set_attributes(schema: str, owned: Sequence[Owned]) -> list[Statement]:
    """Set attributes, and remove those without a value; of two of the same name the last counts."""
    last = {(id_, one.name): one for id_, one in owned}
    kept = [(id_, one) for (id_, _), one in sorted(last.items(), key=_by_key) if one.value is not None]
    gone = sorted(key for key, one in last.items() if one.value is None)
    statements = [_set(_SQL["set_attributes"], schema, kept)] if kept else []
    if gone:
        ids, names = [id_ for id_, _ in gone], [name for _, name in gone]
        statements.append(
            Statement(_SQL["remove_attributes"], schema, (binary.text_array(ids), binary.text_array(names)))
        )
    return statements


def _by_key(item: tuple[tuple[str, str], Attribute]) -> tuple[str, str]:
    return item[0]


def _set(query: Query, schema: str, owned: Sequence[Owned], *more: bytes) -> Statement:
    return Statement(
        query,
        schema,
        (
            binary.text_array([id_ for id_, _ in owned]),
            binary.text_array([one.name for _, one in owned]),
            binary.int2_array([one.kind or 0 for _, one in owned]),
            binary.text_array([one.value or "" for _, one in owned]),
            *more,
        ),
    )


def read_attributes(schema: str, id_: str) -> Statement:
    """Ask for the attributes of one workflow."""
    return Statement(_SQL["read_attributes"], schema, (id_.encode(),))


def values_of(result: Result) -> dict[str, Value]:
    """The answer to ``read_attributes``."""
    return {
        name.decode(): decode(AttributeKind(binary.read_int(kind)), value.decode())
        for name, kind, value in sorted(result.rows())
    }


def find_workflows(
    schema: str,
    where: Where,
    before: tuple[Microseconds, str],
    name: str | None,
    status: Status | None,
    queue: str | None,
    limit: int,
) -> Statement:
    """Ask for workflows that fit, newest first, from a place in that order on."""
    ranges = sorted(where.ranges, key=lambda one: not one.one_value)  # one value comes straight from the index
    first, others = ranges[0], ranges[1:]
    return Statement(
        _SQL["find_workflows" if first.one_value else "search_workflows"],
        schema,
        (
            first.name.encode(), first.low.encode(), first.high.encode(),
            binary.timestamp(before[0]), before[1].encode(),
            binary.text_array([one.name for one in others]), binary.text_array([one.low for one in others]),
            binary.text_array([one.high for one in others]),
            None if name is None else name.encode(), None if status is None else binary.int2(status),
            None if queue is None else queue.encode(), binary.int4(limit),
        ),
    )  # fmt: skip
