"""Recorded results and failed attempts: the history of a workflow, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import astuple

from sharded_wf.model.history import Entry, EntryKind, FailedAttempt, Heartbeat, History
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("steps")
_RECORD_STEPS = _SQL["record_steps"]
_RECORD_ATTEMPTS = _SQL["record_attempts"]
_SAVE_HEARTBEATS = _SQL["save_heartbeats"]
_FORGET_RUN = _SQL["forget_run"]
_READ_STEPS = _SQL["read_steps"]
_READ_ATTEMPTS = _SQL["read_attempts"]


_ENTRY_COLUMNS = len(Entry.__struct_fields__)


def record_steps(schema: str, workflow_ids: Sequence[str], entries: Sequence[Entry]) -> Statement:
    """Record entries; ``workflow_ids[i]`` is whose ``entries[i]`` is."""
    return Statement(
        _RECORD_STEPS,
        schema,
        (binary.text_array(workflow_ids), *columns_of(entries)),
    )


def columns_of(entries: Sequence[Entry]) -> tuple[bytes, ...]:
    """Entries as arrays, one for each column of ``step`` from ``place`` on."""
    columns: Any = zip(*map(astuple, entries), strict=True) if entries else [()] * _ENTRY_COLUMNS
    places, ordinals, kinds, names, fingerprints, outputs, errors, started, completed = columns
    return (
        binary.int4_array(places),
        binary.int4_array(ordinals),
        binary.int2_array(kinds),
        binary.text_array(names),
        binary.int8_array(fingerprints),
        binary.nullable_json_array(outputs),
        binary.nullable_json_array(errors),
        binary.timestamp_array(started),
        binary.timestamp_array(completed),
    )


def record_attempts(schema: str, workflow_ids: Sequence[str], attempts: Sequence[FailedAttempt]) -> Statement:
    """Record attempts that failed and will be made again."""
    return Statement(
        _RECORD_ATTEMPTS,
        schema,
        (
            binary.text_array(workflow_ids),
            binary.int4_array([attempt.place for attempt in attempts]),
            binary.int4_array([attempt.attempt for attempt in attempts]),
            binary.json_array([attempt.error for attempt in attempts]),
            binary.timestamp_array([attempt.started_at for attempt in attempts]),
            binary.timestamp_array([attempt.failed_at for attempt in attempts]),
            binary.timestamp_array([attempt.retry_at for attempt in attempts]),
        ),
    )


def save_heartbeats(schema: str, beats: Sequence[tuple[str, Heartbeat]]) -> Statement:
    """Save heartbeats, each given with its workflow; of each step only the last one that is given."""
    last = {(id_, beat.place): beat for id_, beat in beats}
    rows = sorted(last.items())  # primary-key order
    return Statement(
        _SAVE_HEARTBEATS,
        schema,
        (
            binary.text_array([id_ for (id_, _), _ in rows]),
            binary.int4_array([place for (_, place), _ in rows]),
            binary.int4_array([beat.attempt for _, beat in rows]),
            binary.timestamp_array([beat.beat_at for _, beat in rows]),
            binary.nullable_timestamp_array([beat.next_at for _, beat in rows]),
            binary.json_array([beat.details for _, beat in rows]),
        ),
    )


def forget_runs(schema: str, workflow_ids: Sequence[str]) -> Statement:
    """Remove the histories of workflows that continue as new."""
    return Statement(_FORGET_RUN, schema, (binary.text_array(workflow_ids),))


def read_histories(schema: str, workflow_ids: Sequence[str]) -> list[Statement]:
    """Ask for all that is recorded of these workflows."""
    ids = (binary.text_array(workflow_ids),)
    return [Statement(_READ_STEPS, schema, ids), Statement(_READ_ATTEMPTS, schema, ids)]


def histories_of(steps: Result, attempts: Result) -> dict[str, History]:
    """The answers to ``read_histories``, by workflow; those without any are missing."""
    entries: dict[str, list[Entry]] = {}
    failed: dict[str, list[FailedAttempt]] = {}
    beats: dict[str, list[Heartbeat]] = {}
    read_int, read_timestamp = binary.read_int, binary.read_timestamp
    for id_, place, ordinal, kind, name, fingerprint, output, error, started, completed in steps.rows():
        entries.setdefault(id_.decode(), []).append(
            Entry(
                read_int(place), read_int(ordinal), EntryKind(read_int(kind)), name.decode(), read_int(fingerprint),
                output, error, read_timestamp(started), read_timestamp(completed),
            )
        )  # fmt: skip
    for id_, place, attempt, error, started, at, retry in attempts.rows():
        if at is None:
            next_at = None if retry is None else read_timestamp(retry)
            beat = Heartbeat(read_int(place), read_int(attempt), read_timestamp(started), next_at, error)
            beats.setdefault(id_.decode(), []).append(beat)
            continue
        failed.setdefault(id_.decode(), []).append(
            FailedAttempt(
                read_int(place), read_int(attempt), error, read_timestamp(started), read_timestamp(at),
                read_timestamp(retry),
            )
        )  # fmt: skip
    return {
        id_: History(tuple(entries.get(id_, ())), tuple(failed.get(id_, ())), tuple(beats.get(id_, ())))
        for id_ in entries.keys() | failed.keys() | beats.keys()
    }


def begin_transaction(lease_id: bytes, mark: str) -> Statement:
    """Open a transaction with the user's data: the fence, and ``mark``, by which ``record_transaction`` knows it."""
    return Statement(_SQL["begin_transaction"], "", (lease_id, mark.encode()))


def record_transaction(
    schema: str, workflow_id: str, entry: Entry, claim_id: bytes, mark: str, lock_timeout_ms: int
) -> Statement:
    """Record the entry of a transaction within it: one row, or none if the transaction or the claim is another."""
    return Statement(
        _SQL["record_transaction"],
        schema,
        (
            workflow_id.encode(), binary.int4(entry.place), binary.int4(entry.ordinal), binary.int2(entry.kind),
            entry.name.encode(), binary.int8(entry.fingerprint), entry.output, binary.timestamp(entry.started_at),
            binary.timestamp(entry.completed_at), claim_id, mark.encode(), str(lock_timeout_ms).encode(),
        ),
    )  # fmt: skip


def read_step(schema: str, workflow_id: str, place: int) -> Statement:
    """Ask whether the step at this place is recorded: a row if so."""
    return Statement(_SQL["read_step"], schema, (workflow_id.encode(), binary.int4(place)))
