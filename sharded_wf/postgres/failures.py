"""What an error from Postgres means for whoever sent the statement: wait and send it again, or look for the bad row."""

from __future__ import annotations

import re

import psycopg

from sharded_wf.errors import OldPrimary, ShardUnavailable
from sharded_wf.postgres.session import ConnectionLost
from sharded_wf.postgres.timeline import OldPrimaryFound
from sharded_wf.routing import CONTROL_SCHEMA

_TRANSIENT_CLASSES = ("08", "40", "53", "55", "57", "58")
_MOVED = ("42P01", "3F000", "42883")
_NOT_OUR_TABLES = ("23502", "23514")
"""A column that we don't write may not be null; a value that we write is not allowed any more."""
_SLOT = re.compile(r"\bwf_(\d{4,})\b")


def is_transient(error: psycopg.Error) -> bool:
    """Whether the same statement may well succeed later: a lock, a deadlock, a shutdown, a full disk, a read-only
    standby. Everything else lies in what was sent.

    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    state = error.sqlstate or ""
    return not state or state[:2] in _TRANSIENT_CLASSES or state == "25006" or is_moved(error)


def is_moved(error: psycopg.Error) -> bool:
    """Whether the tables are not where we looked for them: the shard map that we used is old."""
    return error.sqlstate in _MOVED


def is_no_shard(error: Exception) -> bool:
    """Whether our control schema is not there: the database is no shard, or no more."""
    return isinstance(error, psycopg.Error) and is_moved(error) and CONTROL_SCHEMA in str(error)


def is_of_schema(error: psycopg.Error) -> bool:
    """Whether the tables may not be those that the statement was written for: no data of a user's lead to this."""
    return (error.sqlstate or "").startswith("42") or error.sqlstate in _NOT_OUR_TABLES


def unavailable(shard: str, error: Exception, reason: str | None = None) -> ShardUnavailable:
    """What to tell a caller when a connection to this shard failed, or could not be made, with this error; ``reason``:
    in other words than the error's own."""
    found_old = isinstance(error, OldPrimaryFound) or (isinstance(error, ConnectionLost) and error.old_primary)
    return (OldPrimary if found_old else ShardUnavailable)(shard, str(error) if reason is None else reason)


def moved_slot(error: psycopg.Error) -> int | None:
    """The slot whose tables are not where we looked for them, if the error says so. (The name of the relation is in the
    message, whatever the server's language.)"""
    found = _SLOT.search(error.diag.message_primary or str(error)) if is_moved(error) else None
    return None if found is None else int(found[1])
