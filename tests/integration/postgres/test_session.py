"""Sessions and links: a transaction in one round trip, and what remains of it when something goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from sharded_wf.dev import EmbeddedServer
from sharded_wf.postgres import binary
from sharded_wf.postgres.link import Link
from sharded_wf.postgres.queries import Query
from sharded_wf.postgres.session import ConnectionLost, Session, Statement
from tests.support.proxy import Proxy

INSERT = Query("insert_number", "insert into numbers values ($1::int)")
COUNT = Query("count_numbers", "select count(*) from numbers")
SLEEP = Query("sleep", "select pg_sleep(30)")
TABLE = Query("create_numbers", "create table if not exists numbers (number int primary key)")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def insert(number: int) -> Statement:
    return Statement(INSERT, "", (binary.int4(number),))


async def count(session: Session | Link) -> int:
    return binary.read_int((await session.fetch(Statement(COUNT, ""))).value() or b"")


def test_a_transaction_is_all_or_nothing_and_the_session_goes_on(database: str) -> None:
    async def work() -> None:
        session = await Session.connect(database, purpose="test")
        await session.fetch(Statement(TABLE, ""))
        await session.transact([insert(1), insert(2)])
        with pytest.raises(psycopg.errors.UniqueViolation):
            await session.transact([insert(3), insert(1), insert(4)])
        assert await count(session) == 2
        await session.transact([insert(5)])
        assert await count(session) == 3
        session.close()

    run(work())


def test_a_statement_prepared_in_a_failed_transaction_works_later(database: str) -> None:
    late = Query("late", "select 1 from numbers")

    async def work() -> None:
        session = await Session.connect(database, purpose="test")
        with pytest.raises(psycopg.errors.UndefinedTable):
            await session.transact([Statement(late, "")])
        await session.fetch(Statement(TABLE, ""))
        await session.transact([Statement(late, "")])
        session.close()

    run(work())


def test_a_deadline_ends_the_connection_and_says_that_the_commit_is_unknown(database: str) -> None:
    async def work() -> None:
        session = await Session.connect(database, purpose="test")
        with pytest.raises(ConnectionLost) as caught:
            await session.transact([Statement(SLEEP, "")], deadline=0.1)
        assert caught.value.commit_unknown
        assert session.closed
        with pytest.raises(ConnectionLost) as again:
            await session.transact([insert(1)])
        assert not again.value.commit_unknown, "nothing was sent"

    run(work())


def test_a_session_whose_backend_was_ended_notices_while_idle(database: str) -> None:
    async def work() -> None:
        session = await Session.connect(database, purpose="test")
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", (session.token,)
            )
        while not session.closed:  # noqa: ASYNC110 - the session tells nobody
            await asyncio.sleep(0.01)

    run(work())


def test_a_link_reconnects_and_tells_at_once_while_it_can_not(database: str, postgres_server: EmbeddedServer) -> None:
    async def work() -> None:
        with Proxy(postgres_server.dsn(str(conninfo_to_dict(database)["dbname"]), tcp=True)) as proxy:
            link = Link(proxy.dsn, "test")
            await link.fetch(Statement(TABLE, ""))
            await link.transact([insert(1)])
            proxy.refuse()
            proxy.cut_all()
            while True:  # each pause is longer than the one before: one is still there when it is looked at
                with pytest.raises(ConnectionLost):
                    await link.transact([insert(2)])
                if link.retry_in > 0:
                    break
            proxy.resume()
            while True:
                try:
                    assert await count(link) >= 1
                    break
                except ConnectionLost:
                    await link.pause()
            assert link.retry_in == 0
            link.close()

    run(work())


def test_a_lost_backend_is_gone_after_waiting_for_it(database: str) -> None:
    async def work() -> None:
        link = Link(database, "test")
        with pytest.raises(ConnectionLost):
            await link.fetch(Statement(SLEEP, ""), deadline=0.2)
        token = link.token
        while True:
            try:
                await link.wait_backend_gone(token)
                break
            except ConnectionLost:
                await link.pause()
        with psycopg.connect(database) as conn:
            left = conn.execute("select 1 from pg_stat_activity where application_name = %s", (token,)).fetchall()
        assert not left
        link.close()

    run(work())


@settings(max_examples=25)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.lists(st.integers(0, 4_000_000_000_000_000)),
    st.lists(st.binary(min_size=16, max_size=16)),
)
def test_arrays_arrive_as_they_were(
    postgres_server: EmbeddedServer, texts: list[str], numbers: list[int], moments: list[int], ids: list[bytes]
) -> None:
    query = Query(
        "arrays",
        "select to_json($1::text[])::text, to_json($2::int8[])::text, $3::timestamptz[], $4::uuid[], $1::text[]",
    )

    async def work() -> None:
        session = await Session.connect(postgres_server.dsn(), purpose="test")
        params = (
            binary.text_array(texts),
            binary.int8_array(numbers),
            binary.timestamp_array(moments),
            binary.uuid_array(ids),
        )
        ((text_json, number_json, moment_array, id_array, text_array),) = (
            await session.fetch(Statement(query, "", params))
        ).rows()
        assert json.loads(text_json or b"") == texts
        assert json.loads(number_json or b"") == numbers
        assert id_array == binary.uuid_array(ids)
        assert moment_array == binary.timestamp_array(moments)
        assert binary.read_text_array(text_array or b"") == texts
        session.close()

    run(work())
