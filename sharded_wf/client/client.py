"""The client: one object for a process that starts workflows and waits for them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

import psycopg

from sharded_wf.client import repair, requests, search
from sharded_wf.client.handle import Handle
from sharded_wf.client.in_transaction import LEFT, InTransaction, drive_async
from sharded_wf.client.progress import MapProgress, map_progress
from sharded_wf.client.repair import Failed, Repaired
from sharded_wf.client.results import Results
from sharded_wf.client.validation import (
    check_conflict_option,
    check_same,
    check_start,
    deadline_of,
    not_before_of,
)
from sharded_wf.clock import SYSTEM_CLOCK, Clock, Microseconds
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import WorkflowNotFound
from sharded_wf.limits import READ_DEADLINE_SECONDS, START_MANY_CHUNK_ROWS
from sharded_wf.model.attributes import Value, Where, attributes_of
from sharded_wf.model.checks import check_id, check_queue
from sharded_wf.model.history import EMPTY_HISTORY, History
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Message, Outcome, Start
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.routing import new_id, slot_schema
from sharded_wf.serialization import codec_for
from sharded_wf.serialization.histories import StoredHistory
from sharded_wf.store import attributes, steps, workflows
from sharded_wf.store.starts import Existing
from sharded_wf.store.workflows import Description
from sharded_wf.workflow.bound import Bound, check_bound

T = TypeVar("T")
OnConflict = Literal["error", "existing"]
KEY_PREFIX = "$key:"
"""Before the idempotency keys of messages from outside, which stand where a sending workflow's ID would stand."""


