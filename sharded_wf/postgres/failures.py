"""What an error from Postgres means for whoever sent the statement: wait and send it again, or look for the bad row."""

from __future__ import annotations

import psycopg

_TRANSIENT_CLASSES = ("08", "40", "53", "55", "57", "58")
_MOVED = ("42P01", "3F000", "42883")


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
