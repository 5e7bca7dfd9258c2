"""What a workflow has lived through: the entries that replay hands back to its code, in order."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.limits import CANCEL_CLEANUP_SECONDS


class EntryKind(IntEnum):
    """What kind of thing entered the workflow; the numbers are what the rows hold and never change."""

    STEP = 0
    TIMER = 1
    MESSAGE = 2
    CHILD = 3
    SEND = 4
    CANCEL = 5
    RESUME = 10
    ATTRIBUTES = 11
    START = 20
    EVENT = 21
    EVENT_WAIT = 22
    TIMEOUT = 23
    PATCH = 30
    CONTINUED = 31
    LOGGED = 32


UNASKED = frozenset(
    {
        EntryKind.CANCEL, EntryKind.RESUME, EntryKind.TIMEOUT, EntryKind.PATCH, EntryKind.CONTINUED, EntryKind.LOGGED,
    }
)  # fmt: skip
"""What enters a history without a command of the code that waits for it."""


class Resumption(msgspec.Struct, frozen=True):
    """The output of an entry of the kind ``RESUME``: from here on the entries at the places ``void`` count as if they
    had never been recorded. ``status`` and ``error`` are the outcome that was taken back. Of a fork ``forked_from`` and
    ``from_step`` say of which workflow, and from which ordinal on, and ``random_of`` whose random numbers it draws."""

    void: list[int] = []
    status: int | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    forked_from: str | None = None
    from_step: int | None = None
    random_of: str | None = None


class Cancellation(msgspec.Struct, frozen=True):
    """The output of an entry of the kind ``CANCEL``: the children that were told with it, and under what name; how many
    seconds the workflow has to clean up, and who asked, so that the same request is not honoured twice."""

    told: list[str] = []
    told_as: str = ""
    cleanup_seconds: float = CANCEL_CLEANUP_SECONDS
    sender: str | None = None


_decode_cancellation = msgspec.json.Decoder(Cancellation | None).decode


def read_cancellation(data: bytes | None) -> Cancellation:
    """What a request to cancel says, or the output of its entry; what is not said, or can't be read, has its
    default."""
    try:
        return (None if data is None else _decode_cancellation(data)) or Cancellation()
    except msgspec.MsgspecError:
        return Cancellation()


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One recorded result: a row of ``step``.

    ``place`` is where the code asked for it (unique in the workflow); ``ordinal`` is when it was answered (1, 2, 3 …
    over all kinds); ``fingerprint`` is a 64-bit hash of what was asked. Exactly one of ``output`` and ``error`` is set,
    both as JSON text.
    """

    place: int
    ordinal: int
    kind: EntryKind
    name: str
    fingerprint: int
    output: bytes | None
    error: bytes | None
    started_at: Microseconds
    completed_at: Microseconds


class FailedAttempt(msgspec.Struct, frozen=True, gc=False):
    """One attempt of a step that failed and will be made again: a row of ``attempt``."""

    place: int
    attempt: int
    error: bytes
    started_at: Microseconds
    failed_at: Microseconds
    retry_at: Microseconds


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """The last that a step reported while it ran: a row of ``heartbeat``, one for each step that ever did.

    ``attempt`` is the attempt that reported, ``details`` JSON text. Of a sensor, which looks again and again, it is the
    last look that found nothing, and ``next_at`` the moment of the next.
    """

    place: int
    attempt: int
    beat_at: Microseconds
    next_at: Microseconds | None
    details: bytes


class History(msgspec.Struct, frozen=True, gc=False):
    """All that is recorded of one workflow: entries by ordinal, the failed attempts of steps, the last heartbeats."""

    entries: tuple[Entry, ...] = ()
    attempts: tuple[FailedAttempt, ...] = ()
    heartbeats: tuple[Heartbeat, ...] = ()


EMPTY_HISTORY = History()


class Continuation(msgspec.Struct, frozen=True):
    """What a run leaves to the next run of the same workflow: the output of the first entry of a history that begins
    with one of the kind ``CONTINUED``.

    ``run`` is the number of the next run (the first is 1); ``input`` its arguments; ``received`` the last number
    received from each sender on each topic, so that nothing is received twice; ``returned`` messages that were recorded
    and that no code has received, by topic; ``children`` how many were started of each function, so that IDs are not
    used again; ``closing`` those that are cancelled when the workflow ends; ``cancelled`` whether a request to cancel
    came too late for the run that ended, and ``cleanup_seconds`` how long the next one has to clean up then.
    """

    run: int
    input: msgspec.Raw
    received: list[tuple[str, str, int]] = []
    returned: dict[str, list[msgspec.Raw]] = {}
    children: dict[str, int] = {}
    closing: list[str] = []
    cancelled: bool = False
    cleanup_seconds: float = CANCEL_CLEANUP_SECONDS


def continuation_of(history: History) -> Continuation | None:
    """What the run before left, or ``None`` if this is the first."""
    entries = history.entries
    if entries and entries[0].kind is EntryKind.CONTINUED:
        return _decode_continuation(entries[0].output or b"")
    return None


_decode_continuation = msgspec.json.Decoder(Continuation).decode
