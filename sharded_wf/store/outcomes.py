"""How workflows end, and how those who wait learn of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sharded_wf.clock import Microseconds
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("outcomes")
_SUCCEED = _SQL["succeed"]
_FAIL = _SQL["fail"]
_CANCEL_UNCLAIMED = _SQL["cancel_unclaimed"]
_READ_OUTCOMES = _SQL["read_outcomes"]
_MISSING_WORKFLOWS = _SQL["missing_workflows"]


def succeed(
    schema: str, ids: Sequence[str], outputs: Sequence[bytes], claim_ids: Sequence[bytes], now: Microseconds
) -> Statement:
    """Workflows that returned; ``outputs`` as JSON texts."""
    return Statement(
        _SUCCEED,
        schema,
        (binary.text_array(ids), binary.json_array(outputs), binary.uuid_array(claim_ids), binary.timestamp(now)),
    )


def fail(
    schema: str,
    ids: Sequence[str],
    errors: Sequence[bytes],
    claim_ids: Sequence[bytes],
    statuses: Sequence[int],
    now: Microseconds,
) -> Statement:
    """Workflows that ended otherwise: failed, cancelled or quarantined."""
    return Statement(
        _FAIL,
        schema,
        (
            binary.text_array(ids), binary.json_array(errors), binary.uuid_array(claim_ids),
            binary.int2_array(statuses), binary.timestamp(now),
        ),
    )  # fmt: skip


def cancel_unclaimed(schema: str, id_: str, error: bytes, told: bytes, now: Microseconds) -> Statement:
    """Cancel a workflow that nobody holds; ``told`` is the message to its parent. The answer has a row if it was so."""
    return Statement(_CANCEL_UNCLAIMED, schema, (id_.encode(), error, binary.timestamp(now), told))


def pause_unclaimed(schema: str, id_: str) -> Statement:
    """Park a workflow whose code never ran."""
    return Statement(_SQL["pause_unclaimed"], schema, (id_.encode(),))


def read_outcomes(schema: str, ids: Sequence[str]) -> Statement:
    """Ask which of these have ended, and how."""
    return Statement(_READ_OUTCOMES, schema, (binary.text_array(ids),))


def outcomes_of(result: Result) -> list[tuple[str, Outcome]]:
    """The answer to ``read_outcomes``."""
    return [
        (id_.decode(), Outcome(Status(binary.read_int(status)), output, error))
        for id_, status, output, error in result.rows()
    ]


def missing_workflows(schema: str, ids: Collection[str]) -> Statement:
    """Ask which of these IDs have no row."""
    return Statement(_MISSING_WORKFLOWS, schema, (binary.text_array(list(ids)),))


def ids_of(result: Result) -> list[str]:
    """The answer to a statement that returns IDs."""
    return [row[0].decode() for row in result.rows() if row[0] is not None]
