"""Parking workflows, and bringing back those that come due."""

from __future__ import annotations

from collections.abc import Sequence

from sharded_wf.clock import Microseconds
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Statement

_SQL = load("timers")
_PARK = _SQL["park"]
_SET_TIMERS = _SQL["set_timers"]
_WAKE_ARRIVED = _SQL["wake_arrived"]
_FIRE_TIMERS = _SQL["fire_timers"]


def park(
    schema: str,
    ids: Sequence[str],
    claim_ids: Sequence[bytes],
    timers: Sequence[tuple[Microseconds, str]],
    now: Microseconds,
) -> list[Statement]:
    """Park workflows, set the timers of those that have one, and make those ready again for whom something has arrived.
    Three statements, because the last must see all that was committed before it, not before the first."""
    id_array = binary.text_array(ids)
    statements = [Statement(_PARK, schema, (id_array, binary.uuid_array(claim_ids)))]
    if timers:
        due = sorted(timers)
        statements.append(
            Statement(
                _SET_TIMERS,
                schema,
                (binary.timestamp_array([at for at, _ in due]), binary.text_array([id_ for _, id_ in due])),
            )
        )
    statements.append(Statement(_WAKE_ARRIVED, schema, (id_array, binary.timestamp(now))))
    return statements


def fire_timers(schema: str, now: Microseconds, limit: int) -> Statement:
    """Make a bounded number of due workflows ready; the count says how many."""
    return Statement(_FIRE_TIMERS, schema, (binary.timestamp(now), binary.int4(limit)))
