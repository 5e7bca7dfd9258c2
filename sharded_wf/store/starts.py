"""Starting workflows: the statements of one transaction, and what to make of IDs that exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.limits import INLINE_INPUT_MAX_BYTES
from sharded_wf.model.workflow import Start
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.store.attributes import save_attributes

_SQL = load("starts")
_SAVE_INPUTS = _SQL["save_inputs"]
_START_INLINE = _SQL["start_inline"]
_START_CHILDREN = _SQL["start_children"]
_START_LARGE = _SQL["start_large"]
_START_DELAYED = _SQL["start_delayed"]
_START_LIMITED = _SQL["start_limited"]
_START_STILLBORN = _SQL["start_stillborn"]
_READ_STARTS = _SQL["read_starts"]


class Existing(msgspec.Struct, frozen=True, gc=False):
    """What a slot holds under an ID that somebody wants to start."""

    id: str
    name: str
    created_at: Microseconds
    input: bytes
    parent_id: str | None


def start_statements(
    schema: str, starts: Sequence[Start], created_at: Microseconds
) -> tuple[list[Statement], list[int]]:
    """The statements that start these workflows in one slot, and at which positions rows must be counted: the sum of
    those counts is the number of workflows created. Workflows that differ only in ID, input and parent share one."""
    statements: list[Statement] = []
    counted: list[int] = []
    groups: dict[tuple[object, ...], list[Start]] = {}
    for start in sorted(starts, key=_by_id):
        key = (
            start.name, start.capability, start.queue, start.priority, start.parent_id is None,
            start.not_before is not None, start.deadline is not None, len(start.input) > INLINE_INPUT_MAX_BYTES,
            None if start.stillborn is None else (start.stillborn, start.parent_id),
        )  # fmt: skip
        group = groups.get(key)
        if group is None:
            groups[key] = [start]
        else:
            group.append(start)
    for group in groups.values():
        _add_group(statements, counted, schema, group, binary.timestamp(created_at))
    attributes = [(start.id, one) for start in starts if start.attributes for one in start.attributes]
    if attributes:
        statements.append(save_attributes(schema, attributes, created_at))
    return statements, counted


def _by_id(start: Start) -> str:
    return start.id


def _add_group(
    statements: list[Statement], counted: list[int], schema: str, group: list[Start], created_at: bytes
) -> None:
    first = group[0]
    ids = binary.text_array([start.id for start in group])
    alike = (first.name.encode(), first.capability.encode(), first.queue.encode(), binary.int2(first.priority))
    inputs = binary.json_array([start.input for start in group])
    delayed = first.not_before is not None
    inline = len(first.input) <= INLINE_INPUT_MAX_BYTES and first.stillborn is None
    if inline and not delayed and first.deadline is None:
        counted.append(len(statements))
        if first.parent_id is None:
            statements.append(Statement(_START_INLINE, schema, (ids, inputs, *alike, created_at)))
        else:
            statements.append(Statement(_START_CHILDREN, schema, (ids, inputs, *alike, _parents(group), created_at)))
        return
    statements.append(Statement(_SAVE_INPUTS, schema, (ids, inputs)))
    counted.append(len(statements))
    if first.stillborn is not None:
        parent = None if first.parent_id is None else first.parent_id.encode()
        statements.append(
            Statement(_START_STILLBORN, schema, (ids, _deadlines(group), *alike, parent, created_at, *first.stillborn))
        )
    elif delayed:
        due = binary.timestamp_array([start.not_before or 0 for start in group])
        statements.append(
            Statement(_START_DELAYED, schema, (ids, due, *alike, _parents(group), created_at, _deadlines(group)))
        )
    elif first.deadline is not None:
        statements.append(
            Statement(_START_LIMITED, schema, (ids, _deadlines(group), *alike, _parents(group), created_at))
        )
    else:
        statements.append(Statement(_START_LARGE, schema, (ids, *alike, _parents(group), created_at)))


def _parents(group: list[Start]) -> bytes:
    return binary.nullable_text_array([start.parent_id for start in group])


def _deadlines(group: list[Start]) -> bytes:
    return binary.nullable_timestamp_array([start.deadline for start in group])


def read_starts(schema: str, ids: Iterable[str]) -> Statement:
    """Ask what exists under these IDs."""
    return Statement(_READ_STARTS, schema, (binary.text_array(list(ids)),))


def existing_of(result: Result) -> list[Existing]:
    """The answer to ``read_starts``."""
    found = []
    for id_, name, created_at, input_, parent in result.rows():
        assert id_ is not None and name is not None and created_at is not None
        found.append(
            Existing(
                id_.decode(),
                name.decode(),
                binary.read_timestamp(created_at),
                input_ or b"null",
                None if parent is None else parent.decode(),
            )
        )
    return found
