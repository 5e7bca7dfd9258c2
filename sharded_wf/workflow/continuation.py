"""What a run leaves to the next when its workflow continues as new: the same ID, and an empty history.

The run that ends leaves one entry, the first of the new history, and everything else of its history is deleted with the
same flush. What is in that entry is what must not be forgotten (see ``model.history.Continuation``). The workflow's
row stays: its ID, its moment of creation, the input that it was started with (so that the same start is still the
same), its parent, and the messages in its mailbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sharded_wf.errors import LimitExceeded
from sharded_wf.limits import CANCEL_CLEANUP_SECONDS, CONTINUED_SENDERS_MAX, PAYLOAD_MAX_BYTES
from sharded_wf.model.history import Continuation, Entry, EntryKind, continuation_of, read_cancellation
from sharded_wf.workflow.commands import read_message
from sharded_wf.workflow.replay import RECORDING

if TYPE_CHECKING:
    from sharded_wf.workflow.bound import Bound
    from sharded_wf.workflow.lifetime import LongLivedRun

_NAME = "continue_as_new"
_encode = msgspec.json.Encoder().encode


class ContinueAsNew(BaseException):
    """Leaves a workflow's code to begin anew. Not an ``Exception``, so that ``except Exception`` lets it pass."""

    def __init__(self, bound: Bound[Any]) -> None:
        super().__init__(f"continue {bound.name} as new")
        self.bound = bound


def continuation_asked_by(error: BaseException) -> Bound[Any] | None:
    """How the workflow goes on, if ``error``, which left its code, says so; also from within a task group."""
    while isinstance(error, BaseExceptionGroup):
        _, others = error.split(ContinueAsNew)
        if others is not None:
            return None
        error = error.exceptions[0]
    return error.bound if isinstance(error, ContinueAsNew) else None


def entry_of(run: LongLivedRun, bound: Bound[Any]) -> Entry:
    """The first entry of the next run, when the code of ``run`` has ended. Raises :class:`LimitExceeded`."""
    before = continuation_of(run.history)
    number = 1 if before is None else before.run
    received, returned, children, cancelled, cleanup = _left(run)
    closing = list(run.some_waits().untold(run.some_waits().closing))
    data = _encode(
        Continuation(
            number + 1, msgspec.Raw(bound.input), received, returned, children, closing, cancelled, cleanup
        )
    )  # fmt: skip
    if len(data) > PAYLOAD_MAX_BYTES:
        raise LimitExceeded(
            f"what {run.id!r} takes along into its next run is {len(data):,} bytes, more than {PAYLOAD_MAX_BYTES:,}: "
            f"its arguments ({len(bound.input):,} bytes), messages that were not received, and the numbers of messages "
            f"from {len(received):,} senders"
        )
    # Later than the run before began: messages are numbered anew, and are told apart by this moment.
    now_us = max(run.host.clock.now_us(), run.started_at + 1)
    return Entry(0, 1, EntryKind.CONTINUED, _NAME, 0, data, None, run.started_at, now_us)


def _left(
    run: LongLivedRun,
) -> tuple[list[tuple[str, str, int]], dict[str, list[msgspec.Raw]], dict[str, int], bool, float]:
    """What the run received, what of it no code got, which children it started, whether it was asked to cancel
    and how many seconds it has to clean up then."""
    waits = run.some_waits()
    returned = {topic: list(payloads) for topic, payloads in waits.returned.items() if payloads}
    cancelled = bool(waits.cancels) or (run.cancel_requested and not waits.timed_out)
    cleanup = min(waits.cancels.values(), default=CANCEL_CLEANUP_SECONDS)
    replay = run.replay
    if replay is not None:
        for entry in replay.entries[replay.position :]:
            if entry.kind is EntryKind.MESSAGE:
                returned.setdefault(entry.name, []).append(read_message(entry).payload)
            elif entry.kind is EntryKind.CANCEL:
                cancelled = True
                cleanup = read_cancellation(entry.output).cleanup_seconds
        for command in replay.commands.values():
            if command.kind is EntryKind.MESSAGE and command.phase == RECORDING:
                returned.setdefault(command.name, []).append(msgspec.Raw(command.taken))
    return _remembered(waits.mailbox.received()), returned, dict(waits.child_counts), cancelled, cleanup


def _remembered(received: dict[tuple[str, str], int]) -> list[tuple[str, str, int]]:
    """What was received, oldest first. A workflow's messages are numbered on, so what it sent is never forgotten; one
    that a client sent has the number 1, and matters only if it is sent again: the last ones are enough."""
    once = [key for key, seq in received.items() if seq == 1 and not _is_workflow(key[0])]
    forgotten = set(once[: max(0, len(once) - CONTINUED_SENDERS_MAX)])
    return [(*key, seq) for key, seq in received.items() if key not in forgotten]


def _is_workflow(sender: str) -> bool:
    """Whether a sender is a workflow's run (``id@moment``) and no client's key. One that only looks so is kept too."""
    return sender.rpartition("@")[2].isdigit() and "@" in sender
