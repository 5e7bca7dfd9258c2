"""Texts that a row can't hold are refused here, before they stand in a batch with those of others, in words that say
what to do."""

from __future__ import annotations

from sharded_wf.errors import LimitExceeded
from sharded_wf.limits import ID_LENGTH_MAX_BYTES, PRIORITY_MAX, PRIORITY_MIN, QUEUE_LENGTH_MAX_BYTES


def check_id(id_: str, what: str = "workflow ID") -> None:
    """A workflow ID is 1 to ``ID_LENGTH_MAX_BYTES`` bytes of text without NUL. Raises ``LimitExceeded``, ``TypeError``
    for what is no text."""
    check_text(id_, what, ID_LENGTH_MAX_BYTES)


def check_queue(name: str, what: str = "queue") -> None:
    """So is the name of a queue or topic, of ``QUEUE_LENGTH_MAX_BYTES``; names that begin with ``$`` are ours."""
    check_text(name, what, QUEUE_LENGTH_MAX_BYTES)
    if name.startswith("$"):
        raise LimitExceeded(f"the {what} {name!r} begins with '$', which is reserved; choose another name")


def check_priority(priority: object) -> None:
    """A priority fits into two bytes. Raises ``LimitExceeded``, ``TypeError`` for what is no integer."""
    if not isinstance(priority, int):
        raise TypeError(f"a priority is an integer, not {priority!r}")
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise LimitExceeded(f"priority {priority} is out of range: {PRIORITY_MIN} to {PRIORITY_MAX}")


def check_text(text: object, what: str, limit: int) -> None:
    """Text of 1 to ``limit`` bytes that Postgres can store. Raises as ``check_id``."""
    if not isinstance(text, str):
        raise TypeError(f"a {what} is text, not {text!r}")
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
