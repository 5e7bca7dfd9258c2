"""Looking at workflows, for people and handles."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.model.status import Status
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("workflows")


class Description(msgspec.Struct, frozen=True):
    """One workflow as its row tells it. ``input``, ``output`` and ``error`` are JSON texts, and None in lists;
    ``executor`` is who runs it now."""

    id: str
    name: str
    queue: str
    priority: int
    status: Status
    claims: int
    deaths: int
    created_at: Microseconds
    started_at: Microseconds | None
    completed_at: Microseconds | None
    parent_id: str | None
    input: bytes | None = None
    output: bytes | None = None
    error: bytes | None = None
    executor: str | None = None
    paused: bool = False
    """Whether it was paused; false in lists."""


def read_workflow(schema: str, id_: str) -> Statement:
    """Ask for one workflow."""
    return Statement(_SQL["read_workflow"], schema, (id_.encode(),))


def list_workflows(
    schema: str, before: Microseconds, name: str | None, status: Status | None, queue: str | None, limit: int
) -> Statement:
    """Ask for workflows created before a moment, newest first; those that ended badly by the moment they did."""
    bad = status in (Status.FAILED, Status.CANCELLED, Status.QUARANTINED)
    return Statement(
        _SQL["list_failed" if bad else "list_workflows"],
        schema,
        (
            binary.timestamp(before),
            None if name is None else name.encode(),
            None if status is None else binary.int2(status),
            None if queue is None else queue.encode(),
            binary.int4(limit),
        ),
    )


def descriptions_of(result: Result) -> list[Description]:
    """The answer to ``read_workflow`` or ``list_workflows``."""
    return [_description(row) for row in result.rows()]


def _description(row: Sequence[bytes | None]) -> Description:
    (
        id_,
        name,
        queue,
        priority,
        status,
        claims,
        deaths,
        created,
        started,
        completed,
        parent,
        input_,
        output,
        error,
        by,
        paused,
    ) = row
    return Description(
        (id_ or b"").decode(), (name or b"").decode(), (queue or b"").decode(), binary.read_int(priority or b""),
        Status(binary.read_int(status or b"")), binary.read_int(claims or b""), binary.read_int(deaths or b""),
        binary.read_timestamp(created or b""),
        None if started is None else binary.read_timestamp(started),
        None if completed is None else binary.read_timestamp(completed),
        None if parent is None else parent.decode(), input_, output, error, None if by is None else by.decode(),
        paused == b"\x01",
    )  # fmt: skip
