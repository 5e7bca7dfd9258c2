"""What a workflow has lived through: the entries that replay hands back to its code, in order."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from sharded_wf.clock import Microseconds


class EntryKind(IntEnum):
    """What kind of thing entered the workflow; the numbers are what the rows hold and never change."""

    STEP = 0
    TIMER = 1
    MESSAGE = 2
    CHILD = 3
    SEND = 4
    CANCEL = 5
    EVENT = 20
    EVENT_WAIT = 21
    TIMEOUT = 22


UNASKED = (EntryKind.CANCEL, EntryKind.TIMEOUT)
"""What enters a history without a request of the code."""


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
