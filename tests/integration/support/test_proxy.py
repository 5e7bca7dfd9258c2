"""The proxy cuts exactly where it is told: proven by what the server then holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with psycopg.connect(database, autocommit=True) as direct:
        direct.execute("create table t (x int)")
    with Proxy(database) as running:
        yield running


def stored(database: str) -> list[int]:
    with psycopg.connect(database, autocommit=True) as direct:
        return [row[0] for row in direct.execute("select x from t order by x")]


def write_simply(dsn: str, number: int) -> None:
    """COMMIT travels as a Query."""
    with psycopg.connect(dsn) as connection:
        connection.execute(f"insert into t values ({number})".encode())


def write_in_pipeline(dsn: str, number: int) -> None:
    """COMMIT travels as Parse, Bind, Execute, in one packet with the rest."""
    with psycopg.connect(dsn, autocommit=True) as connection, connection.pipeline():
        connection.execute("begin")
        connection.execute("insert into t values (%s)", [number])
        connection.execute("commit")


def write_prepared(dsn: str, number: int) -> None:
    """COMMIT travels as Bind and Execute of a statement that an earlier transaction prepared."""
    with psycopg.connect(dsn, autocommit=True) as connection, connection.pipeline() as pipeline:
        for rollback_first in (True, False):
            connection.execute("begin", prepare=True)
            connection.execute("insert into t values (%s)", [number], prepare=True)
            connection.execute("rollback" if rollback_first else "commit", prepare=True)
            pipeline.sync()


Write = Callable[[str, int], None]
writes = pytest.mark.parametrize("write", [write_simply, write_in_pipeline, write_prepared])


@writes
def test_without_rules_everything_passes(proxy: Proxy, database: str, write: Write) -> None:
    write(proxy.dsn, 1)
    assert stored(database) == [1]


@writes
@pytest.mark.parametrize(("when", "kept"), [("before", []), ("after", [1])])
def test_cut_at_commit(proxy: Proxy, database: str, write: Write, when: Moment, kept: list[int]) -> None:
    cut = proxy.cut(COMMIT, when=when)
    with pytest.raises(psycopg.OperationalError):
        write(proxy.dsn, 1)
    cut.wait()
    wait_until(lambda: proxy.connections() == 0, "the end of the connection")
    assert stored(database) == kept
    write(proxy.dsn, 2)
    assert stored(database) == [*kept, 2]
    assert cut.count == 1


@pytest.mark.parametrize(("when", "kept"), [("before", []), ("after", [1])])
def test_cut_at_the_sync_that_commits_a_pipeline(proxy: Proxy, database: str, when: Moment, kept: list[int]) -> None:
    cut = proxy.cut("insert into t", when=when, at_sync=True)
    with (
        pytest.raises(psycopg.OperationalError),
        psycopg.connect(proxy.dsn, autocommit=True) as connection,
        connection.pipeline(),
    ):
        connection.execute("insert into t values (%s)", [1])
    cut.wait()
    assert stored(database) == kept


def test_cut_at_any_statement_and_only_the_one_asked_for(proxy: Proxy, database: str) -> None:
    cut = proxy.cut(r"values \(3\)", when="before")
    second = proxy.cut("INSERT INTO t", when="before", skip=1, times=0)
    write_simply(proxy.dsn, 1)
    write_simply(proxy.dsn, 2)
    with pytest.raises(psycopg.OperationalError):
        write_simply(proxy.dsn, 3)
    assert (cut.count, second.count) == (1, 0)
    assert stored(database) == [1, 2]


def test_a_statement_that_fails_is_not_cut_after(proxy: Proxy, database: str) -> None:
    cut = proxy.cut("insert into t", when="after")
    with psycopg.connect(proxy.dsn, autocommit=True) as connection, pytest.raises(psycopg.DataError):
        connection.execute("insert into t values ('x'::int)")
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.DataError), connection.pipeline():
            connection.execute("insert into t values (%s::text::int)", ["x"])
        assert cut.count == 0
        with pytest.raises(psycopg.OperationalError), connection.pipeline():
            connection.execute("insert into t values (%s)", [5])
    assert (cut.count, stored(database)) == (1, [5])


def test_a_held_commit_is_late_and_then_passes(proxy: Proxy, database: str) -> None:
    held = proxy.hold(COMMIT, when="before")
    writer = threading.Thread(target=write_in_pipeline, args=(proxy.dsn, 1))
    writer.start()
    held.wait()
    assert stored(database) == []
    proxy.release()
    writer.join(30)
    assert not writer.is_alive()
    assert stored(database) == [1]


def test_a_held_answer_comes_late_to_what_is_done(proxy: Proxy, database: str) -> None:
    held = proxy.hold(COMMIT, when="after")
    writer = threading.Thread(target=write_in_pipeline, args=(proxy.dsn, 1))
    writer.start()
    held.wait()
    assert stored(database) == [1]
    assert writer.is_alive()
    proxy.release()
    writer.join(30)
    assert not writer.is_alive()


def test_hang_is_silent_and_refuse_is_not(proxy: Proxy, database: str) -> None:
    proxy.hang()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(proxy.dsn, connect_timeout=2)
    proxy.resume()
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.dsn)
    proxy.resume()
    write_simply(proxy.dsn, 1)
    assert stored(database) == [1]


def test_cut_all_and_delay(proxy: Proxy) -> None:
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        assert proxy.connections() == 1
        proxy.cut_all()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    proxy.delay(0.01)
    with psycopg.connect(proxy.dsn, autocommit=True) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