class Client:
    """Starts workflows of a cluster and waits for them. Made by ``Client.connect`` or ``app.connect``."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._clock = shards.clock
        self._results = Results(shards)
        self._last_sent_at: Microseconds = 0
        self.in_transaction = InTransaction(shards, shards.clock)

    @classmethod
    @asynccontextmanager
    async def connect(cls, config: ClusterConfig, clock: Clock = SYSTEM_CLOCK) -> AsyncGenerator[Client]:
        """Connect to a cluster for as long as the ``async with`` block runs. Raises ``ConfigError`` and its kinds,
        ``ShardUnavailable`` if no shard answers."""
        client = cls(await ShardSet.open(config, clock))
        client._shards.on_change.append(client._results.follow_moves)
        try:
            yield client
        finally:
            await client.close()

    async def close(self) -> None:
        """Close every connection. Closing twice is fine."""
        await self._results.close()
        await self._shards.close()

    # --- starting -----------------------------------------------------------------------------------------------

    async def start(
        self,
        bound: Bound[T],
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - of the workflow, not of this call
        attributes: Mapping[str, Value] | None = None,
        on_conflict: OnConflict = "error",
        message: tuple[str, object] | None = None,
        idempotency_key: str | None = None,
        wait_seconds: float | None = None,
    ) -> Handle[T]:
        """Start a workflow; when this returns, it is durable.

        ``bound``: what to run, made by ``function.bind(...)``. ``id``: yours, or one is made; the same ID again returns
        the existing workflow (``handle.created`` is False). ``queue``: None is the workflow's own. ``priority``: lower
        numbers first, within a queue. ``delay``: not before so much time (seconds or ``timedelta``) has passed.
        ``timeout``: how long it may take, from now or from the end of the delay on; None is the workflow's own.
        ``attributes``: what it can be searched by from the beginning.
        ``on_conflict``: "error" raises ``IdConflict`` if the ID exists with another name or other arguments, "existing"
        returns that workflow. ``message``: a topic and a value, sent to the workflow in the same transaction; one that
        exists gets just the message, whatever its arguments (``IdConflict`` if its name is another: then it gets
        nothing), once for each ``idempotency_key``. ``wait_seconds``: how long to wait for a shard that doesn't answer;
        None is 10 s, less what it has been away already: an ID of yours on a shard that is known to be away is refused
        at once. (IDs that are made here avoid such shards.)

        Raises ``IdConflict``, ``LimitExceeded``, ``ShardUnavailable`` (then it is unknown whether it was started:
        starting it again with the same ID makes sure).
        """
        check_conflict_option(on_conflict)
        id = self._shards.id_maker()() if id is None else id
        start = self.prepare_start(bound, id, queue, priority, delay, attributes, timeout)
        begun = self._clock.monotonic()
        if message is None:
            existing = await self._shards.start((start,), wait_seconds=wait_seconds)
        else:
            first = self.message_of(start.id, *message, idempotency_key)
            existing = await self._shards.start_with_message(start, first, wait_seconds=wait_seconds)
        found = existing.get(start.id)
        if found is not None and (message is not None or on_conflict == "error"):
            check_same(start, found, name_only=message is not None)
        return Handle(self, start.id, bound.result.decode, found is None, begun)

    async def start_in(
        self,
        connection: psycopg.AsyncConnection[Any],
        bound: Bound[T],
        *,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - of the workflow
        attributes: Mapping[str, Value] | None = None,
        on_conflict: OnConflict = "error",
    ) -> Handle[T]:
        """Start a workflow in the transaction that ``connection`` is in: it exists when that commits, and never if it
        rolls back. The connection leads to any shard of the cluster, or to a database with an outbox (``sharded-wf
        outbox init``). Options as ``start``.

        ``handle.created`` is None where only the executors will know; a conflict of IDs is then found by them, and kept
        in the table ``request_refused`` beside the outbox. Raises as ``start``, but never ``ShardUnavailable``;
        ``TransactionRefused`` for a connection that is in no transaction or leads elsewhere; ``psycopg.Error``.
        """
        check_conflict_option(on_conflict)
        start = self.prepare_start(bound, id, queue, priority, delay, attributes, timeout)
        asking = self.in_transaction.start(start, same=on_conflict == "error")
        return self.handle_of(bound, start, await drive_async(connection, asking, "start_in"), on_conflict)

    async def send_in(
        self,
        connection: psycopg.AsyncConnection[Any],
        id: str,
        topic: str,
        value: object,
        *,
        idempotency_key: str | None = None,
    ) -> None:
        """Send a message in the transaction that ``connection`` is in; see ``start_in``. Raises ``WorkflowNotFound``
        where the workflow would live in that database; elsewhere executors find that out, and keep it in
        ``request_refused``."""
        message = self.message_of(id, topic, value, idempotency_key)
        await drive_async(connection, self.in_transaction.send(message), "send_in")

    def prepare_start(
        self,
        bound: Bound[Any],
        id_: str | None,
        queue: str | None,
        priority: int,
        delay: timedelta | float | None,
        attributes: Mapping[str, Value] | None,
        timeout: timedelta | float | None = None,
    ) -> Start:
        """A start as the caller decided it, checked; without an ID it gets one."""
        check_bound(bound)
        not_before = not_before_of(delay, self._clock)
        return check_start(Start(
            new_id(self._clock) if id_ is None else id_, bound.name, bound.capability,
            bound.queue if queue is None else queue, priority, bound.input, not_before,
            attributes=attributes_of(attributes) if attributes else (),
            deadline=deadline_of(bound, timeout, not_before, self._clock),
        ))  # fmt: skip

    def handle_of(
        self, bound: Bound[T], start: Start, found: Existing | str | None, on_conflict: OnConflict
    ) -> Handle[T]:
        """The handle on what ``in_transaction.start`` did."""
        if isinstance(found, Existing) and on_conflict == "error":
            check_same(start, found)
        created = None if found == LEFT else found is None
        return Handle(self, start.id, bound.result.decode, created, None)

    async def start_many(
        self,
        bound: Iterable[Bound[T] | tuple[str, Bound[T]]],
        *,
        queue: str | None = None,
        priority: int = 0,
        attributes: Mapping[str, Value] | None = None,
        on_conflict: OnConflict = "error",
        wait_seconds: float | None = None,
    ) -> list[Handle[T]]:
        """Start many workflows, given as ``function.bind(...)`` or as pairs ``(id, function.bind(...))``: grouped by
        slot, one round trip a shard for each 10,000. Options and errors as ``start``; on an error those before it, and
        some after it, are started, and starting all of them again with the same IDs is safe."""
        check_conflict_option(on_conflict)
        handles: list[Handle[T]] = []
        iterator = iter(bound)
        while chunk := list(itertools.islice(iterator, START_MANY_CHUNK_ROWS)):
            starts: dict[str, Start] = {}
            pairs: list[tuple[Bound[T], str, bool]] = []
            repeated: list[Start] = []
            new_id = self._shards.id_maker()
            begun = self._clock.monotonic()
            for item in chunk:
                id_, one = item if isinstance(item, tuple) and len(item) == 2 else (new_id(), item)
                start = self.prepare_start(one, id_, queue, priority, None, attributes)
                first = starts.setdefault(start.id, start)
                if first is not start:
                    repeated.append(start)
                pairs.append((one, start.id, first is start))
            existing = await self._shards.start(starts.values(), wait_seconds=wait_seconds)
            if on_conflict == "error":
                for id_, found in existing.items():
                    check_same(starts[id_], found)
                for again in repeated:
                    first = starts[again.id]
                    check_same(again, Existing(first.id, first.name, 0, first.input, None))
            for one, id_, is_first in pairs:
                handles.append(Handle(self, id_, one.result.decode, is_first and id_ not in existing, begun))
        return handles

    # --- handles ------------------------------------------------------------------------------------------------

    @overload
    def get_handle(self, id: str) -> Handle[Any]: ...
    @overload
    def get_handle(self, id: str, result_type: type[T]) -> Handle[T]: ...

    def get_handle(self, id: str, result_type: Any = Any) -> Handle[Any]:
        """A handle on a workflow that somebody started; ``result_type`` is what its result is converted to. Asks
        nobody: whether the workflow exists shows at the first use."""
        check_id(id)
        return Handle(self, id, codec_for(result_type).decode, None, None)

    def wait_for_outcome(self, id_: str, started_at: float | None = None) -> asyncio.Future[Outcome]:
        """The workflow's outcome, undecoded, when it has one. ``Handle.result`` is what users want."""
        slot = self._shards.map.slot_of(id_)
        return self._results.at(slot).wait(slot, id_, started_at)

    def wait_for_event(self, id_: str, key: str) -> asyncio.Future[bytes]:
        """The latest value of an event, as JSON text, when there is one. ``Handle.event`` is what users want."""
        slot = self._shards.map.slot_of(id_)
        return self._results.at(slot).wait_for_event(slot, id_, key)

    # --- asking of workflows ------------------------------------------------------------------------------------

    async def send(self, id: str, topic: str, value: object, *, idempotency_key: str | None = None) -> None:
        """Send a message to a workflow; when this returns, it is durable. Sending again with the same
        ``idempotency_key`` changes nothing. Raises ``WorkflowNotFound``, ``UnstorableValue``, ``ShardUnavailable``."""
        await self._deliver(self.message_of(id, topic, value, idempotency_key))

    def message_of(self, id: str, topic: str, value: object, idempotency_key: str | None) -> Message:
        """A message from outside to a workflow, checked. Its sender is its idempotency key, apart from every ID."""
        check_id(id)
        check_queue(topic, "topic")
        if idempotency_key is not None:
            check_id(idempotency_key, "idempotency key")
        sender = uuid.uuid4().hex if idempotency_key is None else KEY_PREFIX + idempotency_key
        # Never the same moment twice: messages of one client that wait in a mailbox are taken in this order.
        self._last_sent_at = max(self._clock.now_us(), self._last_sent_at + 1)
        return Message(id, topic, sender, 1, codec_for(type(value)).encode(value), self._last_sent_at)

    async def cancel(self, id: str, *, cleanup: timedelta | float | None = None) -> None:
        """As ``Handle.cancel``."""
        await requests.cancel(self._shards, id, cleanup)

    async def terminate(self, id: str) -> None:
        """As ``Handle.terminate``."""
        await requests.terminate(self._shards, id)

    async def pause(self, id: str) -> None:
        """As ``Handle.pause``."""
        await requests.pause(self._shards, id)

    async def unpause(self, id: str) -> None:
        """As ``Handle.unpause``."""
        await requests.unpause(self._shards, id)

    # --- repair -------------------------------------------------------------------------------------------------

    async def resume(self, id: str) -> bool:
        """A workflow that failed, was cancelled or quarantined goes on where it was: what it finished is kept, what
        it failed of runs again. False: it is under way or succeeded. Children that it failed of, or that its end
        cancelled, go on with it. Raises ``ResumeRefused``, ``WorkflowNotFound``, ``ShardUnavailable`` (ask again)."""
        return await repair.resume(self._shards, id)

    async def resume_many(
        self, wanted: Failed, *, dry_run: bool = False, progress: Callable[[Repaired], None] | None = None
    ) -> Repaired:
        """Resume all that ended badly, until now, and fits ``wanted``; with ``dry_run`` only count. What can't be
        resumed is skipped. ``progress`` gets the counts so far. Raises ``ShardUnavailable`` after the others."""
        return await repair.resume_many(self._shards, wanted, dry_run=dry_run, report=progress)

    async def fork(self, id: str, *, from_step: int | str, new_id: str | None = None) -> Handle[Any]:
        """Start a new workflow with the arguments of another, in whatever state that is, and with its results before
        ``from_step``: the number of a step in its history, or the name of a step or child (its first call). That step
        and all that follows run. ``new_id``: yours, or one is made; asking again with the same ID is safe.

        Raises ``WorkflowNotFound``, ``StepNotFound``, ``IdConflict`` if ``new_id`` is another workflow,
        ``ShardUnavailable``."""
        made, created = await repair.fork(self._shards, id, from_step, new_id)
        return Handle(self, made, codec_for(Any).decode, created, None)

    async def fork_many(
        self,
        wanted: Failed,
        *,
        from_step: int | str,
        suffix: str = "-fork",
        dry_run: bool = False,
        progress: Callable[[Repaired], None] | None = None,
    ) -> Repaired:
        """Fork all that ended badly, until now, and fits ``wanted``; the new IDs are the old ones with ``suffix``, so
        asking again forks nothing twice. What has no such step is skipped. As ``resume_many`` for the rest."""
        return await repair.fork_many(self._shards, wanted, from_step, suffix, dry_run=dry_run, report=progress)

    async def _deliver(self, message: Message) -> None:
        if message.receiver in await self._shards.deliver([message]):
            raise WorkflowNotFound(f"no workflow has the ID {message.receiver!r}")

    # --- looking ------------------------------------------------------------------------------------------------

    def locate(self, id: str) -> tuple[int, str]:
        """Where a workflow with this ID lies, or would: its slot, and the name of the shard. Asks nobody."""
        check_id(id)
        return (slot := self._shards.map.slot_of(id)), self._shards.shard_of_slot(slot).name

    async def describe(self, id: str) -> Description | None:
        """All that is known of a workflow now, or None if there is none with this ID."""
        check_id(id)
        answers = await self._ask_about(id, lambda slot: [workflows.read_workflow(slot, id)])
        found = workflows.descriptions_of(answers[0])
        return found[0] if found else None

    async def history(self, id: str) -> History:
        """What is recorded of a workflow: its steps, timers and messages in order, and its failed attempts."""
        check_id(id)
        answers = await self._ask_about(id, lambda slot: steps.read_histories(slot, [id]))
        return steps.histories_of(answers[0], answers[1]).get(id, EMPTY_HISTORY)

    async def map_progress(self, id: str) -> MapProgress:
        """How far a map (``map_workflow``) has come: reads a few histories, and costs the map nothing. Raises
        ``WorkflowNotFound`` if the ID is no map's."""
        return await map_progress(self, id)

    async def _ask_about(self, id_: str, statements: Callable[[str], Sequence[Statement]]) -> list[Result]:
        """Ask the slot of a workflow (``statements`` get its schema), wherever that is meanwhile."""
        asked = self._shards.transact(id_, lambda slot: statements(slot_schema(slot)), deadline=READ_DEADLINE_SECONDS)
        return await asked

    async def export(self, id: str) -> StoredHistory:
        """A workflow with all that is recorded of it, to be written with ``encode_history`` and replayed in tests.
        Raises ``WorkflowNotFound``."""
        found = await self.describe(id)
        if found is None:
            raise WorkflowNotFound(f"no workflow has the ID {id!r}")
        history = await self.history(id)
        return StoredHistory(
            found.id, found.name, found.status, found.input or b"null", found.created_at, found.started_at, history
        )

    async def attributes(self, id: str) -> dict[str, Value]:
        """The attributes of a workflow now, by name; none if there is no such workflow."""
        check_id(id)
        answers = await self._ask_about(id, lambda slot: [attributes.read_attributes(slot, id)])
        return attributes.values_of(answers[0])

    async def list(
        self,
        *,
        where: Where | None = None,
        name: str | None = None,
        status: Status | None = None,
        queue: str | None = None,
        limit: int = 100,
        before: Microseconds | Description | None = None,
        away: dict[str, str] | None = None,
    ) -> list[Description]:
        """The newest workflows of all shards (without ``where``, of those that failed, were cancelled or quarantined:
        the last to end), at most ``limit``. ``where``: only those whose attributes fit, as ``attr("stage") == "paid"``.
        ``before`` pages on: a moment (microseconds since the epoch), or, with ``where``, the last one of the page
        before. ``away``: gets the names of shards that don't answer, and why. Else raises ``ShardUnavailable``."""
        return await search.list_workflows(self._shards, where, name, status, queue, limit, before, away)
