"""Taking work from the queue, giving it back, and finding what a dead executor held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("claims")
_CLAIM = _SQL["claim"]
_READ_CLAIM = _SQL["read_claim"]
_RELEASE = _SQL["release_claims"]
_GIVE_BACK = _SQL["give_back"]
_READ_ORPHANS = _SQL["read_orphans"]
_TAKE_OVER = _SQL["take_over"]

RAN_BEFORE = "~"
"""Before a capability in the queue: this work was parked, given back or taken over."""
SUSPECT = "!"
"""Before a capability in the queue: this work ran when its executor died, more than once; it runs alone."""

START_OF_TIME: Microseconds = binary.POSTGRES_EPOCH_US


class Lane(NamedTuple):
    """What one claim can take from: a capability (with its mark, if it ran before), a queue and a priority."""

    capability: str
    queue: str
    priority: int


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """One workflow as its claim found it. ``claims`` counts this one: 1 means that it has no history."""

    id: str
    name: str
    input: bytes
    claims: int
    started_at: Microseconds
    parent_id: str | None
    enqueued_at: Microseconds
    deadline: Microseconds | None = None


class Orphan(msgspec.Struct, frozen=True, gc=False):
    """A workflow that a dead executor held (``id`` is None: its claim holds nothing any more)."""

    claim_id: bytes
    id: str | None
    deaths: int
    claims: int
    parent_id: str | None
    progressed: bool


def claim(
    schema: str, lane: Lane, mark: Microseconds, limit: int, claim_id: bytes, lease_id: bytes, now: Microseconds
) -> Statement:
    """Take up to ``limit`` workflows of a lane that were enqueued at ``mark`` or later."""
    return Statement(
        _CLAIM,
        schema,
        (
            lane.capability.encode(), lane.queue.encode(), binary.int2(lane.priority), binary.timestamp(mark),
            binary.int4(limit), claim_id, lease_id, binary.timestamp(now),
        ),
    )  # fmt: skip


def claimed_of(result: Result) -> list[Claimed]:
    """The answer to ``claim`` or ``read_claim``."""
    read_int2, read_timestamp = binary.read_int2, binary.read_timestamp
    rows = result.rows()
    # Of new workflows many have these values in common, and each is read once.
    numbers = {raw: read_int2(raw) for raw in {row[3] for row in rows}}
    moments = {raw: read_timestamp(raw) for at in (4, 6) for raw in {row[at] for row in rows}}
    return [
        Claimed(
            id_.decode(), name.decode(), input_ or b"null", numbers[claims], moments[started_at],
            None if parent is None else parent.decode(), moments[enqueued_at],
            None if deadline is None else read_timestamp(deadline),
        )
        for id_, name, input_, claims, started_at, parent, enqueued_at, deadline in rows
    ]  # fmt: skip


def read_claim(schema: str, claim_id: bytes) -> Statement:
    """Ask what a claim holds whose answer was lost."""
    return Statement(_READ_CLAIM, schema, (claim_id,))


def release_claims(schema: str, claim_ids: Sequence[bytes]) -> Statement:
    """Remove claims that hold nothing any more."""
    return Statement(_RELEASE, schema, (binary.uuid_array(claim_ids),))


def give_back(schema: str, ids: Sequence[str], claim_ids: Sequence[bytes], now: Microseconds) -> Statement:
    """Unfinished workflows go back to the queue."""
    return Statement(_GIVE_BACK, schema, (binary.text_array(ids), binary.uuid_array(claim_ids), binary.timestamp(now)))


def give_back_lease(schema: str, lease_id: bytes, now: Microseconds) -> Statement:
    """Everything that a lease's claims still hold goes back to the queue; the count is how many."""
    return Statement(_SQL["give_back_lease"], schema, (lease_id, binary.timestamp(now)))


def adopt(schema: str, claim_id: bytes, capability: str) -> Statement:
    """What this claim took is of our version now."""
    return Statement(_SQL["adopt"], schema, (claim_id, capability.encode()))


def continue_as_new(
    schema: str,
    ids: Sequence[str],
    claim_ids: Sequence[bytes],
    started_at: Sequence[Microseconds],
    capabilities: Sequence[str],
    queues: Sequence[str],
    now: Microseconds,
) -> Statement:
    """Workflows whose next run is ready, where and since when."""
    return Statement(
        _SQL["continue_as_new"],
        schema,
        (
            binary.text_array(ids), binary.uuid_array(claim_ids), binary.timestamp_array(started_at),
            binary.text_array(capabilities), binary.text_array(queues), binary.timestamp(now),
        ),
    )  # fmt: skip


def reroute(schema: str, ids: Sequence[str], claim_ids: Sequence[bytes], now: Microseconds) -> Statement:
    """Workflows whose function is not known here go to the lane of that function."""
    return Statement(
        _SQL["reroute"], schema, (binary.text_array(ids), binary.uuid_array(claim_ids), binary.timestamp(now))
    )


def read_orphans(schema: str) -> Statement:
    """Ask for a bounded number of claims whose lease is gone."""
    return Statement(_READ_ORPHANS, schema)


def orphans_of(result: Result) -> list[Orphan]:
    """The answer to ``read_orphans``."""
    return [
        Orphan(
            claim_id or b"",
            None if id_ is None else id_.decode(),
            0 if deaths is None else binary.read_int(deaths),
            0 if claims is None else binary.read_int(claims),
            None if parent is None else parent.decode(),
            progressed == b"\x01",
        )
        for claim_id, id_, deaths, claims, parent, progressed in result.rows()
    ]


def take_over(
    schema: str, ids: Sequence[str], claim_ids: Sequence[bytes], deaths: Sequence[int], now: Microseconds
) -> Statement:
    """Orphans go back to the queue, each with its count of deaths."""
    return Statement(
        _TAKE_OVER,
        schema,
        (binary.text_array(ids), binary.uuid_array(claim_ids), binary.int2_array(deaths), binary.timestamp(now)),
    )
