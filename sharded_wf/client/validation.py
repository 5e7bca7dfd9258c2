"""Bad input is refused here, before anything is written, in words that say what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sharded_wf.clock import SECOND_US, Clock, Microseconds, microseconds_of, seconds_of
from sharded_wf.errors import IdConflict, LimitExceeded
from sharded_wf.limits import PAYLOAD_MAX_BYTES, TIMER_MAX_SECONDS
from sharded_wf.model.checks import check_id, check_priority, check_queue
from sharded_wf.model.workflow import Start
from sharded_wf.store.starts import Existing
from sharded_wf.workflow.bound import Bound


def check_conflict_option(on_conflict: object) -> None:
    """``on_conflict`` is "error" or "existing". Raises ``ValueError``."""
    if on_conflict not in ("error", "existing"):
        raise ValueError(f'on_conflict={on_conflict!r}: "error" or "existing"')


def check_start(start: Start) -> Start:
    """The start, if it can be stored. Raises ``LimitExceeded``, ``TypeError``."""
    check_id(start.id)
    check_queue(start.queue)
    check_priority(start.priority)
    if len(start.input) > PAYLOAD_MAX_BYTES:
        raise LimitExceeded(
            f"the arguments of {start.id!r} are {len(start.input):,} bytes, more than {PAYLOAD_MAX_BYTES:,}: "
            "store them elsewhere and pass a reference"
        )
    return start


def not_before_of(delay: timedelta | float | None, clock: Clock) -> Microseconds | None:
    """When a workflow that is started now may begin; None: at once."""
    if delay is None:
        return None
    wait_us = microseconds_of(delay)
    return clock.now_us() + wait_us if wait_us > 0 else None


def deadline_of(
    bound: Bound[Any], timeout: timedelta | float | None, not_before: Microseconds | None, clock: Clock
) -> Microseconds | None:
    """When the time of a workflow that is started now will be over. ``timeout`` None: the workflow's own. Raises
    ``LimitExceeded``."""
    seconds = bound.timeout_seconds if timeout is None else seconds_of(timeout)
    if seconds is None:
        return None
    if not seconds > 0:
        raise LimitExceeded(f"timeout={timeout!r}: more than 0 seconds, or None")
    return (not_before or clock.now_us()) + int(min(seconds, TIMER_MAX_SECONDS) * SECOND_US)


def check_same(start: Start, found: Existing, *, name_only: bool = False) -> None:
    """Raises ``IdConflict`` if what exists under a start's ID is something else."""
    if found.name != start.name:
        raise IdConflict(
            f"workflow {start.id!r} exists and runs {found.name!r}, not {start.name!r}; use another ID, or "
            'on_conflict="existing" to get that one'
        )
    if not name_only and found.input != start.input:
        raise IdConflict(
            f"workflow {start.id!r} exists with other arguments; use another ID, or "
            'on_conflict="existing" to get that one'
        )
