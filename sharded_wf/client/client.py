"""The client: one object for a process that starts workflows and waits for them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

from sharded_wf.client.handle import Handle
from sharded_wf.client.results import ShardResults
from sharded_wf.client.validation import check_id, check_queue, check_start
from sharded_wf.clock import SECOND_US, SYSTEM_CLOCK, Clock, Microseconds, seconds_of
from sharded_wf.cluster.shard import Shard
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import IdConflict, LimitExceeded, ShardUnavailable, WorkflowNotFound
from sharded_wf.limits import READ_DEADLINE_SECONDS, START_MANY_CHUNK_ROWS, TIMER_MAX_SECONDS, WRITE_DEADLINE_SECONDS
from sharded_wf.model.history import EMPTY_HISTORY, History
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, DEFAULT_QUEUE, Message, Outcome, Start
from sharded_wf.postgres.session import ConnectionLost, Result, Statement
from sharded_wf.serialization import codec_for, encode_error, encode_outcome
from sharded_wf.store import outcomes, steps, workflows
from sharded_wf.store.starts import Existing
from sharded_wf.store.workflows import Description
from sharded_wf.workflow.definitions import Bound

T = TypeVar("T")
OnConflict = Literal["error", "existing"]


class Client:
    """Starts workflows of a cluster and waits for them. Made by ``Client.connect`` or ``app.connect``."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._clock = shards.clock
        self._results: dict[str, ShardResults] = {}

    @classmethod
    @asynccontextmanager
    async def connect(cls, config: ClusterConfig, clock: Clock = SYSTEM_CLOCK) -> AsyncGenerator[Client]:
        """Connect to a cluster for as long as the ``async with`` block runs. Raises ``ConfigError`` and its kinds,
        ``ShardUnavailable`` if no shard answers."""
        client = cls(await ShardSet.open(config, clock))
        try:
            yield client
        finally:
            await client.close()

    async def close(self) -> None:
        """Close every connection. Closing twice is fine."""
        await asyncio.gather(*(results.close() for results in self._results.values()))
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
        on_conflict: OnConflict = "error",
        wait_seconds: float = WRITE_DEADLINE_SECONDS,
    ) -> Handle[T]:
        """Start a workflow; when this returns, it is durable.

        ``bound``: what to run, made by ``function.bind(...)``. ``id``: yours, or one is made; the same ID again returns
        the existing workflow (``handle.created`` is False). ``queue``: None is the workflow's own. ``priority``: lower
        numbers first, within a queue. ``delay``: not before so much time (seconds or ``timedelta``) has passed.
        ``timeout``: how long it may take, from now or from the end of the delay on; None is the workflow's own.
        ``on_conflict``: "error" raises ``IdConflict`` if the ID exists with another name or other arguments, "existing"
        returns that workflow. ``wait_seconds``: how long to wait for a shard that does not answer.

        Raises ``IdConflict``, ``LimitExceeded``, ``ShardUnavailable`` (then it is unknown whether it was started:
        starting it again with the same ID makes sure).
        """
        start = self._start_of(bound, self._shards.id_maker()() if id is None else id, queue, priority, delay, timeout)
        check_start(start)
        begun = self._clock.monotonic()
        existing = await self._shards.start((start,), wait_seconds=wait_seconds)
        found = existing.get(start.id)
        if found is not None and on_conflict == "error":
            _check_same(start, found)
        return Handle(self, start.id, bound.result.decode, found is None, begun)

    async def start_many(
        self,
        bound: Iterable[Bound[T] | tuple[str, Bound[T]]],
        *,
        queue: str | None = None,
        priority: int = 0,
        on_conflict: OnConflict = "error",
        wait_seconds: float = WRITE_DEADLINE_SECONDS,
    ) -> list[Handle[T]]:
        """Start many workflows, given as ``function.bind(...)`` or as pairs ``(id, function.bind(...))``: grouped by
        slot, one round trip a shard for each 10,000. Options and errors as ``start``; on an error those before it, and
        some after it, are started, and starting all of them again with the same IDs is safe."""
        handles: list[Handle[T]] = []
        iterator = iter(bound)
        while chunk := list(itertools.islice(iterator, START_MANY_CHUNK_ROWS)):
            starts: dict[str, Start] = {}
            pairs: list[tuple[str, Bound[T]]] = []
            repeated: list[Start] = []
            new_id = self._shards.id_maker()
            begun = self._clock.monotonic()
            for item in chunk:
                id_, one = item if isinstance(item, tuple) else (new_id(), item)
                start = self._start_of(one, id_, queue, priority, None)
                check_start(start)
                if start.id in starts:
                    repeated.append(start)
                else:
                    starts[start.id] = start
                pairs.append((start.id, one))
            existing = await self._shards.start(starts.values(), wait_seconds=wait_seconds)
            if on_conflict == "error":
                for id_, found in existing.items():
                    _check_same(starts[id_], found)
                for again in repeated:
                    first = starts[again.id]
                    _check_same(again, Existing(first.id, first.name, 0, first.input, None))
            handles += [Handle(self, id_, one.result.decode, id_ not in existing, begun) for id_, one in pairs]
        return handles

    def _start_of(
        self,
        bound: Bound[Any],
        id_: str,
        queue: str | None,
        priority: int,
        delay: timedelta | float | None,
        timeout: timedelta | float | None = None,
    ) -> Start:
        not_before: Microseconds | None = None
        if delay is not None and (seconds := seconds_of(delay)) > 0:
            not_before = self._clock.now_us() + int(seconds * SECOND_US)
        limit = bound.timeout_seconds if timeout is None else seconds_of(timeout)
        deadline: Microseconds | None = None
        if limit is not None:
            if not limit > 0:
                raise LimitExceeded(f"timeout={timeout!r}: more than 0 seconds, or None")
            deadline = (not_before or self._clock.now_us()) + int(min(limit, TIMER_MAX_SECONDS) * SECOND_US)
        return Start(
            id_, bound.name, bound.capability,
            queue or bound.queue or DEFAULT_QUEUE, priority, bound.input, not_before, None, deadline,
        )  # fmt: skip

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
        slot, results = self._results_of(id_)
        return results.wait(slot, id_, started_at)

    def wait_for_event(self, id_: str, key: str) -> asyncio.Future[bytes]:
        """The latest value of an event, as JSON text, when there is one. ``Handle.event`` is what users want."""
        slot, results = self._results_of(id_)
        return results.wait_for_event(slot, id_, key)

    def _results_of(self, id_: str) -> tuple[int, ShardResults]:
        slot = self._shards.map.slot_of(id_)
        shard = self._shards.shard_of_slot(slot)
        results = self._results.get(shard.name)
        if results is None:
            results = self._results[shard.name] = ShardResults(shard, self._clock)
        return slot, results

    # --- asking of workflows ------------------------------------------------------------------------------------

    async def send(self, id: str, topic: str, value: object, *, idempotency_key: str | None = None) -> None:
        """Send a message to a workflow; when this returns, it is durable. Sending again with the same
        ``idempotency_key`` changes nothing. Raises ``WorkflowNotFound``, ``UnstorableValue``, ``ShardUnavailable``."""
        check_id(id)
        check_queue(topic, "topic")
        payload = codec_for(type(value)).encode(value)
        await self._deliver(Message(id, topic, idempotency_key or uuid.uuid4().hex, 1, payload, self._clock.now_us()))

    async def cancel(self, id: str) -> None:
        """As ``Handle.cancel``."""
        check_id(id)
        slot = self._shards.map.slot_of(id)
        shard = self._shards.shard_of_slot(slot)
        error = encode_error(asyncio.CancelledError())
        told = encode_outcome(Outcome(Status.CANCELLED, None, error))
        now = self._clock.now_us()
        statement = outcomes.cancel_unclaimed(shard.schemas[slot], id, error, told, now)
        if not len((await self._ask(shard, [statement]))[0]):
            await self._deliver(Message(id, CANCEL_TOPIC, uuid.uuid4().hex, 1, b"null", now))

    async def _deliver(self, message: Message) -> None:
        if message.receiver in await self._shards.deliver([message]):
            raise WorkflowNotFound(f"no workflow has the ID {message.receiver!r}")

    # --- looking ------------------------------------------------------------------------------------------------

    def locate(self, id: str) -> tuple[int, str]:
        """Where a workflow with this ID lies, or would: its slot, and the name of the shard. Asks nobody."""
        check_id(id)
        slot = self._shards.map.slot_of(id)
        return slot, self._shards.shard_of_slot(slot).name

    async def describe(self, id: str) -> Description | None:
        """All that is known of a workflow now, or None if there is none with this ID."""
        check_id(id)
        slot = self._shards.map.slot_of(id)
        shard = self._shards.shard_of_slot(slot)
        answer = (await self._ask(shard, [workflows.read_workflow(shard.schemas[slot], id)]))[0]
        found = workflows.descriptions_of(answer)
        return found[0] if found else None

    async def history(self, id: str) -> History:
        """What is recorded of a workflow: its steps, timers and messages in order, and its failed attempts."""
        check_id(id)
        slot = self._shards.map.slot_of(id)
        shard = self._shards.shard_of_slot(slot)
        answers = await self._ask(shard, steps.read_histories(shard.schemas[slot], [id]))
        return steps.histories_of(answers[0], answers[1]).get(id, EMPTY_HISTORY)

    async def _ask(self, shard: Shard, statements: Sequence[Statement]) -> list[Result]:
        if not statements:
            return []
        try:
            return await shard.reader.transact(statements, deadline=READ_DEADLINE_SECONDS)
        except ConnectionLost as error:
            raise ShardUnavailable(shard.name, str(error)) from None

    async def list(
        self,
        *,
        name: str | None = None,
        status: Status | None = None,
        queue: str | None = None,
        limit: int = 100,
        before: Microseconds | None = None,
    ) -> list[Description]:
        """The newest workflows of all shards (of those that failed, were cancelled or quarantined: the last to end), at
        most ``limit``; ``before`` (microseconds since the epoch) pages on. A shard that is away raises
        ``ShardUnavailable``: a list with holes is not a list."""
        moment = self._clock.now_us() + 60 * SECOND_US if before is None else before

        async def of(shard: Shard) -> list[Description]:
            schemas = [shard.schemas[slot] for slot in shard.slots]
            asked = [workflows.list_workflows(schema, moment, name, status, queue, limit) for schema in schemas]
            return [one for answer in await self._ask(shard, asked) for one in workflows.descriptions_of(answer)]

        found = [one for part in await asyncio.gather(*map(of, self._shards.shards.values())) for one in part]
        found.sort(key=lambda one: (one.created_at, one.id), reverse=True)
        return found[:limit]


def _check_same(start: Start, found: Existing) -> None:
    if found.name != start.name:
        raise IdConflict(
            f"workflow {start.id!r} exists and runs {found.name!r}, not {start.name!r}; use another ID, or "
            'on_conflict="existing" to get that one'
        )
    if found.input != start.input:
        raise IdConflict(
            f"workflow {start.id!r} exists with other arguments; use another ID, or "
            'on_conflict="existing" to get that one'
        )
