"""Blocking connections: a server that stops answering does not hang us."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.dev import EmbeddedServer
from sharded_wf.postgres.connect import connection, conninfo_of
from sharded_wf.postgres.session import ConnectionLost, Session
from tests.support.processes import wait_until

GIVEN_UP_MAX_SECONDS = 20.0
"""Well beyond the deadlines here, on a busy machine, and well below what a statement may take by itself."""


def test_what_the_dsn_says_wins_over_our_defaults() -> None:
    given = conninfo_to_dict(conninfo_of("host=a connect_timeout=77 application_name=x", "mine"))
    assert given["connect_timeout"] == "77"
    assert given["tcp_user_timeout"] == "10000"
    assert given["application_name"] == "mine"


def test_text_is_utf_8_whatever_the_environment_says(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with connection(database, purpose="test") as conn:
        assert conn.execute("show client_encoding").fetchone() == ("UTF8",)
    given = conninfo_to_dict(conninfo_of("host=a client_encoding=latin1", "mine"))
    assert given["client_encoding"] == "UTF8"


def test_a_connection_says_what_it_is_for_and_reads_committed(database: str) -> None:
    with connection(database, purpose="looking around") as conn:
        assert conn.execute("select current_setting('application_name')").fetchone() == ("sharded_wf looking around",)
        with conn.transaction():
            assert conn.execute("show transaction_isolation").fetchone() == ("read committed",)
    assert conn.closed


def test_a_statement_past_the_deadline_is_cut_off(database: str) -> None:
    began = time.monotonic()
    with (
        pytest.raises(psycopg.OperationalError),
        connection(database, purpose="test", deadline_seconds=0.2) as conn,
    ):
        conn.execute("select pg_sleep(60)")
    assert time.monotonic() - began < GIVEN_UP_MAX_SECONDS


def test_a_frozen_server_is_given_up_at_the_deadline(server_factory: Callable[..., EmbeddedServer]) -> None:
    server = server_factory()
    began = time.monotonic()
    try:
        with connection(server.dsn("postgres"), purpose="test", deadline_seconds=0.3) as conn:
            server.pause()
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
        assert time.monotonic() - began < GIVEN_UP_MAX_SECONDS
    finally:
        server.resume()


def test_several_hosts_are_tried_in_turn(postgres_server: EmbeddedServer, database: str) -> None:
    given = conninfo_to_dict(database)
    several = make_conninfo(
        database, host=f"127.0.0.1,{given.get('host', 'localhost')}", port=f"1,{given.get('port', '5432')}"
    )
    with connection(several, purpose="test") as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("blocking", [True, False])
def test_attempts_that_a_frozen_server_does_not_answer_leave_no_connection_behind(
    server_factory: Callable[..., EmbeddedServer], blocking: bool
) -> None:
    """Whenever the garbage collector comes by: in a worker that is rare."""
    server = server_factory()
    dsn = make_conninfo(server.dsn(), connect_timeout=2)

    def attempt() -> None:
        if blocking:
            with connection(dsn, purpose="test"):
                pass
        else:
            asyncio.run(Session.connect(dsn, purpose="test"))

    gc.disable()
    try:
        server.pause()
        try:
            with pytest.raises((psycopg.OperationalError, ConnectionLost)):
                attempt()
        finally:
            server.resume()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            left = "select count(*) from pg_stat_activity where application_name like 'sharded_wf test%'"
            wait_until(lambda: conn.execute(left).fetchone() == (0,), "that no connection is left")
    finally:
        gc.enable()
