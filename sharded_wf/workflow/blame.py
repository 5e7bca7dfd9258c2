"""Which recorded errors a workflow failed of: those are what a resume runs again; and whether its work was undone
because of them: then it can't be resumed.

An error that enters the code is marked with the place of its entry. What leaves the code at last leads back to such
marks: it is one itself, or was raised from one, or while one was handled. An error that the code caught and was done
with leaves no trace there, and its entry stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sharded_wf.model.history import Entry
from sharded_wf.serialization.exceptions import decode_error

_MARK = "__sharded_wf_place__"
_UNDONE = "__sharded_wf_undone_from__"


def recorded_error(entry: Entry) -> Exception:
    """The error of an entry, to be raised in the code."""
    assert entry.error is not None
    error = decode_error(entry.error)
    with contextlib.suppress(Exception):  # a class of the user's may refuse any attribute
        setattr(error, _MARK, entry.place)
    return error


def mark_undone(error: BaseException, from_step: int) -> None:
    """A ``saga()`` that ``error`` left has undone its work, which began with the step of this number."""
    before = getattr(error, "__dict__", {}).get(_UNDONE, from_step)
    with contextlib.suppress(Exception):
        setattr(error, _UNDONE, min(before, from_step))


def undone_from(error: BaseException) -> int | None:
    """The number of the step with which work began that was undone because of ``error``. Resumed, the workflow would
    count it as done."""
    steps = [getattr(one, "__dict__", {}).get(_UNDONE) for one in _reasons(error)]
    return min((step for step in steps if step is not None), default=None)


def causes_of(error: BaseException, last_timer: int | None) -> list[int]:
    """The places of the entries that ``error`` came from. A timeout raises an error of its own: it came from the timer
    that went off last, at the place ``last_timer``."""
    places: set[int] = set()
    timed_out = False
    for one in _reasons(error):
        place = _place_of(one)
        if place is not None:
            places.add(place)
        else:
            timed_out = timed_out or isinstance(one, TimeoutError)
    if not places and timed_out and last_timer is not None:
        places.add(last_timer)
    return sorted(places)


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it came from, as far as the first that was recorded."""
    seen: set[int] = set()
    open_errors: list[BaseException] = [error]
    while open_errors:
        one = open_errors.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if _place_of(one) is not None:
            continue
        if isinstance(one, BaseExceptionGroup):
            open_errors += one.exceptions
            continue
        # Also where `from None` hides it from the reader: it was raised for that reason.
        before = one.__cause__ or one.__context__
        if before is not None:
            open_errors.append(before)


def _place_of(error: BaseException) -> int | None:
    place: int | None = getattr(error, "__dict__", {}).get(_MARK)
    return place
