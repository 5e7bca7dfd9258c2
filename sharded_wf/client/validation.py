"""Bad input is refused here, before anything is written, in words that say what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sharded_wf.clock import SECOND_US, Clock, Microseconds, seconds_of
from sharded_wf.errors import IdConflict, LimitExceeded
from sharded_wf.limits import (
    ID_LENGTH_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    PRIORITY_MAX,
    PRIORITY_MIN,
    QUEUE_LENGTH_MAX_BYTES,
    TIMER_MAX_SECONDS,
)
from sharded_wf.model.workflow import Start
from sharded_wf.store.starts import Existing
from sharded_wf.workflow.bound import Bound


def check_id(id_: str, what: str = "workflow ID") -> None:
    """A workflow ID is 1 to ``ID_LENGTH_MAX_BYTES`` bytes of text without NUL. Raises ``LimitExceeded``."""
    _check_text(id_, what, ID_LENGTH_MAX_BYTES)


def check_queue(name: str, what: str = "queue") -> None:
    """So is the name of a queue or topic, of ``QUEUE_LENGTH_MAX_BYTES``; names that begin with ``$`` are ours."""
    _check_text(name, what, QUEUE_LENGTH_MAX_BYTES)
    if name.startswith("$"):
        raise LimitExceeded(f"the {what} {name!r} begins with '$', which is reserved; choose another name")


def check_conflict_option(on_conflict: object) -> None:
    """``on_conflict`` is "error" or "existing". Raises ``ValueError``."""
    if on_conflict not in ("error", "existing"):
        raise ValueError(f'on_conflict={on_conflict!r}: "error" or "existing"')


def check_start(start: Start) -> Start:
    """The start, if it can be stored. Raises ``LimitExceeded``."""
    check_id(start.id)
    check_queue(start.queue)
    if not PRIORITY_MIN <= start.priority <= PRIORITY_MAX:
        raise LimitExceeded(f"priority {start.priority} is out of range: {PRIORITY_MIN} to {PRIORITY_MAX}")
    if len(start.input) > PAYLOAD_MAX_BYTES:
        raise LimitExceeded(
            f"the arguments of {start.id!r} are {len(start.input):,} bytes, more than {PAYLOAD_MAX_BYTES:,}: "
            "store them elsewhere and pass a reference"
        )
    return start


def not_before_of(delay: timedelta | float | None, clock: Clock) -> Microseconds | None:
    """When a workflow that is started now may begin; None: at once."""
    wait_us = int(seconds_of(delay or 0) * SECOND_US)
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


def _check_text(text: str, what: str, limit: int) -> None:
    if not text or (len(text) * 4 > limit and len(text.encode("utf-8", "surrogatepass")) > limit):
        raise LimitExceeded(f"a {what} has 1 to {limit} bytes; this one has {len(text.encode('utf-8', 'replace'))}")
    if "\0" in text or (not text.isascii() and not _is_encodable(text)):
        raise LimitExceeded(f"the {what} {text!r} has a character that Postgres can't store; leave it out")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
