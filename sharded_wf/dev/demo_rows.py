"""What the demo reads from the shards: how far the work is, what a dead executor held, and what came of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.model.status import Status
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("demo")


class WorkflowRow(msgspec.Struct, frozen=True):
    """One workflow at the end. ``steps`` and ``children``: how many results it recorded of each."""

    id: str
    name: str
    status: Status
    created_at: Microseconds
    started_at: Microseconds | None
    completed_at: Microseconds | None
    steps: int
    children: int


async def count_done(shards: ShardSet, name: str) -> dict[str, int]:
    """How many workflows of this name have ended, by shard."""
    answers = await _ask(shards, "count_done", (name.encode(),))
    return {shard: sum(binary.read_int(result.value() or b"") for result in found) for shard, found in answers.items()}


async def find_leases(shards: ShardSet, executor: str) -> dict[str, bytes]:
    """The leases of one executor process (``host:pid``), by shard."""
    statement = Statement(_SQL["find_lease"], "", (executor.encode(),))
    found = await asyncio.gather(*(shard.reader.fetch(statement) for shard in shards.shards.values()))
    return {name: lease for name, answer in zip(shards.shards, found, strict=True) if (lease := answer.value())}


async def held_under(shards: ShardSet, leases: dict[str, bytes]) -> set[str]:
    """The IDs of the workflows that these leases hold."""
    answers = await _ask(shards, "held_under", leases)
    return {(row[0] or b"").decode() for found in answers.values() for result in found for row in result.rows()}


async def count_claims(shards: ShardSet, leases: dict[str, bytes]) -> int:
    """How many claims are left of these leases."""
    answers = await _ask(shards, "count_claims", leases)
    return sum(binary.read_int(result.value() or b"") for found in answers.values() for result in found)


async def read_results(shards: ShardSet) -> dict[str, list[WorkflowRow]]:
    """Every workflow there is, by shard."""
    answers = await _ask(shards, "read_results", ())
    return {shard: [row for result in found for row in _rows(result)] for shard, found in answers.items()}


def _rows(result: Result) -> Iterator[WorkflowRow]:
    for id_, name, status, created, started, completed, steps, children in result.rows():
        yield WorkflowRow(
            (id_ or b"").decode(),
            (name or b"").decode(),
            Status(binary.read_int(status or b"")),
            binary.read_timestamp(created or b""),
            None if started is None else binary.read_timestamp(started),
            None if completed is None else binary.read_timestamp(completed),
            binary.read_int(steps or b""),
            binary.read_int(children or b""),
        )


async def _ask(shards: ShardSet, query: str, params: Sequence[bytes] | dict[str, bytes]) -> dict[str, list[Result]]:
    """Ask every slot of every shard; a dict gives each shard its own parameter, and leaves out the shards without."""

    async def ask(shard: Shard) -> list[Result]:
        given = (params[shard.name],) if isinstance(params, dict) else params
        return await shard.reader.transact([Statement(_SQL[query], schema, given) for schema in shard.schemas.values()])

    asked = [shard for shard in shards.shards.values() if not isinstance(params, dict) or shard.name in params]
    found = await asyncio.gather(*map(ask, asked))
    return {shard.name: answers for shard, answers in zip(asked, found, strict=True)}
