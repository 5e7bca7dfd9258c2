"""Whole workflows as JSON Lines: what ``client.export`` gives and replay in tests reads. Payloads stay as stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.errors import StoredValueMismatch
from sharded_wf.model.history import Entry, EntryKind, FailedAttempt, Heartbeat, History
from sharded_wf.model.status import Status

FORMAT = 1
"""The form of a line; a reader refuses one that is newer."""


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    place: int
    ordinal: int
    kind: int
    name: str
    fingerprint: int
    started_at: Microseconds
    completed_at: Microseconds
    result: msgspec.Raw
    """The output, or the error if it ``failed``."""
    failed: bool = False


class _Attempt(msgspec.Struct, frozen=True):
    place: int
    attempt: int
    error: msgspec.Raw
    started_at: Microseconds
    failed_at: Microseconds
    retry_at: Microseconds


class _Beat(msgspec.Struct, frozen=True):
    place: int
    attempt: int
    beat_at: Microseconds
    next_at: Microseconds | None
    details: msgspec.Raw


class _Line(msgspec.Struct, frozen=True):
    format: int
    id: str
    name: str
    status: int
    input: msgspec.Raw
    created_at: Microseconds
    started_at: Microseconds | None
    entries: list[_Entry]
    attempts: list[_Attempt]
    heartbeats: list[_Beat] = []


class StoredHistory(msgspec.Struct, frozen=True):
    """One workflow as it was when it was exported: what it was started with, where it stood, what was recorded."""

    id: str
    name: str
    status: Status
    input: bytes
    created_at: Microseconds
    started_at: Microseconds | None
    history: History


_decode = msgspec.json.Decoder(_Line).decode


def encode_history(stored: StoredHistory) -> bytes:
    """One line of JSON, without the line feed."""
    entries = [
        _Entry(
            one.place, one.ordinal, one.kind, one.name, one.fingerprint, one.started_at, one.completed_at,
            msgspec.Raw((one.output if one.error is None else one.error) or b"null"), one.error is not None,
        )
        for one in stored.history.entries
    ]  # fmt: skip
    attempts = [
        _Attempt(one.place, one.attempt, msgspec.Raw(one.error), one.started_at, one.failed_at, one.retry_at)
        for one in stored.history.attempts
    ]
    beats = [
        _Beat(one.place, one.attempt, one.beat_at, one.next_at, msgspec.Raw(one.details))
        for one in stored.history.heartbeats
    ]
    line = _Line(
        FORMAT, stored.id, stored.name, stored.status, msgspec.Raw(stored.input), stored.created_at, stored.started_at,
        entries, attempts, beats,
    )  # fmt: skip
    return msgspec.json.encode(line).replace(b"\n", b" ")  # a line feed in JSON text is only white space


def decode_history(line: bytes) -> StoredHistory:
    """A line back again. Raises :class:`StoredValueMismatch` if it is none."""
    try:
        read = _decode(line)
        if read.format > FORMAT:
            raise StoredValueMismatch(f"this history was exported by a later version (format {read.format})")
        entries = tuple(
            Entry(
                one.place, one.ordinal, EntryKind(one.kind), one.name, one.fingerprint,
                None if one.failed else bytes(one.result), bytes(one.result) if one.failed else None,
                one.started_at, one.completed_at,
            )
            for one in read.entries
        )  # fmt: skip
    except (msgspec.MsgspecError, ValueError) as error:
        if isinstance(error, StoredValueMismatch):
            raise
        raise StoredValueMismatch(f"this is no exported history: {error}") from None
    attempts = tuple(
        FailedAttempt(one.place, one.attempt, bytes(one.error), one.started_at, one.failed_at, one.retry_at)
        for one in read.attempts
    )
    beats = tuple(
        Heartbeat(one.place, one.attempt, one.beat_at, one.next_at, bytes(one.details)) for one in read.heartbeats
    )
    return StoredHistory(
        read.id, read.name, Status(read.status), bytes(read.input), read.created_at, read.started_at,
        History(entries, attempts, beats),
    )  # fmt: skip


def read_histories(path: Path | str) -> Iterator[StoredHistory]:
    """The histories of a file of JSON Lines. Raises as :func:`decode_history`, ``OSError`` if there is no such file."""
    with Path(path).open("rb") as lines:
        for line in lines:
            if line.strip():
                yield decode_history(line)


def write_histories(path: Path | str, histories: Iterable[StoredHistory]) -> int:
    """Write them into a file; how many."""
    count = 0
    with Path(path).open("wb") as lines:
        for stored in histories:
            lines.write(encode_history(stored) + b"\n")
            count += 1
    return count
