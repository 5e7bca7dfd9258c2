"""Events that workflows set, and who waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Event
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("events")
_SET = _SQL["set_events"]


class Wait(NamedTuple):
    """Which event of which workflow is awaited, and by whom."""

    workflow_id: str
    key: str
    waiter: str


NOBODY = Wait("", "", "")


class Found(msgspec.Struct, frozen=True, gc=False):
    """What a look for one event found. ``status`` None: there is no such workflow; ``value`` None: it is not set."""

    workflow_id: str
    key: str
    status: Status | None
    value: bytes | None


class Awaited(msgspec.Struct, frozen=True, gc=False):
    """An event that was set, and somebody who waits for it."""

    wait: Wait
    set_at: Microseconds


def set_events(schema: str, events: Sequence[tuple[str, Event]]) -> Statement:
    """Set events, each given with its workflow; of each only the last one that is given."""
    last = {(id_, event.key): event for id_, event in events}
    rows = sorted(last.items())  # primary-key order
    return Statement(
        _SET,
        schema,
        (
            binary.text_array([id_ for (id_, _), _ in rows]),
            binary.text_array([key for (_, key), _ in rows]),
            binary.timestamp_array([event.set_at for _, event in rows]),
            binary.json_array([event.value for _, event in rows]),
        ),
    )


def _keys(waits: Sequence[Wait]) -> tuple[bytes, bytes, bytes]:
    rows = sorted(waits)  # primary-key order
    return (
        binary.text_array([wait.workflow_id for wait in rows]),
        binary.text_array([wait.key for wait in rows]),
        binary.text_array([wait.waiter for wait in rows]),
    )


def await_events(schema: str, waits: Sequence[Wait]) -> Statement:
    """Ask to be told of these events. Commit it before ``look``."""
    return Statement(_SQL["await_events"], schema, _keys(waits))


def look(schema: str, pairs: Sequence[tuple[str, str]], waits: Sequence[Wait] = ()) -> list[Statement]:
    """Look for events, given as (workflow ID, key); ``found_of`` the last answer. Of ``waits``, those that are answered
    are forgotten."""
    statements = [Statement(_SQL["forget_answered"], schema, _keys(waits))] if waits else []
    ids = binary.text_array([id_ for id_, _ in pairs])
    return [
        *statements,
        Statement(_SQL["look_for_events"], schema, (ids, binary.text_array([key for _, key in pairs]))),
    ]


def found_of(result: Result) -> list[Found]:
    """The answer to ``look``."""
    return [
        Found(id_.decode(), key.decode(), None if status is None else Status(binary.read_int(status)), value)
        for id_, key, status, value in result.rows()
    ]


def read_waiters(schema: str, pairs: Sequence[tuple[str, str]]) -> Statement:
    """Ask who waits for these events, which were set."""
    ids = binary.text_array([id_ for id_, _ in pairs])
    return Statement(_SQL["read_event_waiters"], schema, (ids, binary.text_array([key for _, key in pairs])))


def awaited_of(result: Result) -> list[Awaited]:
    """The answer to ``read_waiters``."""
    return [
        Awaited(Wait(id_.decode(), key.decode(), waiter.decode()), binary.read_timestamp(set_at))
        for id_, key, waiter, set_at in result.rows()
    ]


def read_missed(schema: str, after: Wait, limit: int) -> Statement:
    """Look at up to ``limit`` waits after this one."""
    return Statement(
        _SQL["read_missed_waiters"],
        schema,
        (after.workflow_id.encode(), after.key.encode(), after.waiter.encode(), binary.int4(limit)),
    )


def missed_of(result: Result) -> list[tuple[Wait, bool]]:
    """The answer to ``read_missed``: every wait, and whether its waiter is to be told."""
    return [
        (Wait(id_.decode(), key.decode(), waiter.decode()), binary.read_boolean(missed))
        for id_, key, waiter, missed in result.rows()
    ]


def forget(schema: str, waits: Sequence[Wait]) -> Statement:
    """These have been told."""
    return Statement(_SQL["forget_event_waiters"], schema, _keys(waits))
