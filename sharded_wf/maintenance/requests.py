"""Carrying what users' own transactions ask of workflows elsewhere: from an outbox to the shards where they live.

Carrying twice is harmless (a start is known by its ID, a message by its sender and number), so nobody needs to lock
anything, and a row is deleted only when what it asks for is committed. Rows that concern one workflow are carried in
their order, since whoever reads a row has read those before it that are left, and carries them first. A shard that is
away keeps only its own rows waiting.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg

from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import IdConflict, ShardedWfError, ShardUnavailable, WorkflowNotFound
from sharded_wf.limits import OUTBOX_BATCH_MAX_ROWS, OUTBOX_POLL_SECONDS, SEND_DIRECT_SECONDS
from sharded_wf.postgres.failures import is_no_shard
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.routing import CONTROL_SCHEMA
from sharded_wf.store import requests
from sharded_wf.store.requests import Request

logger = logging.getLogger("sharded_wf.outbox")


class Carrier:
    """Carries from one outbox. ``poll``: look by itself now and then; else only when ``look`` is called."""

    def __init__(self, link: Link, shards: ShardSet, *, schema: str = CONTROL_SCHEMA, poll: bool = False) -> None:
        self._link = link
        self._schema = schema
        self._shards = shards
        self._poll = poll
        self._wanted = asyncio.Event()
        self._after = 0

    def look(self) -> None:
        """There is something."""
        self._wanted.set()

    async def run(self) -> None:
        """Carry for ever, until cancelled."""
        said = ""
        while True:
            try:
                await self.carry()
                said = ""
            except (ConnectionLost, psycopg.Error) as error:
                if is_no_shard(error):
                    await self._shards.reload()  # if it has left the cluster, that ends this
                elif str(error) != said:
                    logger.info("an outbox is put off: %s", error)
                said = str(error)
                await self._link.pause()
            if self._poll:
                await asyncio.sleep(OUTBOX_POLL_SECONDS)
            else:
                await self._wanted.wait()
                self._wanted.clear()

    async def carry(self) -> None:
        """Carry all that can be carried now."""
        while True:
            answer = await self._link.fetch(requests.read_requests(self._schema, self._after, OUTBOX_BATCH_MAX_ROWS))
            found = requests.requests_of(answer)
            by_shard: dict[str, list[Request]] = {}
            for request in found:
                by_shard.setdefault(self._shards.map.shard_of(request.workflow_id), []).append(request)
            done = [row for rows in await asyncio.gather(*map(self._to_shard, by_shard.values())) for row in rows]
            refused = [(id_, error) for id_, error in done if error]
            statements = []
            if carried := [id_ for id_, error in done if not error]:
                statements.append(requests.clear_requests(self._schema, carried))
            if refused:
                statements.append(requests.refuse_requests(self._schema, refused))
                for id_, error in refused:
                    logger.error("request %d of an outbox can't be carried out: %s", id_, error)
            if statements:
                await self._link.transact(statements)
            if len(found) < OUTBOX_BATCH_MAX_ROWS:
                self._after = 0
                return
            self._after = found[-1].id

    async def _to_shard(self, rows: list[Request]) -> list[tuple[int, str]]:
        """Carry to one shard; which rows are done with, and why not, if they can't be."""
        if not self._shards.answers(rows[0].workflow_id):
            return []
        done: list[tuple[int, str]] = []
        # In their order: a message to a workflow comes after its start. What is alike and adjacent goes together.
        at = 0
        while at < len(rows):
            end = at + 1
            ids = {rows[at].workflow_id}
            while end < len(rows) and (rows[end].start is None) == (rows[at].start is None):
                if rows[end].start is not None and rows[end].workflow_id in ids:
                    break
                ids.add(rows[end].workflow_id)
                end += 1
            try:
                done += await self._alike(rows[at:end])
            except ShardUnavailable:
                return done
            at = end
        return done

    async def _alike(self, rows: list[Request]) -> list[tuple[int, str]]:
        try:
            if rows[0].start is not None:
                return await self._start(rows)
            return await self._deliver(rows)
        except ShardUnavailable:
            raise
        except ShardedWfError as error:
            if len(rows) == 1:
                return [(rows[0].id, f"{type(error).__name__}: {error}")]
            # One of them is bad: it must not refuse the others.
            return [row for one in rows for row in await self._alike([one])]

    async def _start(self, rows: list[Request]) -> list[tuple[int, str]]:
        starts = {row.start.id: row.start for row in rows if row.start is not None}
        existing = await self._shards.start(starts.values(), wait_seconds=SEND_DIRECT_SECONDS)
        done: list[tuple[int, str]] = []
        for row in rows:
            start = row.start
            assert start is not None
            found = existing.get(start.id)
            error = ""
            if found is not None and (found.name != start.name or (row.same and found.input != start.input)):
                error = f"{IdConflict.__name__}: workflow {start.id!r} exists as {found.name!r} with its own arguments"
            done.append((row.id, error))
        return done

    async def _deliver(self, rows: list[Request]) -> list[tuple[int, str]]:
        messages = [row.message for row in rows if row.message is not None]
        unknown = await self._shards.deliver(messages, wait_seconds=SEND_DIRECT_SECONDS)
        return [
            (
                row.id,
                f"{WorkflowNotFound.__name__}: no workflow {row.workflow_id!r}" if row.workflow_id in unknown else "",
            )
            for row in rows
        ]

    def close(self) -> None:
        """End the connection. Closing twice is fine."""
        self._link.close()
