"""Our named statements on an ordinary psycopg connection, within whatever transaction it is in."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Buffer, Dumper

from sharded_wf.errors import TransactionRefused
from sharded_wf.postgres.session import Result, Statement

AnyConnection = psycopg.Connection[Any]
AnyAsyncConnection = psycopg.AsyncConnection[Any]


class _Packed:
    """A parameter in Postgres' binary format already."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _PackedDumper(Dumper):
    format = pq.Format.BINARY
    oid = 0  # the statement's own casts say what it is

    def dump(self, obj: _Packed) -> Buffer | None:
        return obj.data


def _parameters(statement: Statement) -> list[_Packed | None]:
    return [None if value is None else _Packed(value) for value in statement.params]


def run(conn: AnyConnection, statement: Statement) -> Result:
    """Run one statement. Raises ``psycopg.Error``."""
    cursor = psycopg.RawCursor(conn)
    cursor.adapters.register_dumper(_Packed, _PackedDumper)
    cursor.execute(statement.query.on(statement.schema), _parameters(statement), binary=True, prepare=False)
    return _result(cursor.pgresult)


async def run_async(conn: AnyAsyncConnection, statement: Statement) -> Result:
    """As ``run``."""
    cursor = psycopg.AsyncRawCursor(conn)
    cursor.adapters.register_dumper(_Packed, _PackedDumper)
    await cursor.execute(statement.query.on(statement.schema), _parameters(statement), binary=True, prepare=False)
    return _result(cursor.pgresult)


def _result(found: pq.abc.PGresult | None) -> Result:
    if found is None:
        raise TransactionRefused("the connection is in pipeline mode, where answers come late; leave it first")
    return Result(found)


def check_in_transaction(conn: AnyConnection | AnyAsyncConnection, what: str) -> None:
    """Raises ``TransactionRefused`` if what is written would be committed at once, statement by statement."""
    if conn.pgconn.pipeline_status:
        raise TransactionRefused(f"{what}: the connection is in pipeline mode; leave it first")
    if conn.autocommit and conn.info.transaction_status == pq.TransactionStatus.IDLE:
        raise TransactionRefused(
            f"{what}: the connection is in autocommit mode and in no transaction; use it inside "
            "`with connection.transaction():`"
        )
