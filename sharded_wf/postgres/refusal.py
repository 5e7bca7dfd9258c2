"""Cursors that refuse to end the transaction they are in.

A body of ``@app.transaction`` works in a transaction that is not its own: what it committed would be done without the
record that it was done. psycopg's own ``commit()`` and ``rollback()`` are refused within ``connection.transaction()``;
these cursors refuse the same in SQL. (A procedure can't do it either: Postgres refuses a COMMIT within a procedure that
was called in a transaction block.)
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import psycopg
from psycopg import sql

from sharded_wf.errors import TransactionRefused

_SUSPICIOUS = re.compile(r"\b(?:commit|end|rollback|abort|begin|start|prepare|discard)\b", re.IGNORECASE)
_TOKEN = re.compile(
    r"""(?P<skip>\s+|--[^\n]*|/\*.*?\*/|[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"
    |\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)|(?P<end>;)|(?P<word>\w+)|(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_WORDS_READ = 4


def refuse_ending(query: str) -> None:
    """Raises ``TransactionRefused`` if a statement of this text would end the transaction, or begin another."""
    if not _SUSPICIOUS.search(query):
        return
    words: list[str] = []
    complete = False
    for token in _TOKEN.finditer(query):
        if token["end"]:
            _judge(words)
            words, complete = [], False
        elif token["word"] and not complete:
            words.append(token["word"].lower())
            complete = len(words) == _WORDS_READ
        elif token["other"]:
            complete = True
    _judge(words)


def _judge(words: list[str]) -> None:
    first, *more = words or [""]
    if more[:1] in (["work"], ["transaction"]) and first not in ("prepare", "start"):
        del more[0]
    if first == "rollback" and more[:1] == ["to"]:
        return  # a savepoint of its own
    ends = first in ("commit", "end", "rollback", "abort", "begin", "discard")
    if ends or (first in ("start", "prepare") and more[:1] == ["transaction"]):
        raise TransactionRefused(
            f"{first.upper()} in an @app.transaction: the transaction is committed when the function returns, and "
            "rolled back when it raises; for a part that may be undone use `with conn.transaction():`, a savepoint"
        )


def _text(query: Any, conn: Any) -> str:
    if isinstance(query, sql.Composable):
        return query.as_string(conn)
    return query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)


class RefusingCursor(psycopg.Cursor[Any]):
    """A cursor of a ``def`` body."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_ending(_text(query, self.connection))
        return super().execute(query, *args, **kwargs)

    def executemany(self, query: Any, params_seq: Iterable[Any], *, returning: bool = False) -> None:
        refuse_ending(_text(query, self.connection))
        super().executemany(query, params_seq, returning=returning)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        refuse_ending(_text(query, self.connection))
        return super().stream(query, *args, **kwargs)


class RefusingAsyncCursor(psycopg.AsyncCursor[Any]):
    """A cursor of an ``async def`` body."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_ending(_text(query, self.connection))
        return await super().execute(query, *args, **kwargs)

    async def executemany(self, query: Any, params_seq: Iterable[Any], *, returning: bool = False) -> None:
        refuse_ending(_text(query, self.connection))
        await super().executemany(query, params_seq, returning=returning)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        refuse_ending(_text(query, self.connection))
        return super().stream(query, *args, **kwargs)
