"""What a client asks of a workflow itself: to end, to pause, to go on.

The executor that holds a workflow honours it; nobody else touches the row of one that may be held. What nobody holds,
because its code never ran, changes at once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from sharded_wf.clock import SECOND_US, microseconds_of
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.errors import WorkflowNotFound, WorkflowTerminated
from sharded_wf.limits import WRITE_DEADLINE_SECONDS
from sharded_wf.model.checks import check_id
from sharded_wf.model.history import Cancellation
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, PAUSE_TOPIC, TERMINATE_TOPIC, UNPAUSE_TOPIC, Message, Outcome
from sharded_wf.postgres.session import Statement
from sharded_wf.routing import slot_schema
from sharded_wf.serialization import encode_error, encode_outcome
from sharded_wf.store import leases, messages, outcomes


async def cancel(shards: ShardSet, id_: str, cleanup: timedelta | float | None) -> None:
    """As ``Client.cancel``."""
    said = Cancellation() if cleanup is None else Cancellation(cleanup_seconds=microseconds_of(cleanup) / SECOND_US)
    await _end(shards, id_, CANCEL_TOPIC, asyncio.CancelledError(), msgspec.json.encode(said))


async def terminate(shards: ShardSet, id_: str) -> None:
    """As ``Client.terminate``."""
    error = WorkflowTerminated("WorkflowTerminated", f"workflow {id_!r} was terminated")
    await _end(shards, id_, TERMINATE_TOPIC, error, b"null")


async def _end(shards: ShardSet, id_: str, topic: str, error: BaseException, payload: bytes) -> None:
    check_id(id_)
    text = encode_error(error)
    told = encode_outcome(Outcome(Status.CANCELLED, None, text))
    now = shards.clock.now_us()

    def before(schema: str) -> list[Statement]:
        # What is to end is not paused any more, so that its clean-up can run. If it ends on the spot, it has ended when
        # the message would be delivered, and gets none.
        unpaused = messages.withdraw_requests(schema, id_, [PAUSE_TOPIC])
        return [unpaused, outcomes.cancel_unclaimed(schema, id_, text, told, now)]

    await _request(shards, _message(shards, id_, topic, payload), before)


async def pause(shards: ShardSet, id_: str) -> None:
    """As ``Client.pause``."""
    check_id(id_)

    def before(schema: str) -> list[Statement]:
        withdrawn = messages.withdraw_requests(schema, id_, [UNPAUSE_TOPIC, PAUSE_TOPIC])
        return [withdrawn, outcomes.pause_unclaimed(schema, id_)]

    await _request(shards, _message(shards, id_, PAUSE_TOPIC, b"null"), before)


async def unpause(shards: ShardSet, id_: str) -> None:
    """As ``Client.unpause``."""
    check_id(id_)

    def before(schema: str) -> list[Statement]:
        return [messages.withdraw_requests(schema, id_, [PAUSE_TOPIC, UNPAUSE_TOPIC])]

    await _request(shards, _message(shards, id_, UNPAUSE_TOPIC, b"null"), before)


def _message(shards: ShardSet, id_: str, topic: str, payload: bytes) -> Message:
    return Message(id_, topic, uuid.uuid4().hex, 1, payload, shards.clock.now_us())


async def _request(shards: ShardSet, message: Message, before: Callable[[str], Sequence[Statement]]) -> None:
    """Deliver the message; ``before`` it, in the same transaction, what is made for the schema of its slot."""

    def statements(slot: int) -> list[Statement]:
        schema = slot_schema(slot)
        return [
            *before(schema),
            messages.deliver(schema, [message]),
            outcomes.missing_workflows(schema, {message.receiver}),
            leases.notify_wakes([slot]),
        ]

    answers = await shards.transact(message.receiver, statements, deadline=WRITE_DEADLINE_SECONDS)
    if outcomes.ids_of(answers[-2]):
        raise WorkflowNotFound(f"no workflow has the ID {message.receiver!r}")
