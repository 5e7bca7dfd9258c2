"""What workflows ask of other workflows: children to start, messages to deliver.

Everything asked for in one turn of the event loop goes out together, one transaction for each shard concerned. All of
it is idempotent, because its IDs and numbers come from the workflow's code: an executor that lost its lease and asks
late, or one that asks again after a crash, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psycopg

from sharded_wf.clock import SECOND_US
from sharded_wf.cluster.repair import note_new, revive_child, revive_closed
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import IdConflict, LimitExceeded, ShardedWfError, ShardUnavailable, WorkflowNotFound
from sharded_wf.executor import event_looks
from sharded_wf.executor.held import Hold
from sharded_wf.limits import SEND_DIRECT_SECONDS, STALE_CHILD_SECONDS
from sharded_wf.model.workflow import Message, Start
from sharded_wf.postgres.failures import moved_slot
from sharded_wf.serialization.outcomes import encode_outcome
from sharded_wf.store.events import Found
from sharded_wf.store.starts import Existing

logger = logging.getLogger("sharded_wf.courier")

T = TypeVar("T")


class Courier:
    """The one courier of an executor. Answers go to the runs, from plain callbacks of the loop."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._starts: list[tuple[Hold, Start]] = []
        self._revivals: list[tuple[Hold, str, tuple[str, ...]]] = []
        self._messages: list[tuple[Hold, int, Message]] = []
        self._looks: list[event_looks.Row] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def start_child(self, hold: Hold, start: Start) -> None:
        """Start a child; the run learns by ``child_started`` or ``child_refused``."""
        self._starts.append((hold, start))
        self._schedule()

    def revive_child(self, hold: Hold, child_id: str, closers: tuple[str, ...]) -> None:
        """Resume a child that its parent's end had cancelled; the run learns by ``child_revived``."""
        self._revivals.append((hold, child_id, closers))
        self._schedule()

    def send(self, hold: Hold, place: int, message: Message) -> None:
        """Deliver a message; the run learns by ``acknowledge_send``."""
        self._messages.append((hold, place, message))
        self._schedule()

    def look_for_event(self, hold: Hold, workflow_id: str, key: str) -> None:
        """Look for an event; the run learns by ``event_looked``."""
        self._looks.append((hold, workflow_id, key))
        self._schedule()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is on its way."""
        return not (self._tasks or self._starts or self._messages or self._looks or self._revivals)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._go)

    def _go(self) -> None:
        self._scheduled = False
        starts, self._starts = self._starts, []
        messages, self._messages = self._messages, []
        by_shard: dict[str, list[tuple[Hold, Start]]] = {}
        for hold, start in starts:
            by_shard.setdefault(self._shards.map.shard_of(start.id), []).append((hold, start))
        for rows in by_shard.values():
            self._spawn(self._start_all(rows))
        mail_by_shard: dict[str, list[tuple[Hold, int, Message]]] = {}
        for hold, place, message in messages:
            mail_by_shard.setdefault(self._shards.map.shard_of(message.receiver), []).append((hold, place, message))
        for mail in mail_by_shard.values():
            self._spawn(self._send_all(mail))
        revivals, self._revivals = self._revivals, []
        for revival in revivals:
            self._spawn(self._revive_closed(*revival))
        looks, self._looks = self._looks, []
        looks_by_shard: dict[str, list[event_looks.Row]] = {}
        for look in looks:
            looks_by_shard.setdefault(self._shards.map.shard_of(look[1]), []).append(look)
        for awaited in looks_by_shard.values():
            self._spawn(self._look_all(awaited))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_all(self, rows: list[tuple[Hold, Start]]) -> None:
        """Children of one shard. Waits for it as long as it takes: the parents can only wait as well."""
        existing: dict[str, Existing] = {}
        refused: dict[str, ShardedWfError] = {}
        try:
            existing = await self._shards.start([start for _, start in rows], wait_seconds=math.inf)
        except ShardUnavailable:
            return  # the executor is closing
        except ShardedWfError as error:
            if len(rows) > 1:  # one of them is bad: it must not fail the others
                for row in rows:
                    self._spawn(self._start_all([row]))
                return
            refused = {start.id: error for _, start in rows}
        for hold, start in rows:
            found = existing.get(start.id)
            if found is None:
                continue
            stale_before = hold.run.started_at - STALE_CHILD_SECONDS * SECOND_US
            if start.parent_id is not None and found.created_at < stale_before:
                refused[start.id] = IdConflict(
                    f"workflow {start.id!r} is left of an earlier workflow {start.parent_id!r}; remove it first "
                    "(sharded-wf retention run), or start this one under another ID"
                )
            elif found.name != start.name or found.parent_id != start.parent_id:
                refused[start.id] = IdConflict(
                    f"workflow {start.id!r} exists as {found.name!r}, started by "
                    f"{found.parent_id or 'a client'!r}; this child needs another ID"
                )
            elif start.parent_id is None and found.input != start.input:
                refused[start.id] = IdConflict(
                    f"workflow {start.id!r} exists with other arguments; this one needs another ID"
                )
        ready: list[tuple[Hold, Start]] = []
        noted: list[tuple[Hold, Start]] = []
        for row in rows:
            start = row[1]
            if not start.again or start.id in refused:
                ready.append(row)
            elif start.id in existing:
                self._spawn(self._revive(*row))
            else:
                noted.append(row)
        asyncio.get_running_loop().call_soon(_answer_starts, ready, refused)
        if noted:
            self._spawn(self._note_new(noted))

    async def _revive(self, hold: Hold, start: Start) -> None:
        """A child that a resumed workflow waits for once more."""
        since = await self._until_done(lambda: revive_child(self._shards, start, encode_outcome))
        asyncio.get_running_loop().call_soon(_answer_starts, [(hold, start)], {}, since)

    async def _note_new(self, rows: list[tuple[Hold, Start]]) -> None:
        """Children that resumed workflows have started since then."""
        await self._until_done(lambda: note_new(self._shards, [start for _, start in rows]))
        asyncio.get_running_loop().call_soon(_answer_starts, rows, {})

    async def _revive_closed(self, hold: Hold, child_id: str, closers: tuple[str, ...]) -> None:
        """A child that a resumed workflow goes on beside."""
        await self._until_done(lambda: revive_closed(self._shards, hold.run.id, child_id, closers))
        asyncio.get_running_loop().call_soon(_answer_revival, hold, child_id)

    async def _until_done(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        while True:
            try:
                return await work()
            except (ShardUnavailable, psycopg.Error) as error:
                logger.info("children of resumed workflows have to wait: %s", error)
                await asyncio.sleep(SEND_DIRECT_SECONDS)

    async def _send_all(self, mail: list[tuple[Hold, int, Message]]) -> None:
        """Messages to one shard. If it is away the messages are left in the outbox, and their senders go on."""
        unknown: set[str] = set()
        outbox = False
        refused: ShardedWfError | None = None
        try:
            if self._shards.answers(mail[0][2].receiver):
                unknown = await self._shards.deliver([m for _, _, m in mail], wait_seconds=SEND_DIRECT_SECONDS)
            else:
                outbox = True  # known to be away: no use in making each message wait to find that out
        except ShardUnavailable:
            outbox = True
        except ShardedWfError as error:
            if len(mail) > 1:  # one of them is bad: it must not fail the others
                for one in mail:
                    self._spawn(self._send_all([one]))
                return
            refused = error
        loop = asyncio.get_running_loop()
        for hold, place, message in mail:
            failure = _unknown_receiver(message) if message.receiver in unknown else refused
            loop.call_soon(_answer_send, hold, place, message if outbox else None, failure)

    async def _look_all(self, rows: list[event_looks.Row]) -> None:
        """Events of one shard."""
        by_slot: dict[int, list[event_looks.Row]] = {}
        for row in rows:
            by_slot.setdefault(self._shards.map.slot_of(row[1]), []).append(row)
        found: dict[tuple[str, str], Found] = {}
        refused: ShardedWfError | None = None
        try:
            found = await event_looks.look_on(self._shards.shard_of_slot(next(iter(by_slot))), by_slot)
        except ShardUnavailable:
            return  # the executor is closing
        except psycopg.Error as error:
            slot = moved_slot(error)
            await self._shards.find_slot(by_slot.popitem()[0] if slot is None else slot, math.inf, 1)
            self._looks += rows
            self._schedule()
            return
        except (ShardedWfError, ValueError) as error:
            if len(rows) > 1:  # one of them is bad: it must not fail the others
                for row in rows:
                    self._spawn(self._look_all([row]))
                return
            refused = error if isinstance(error, ShardedWfError) else LimitExceeded(str(error))
        loop = asyncio.get_running_loop()
        for hold, target, key in rows:
            loop.call_soon(event_looks.answer_look, hold, target, key, found.get((target, key)), refused)

    async def close(self) -> None:
        """Stop; nobody is told any more. Closing twice is fine."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _answer_starts(rows: list[tuple[Hold, Start]], refused: dict[str, ShardedWfError], since: int = 0) -> None:
    for hold, start in rows:
        if hold.leaving:
            continue
        error = refused.get(start.id)
        if error is None:
            hold.run.child_started(start.id, since)
        else:
            hold.run.child_refused(start.id, error)


def _answer_revival(hold: Hold, child_id: str) -> None:
    if not hold.leaving:
        hold.run.child_revived(child_id)


def _unknown_receiver(message: Message) -> WorkflowNotFound:
    return WorkflowNotFound(f"no workflow {message.receiver!r} to send {message.topic!r} to; start it first")


def _answer_send(hold: Hold, place: int, outbox: Message | None, error: ShardedWfError | None) -> None:
    if not hold.leaving:
        hold.run.acknowledge_send(place, outbox=outbox, error=error)
