"""The commands of the failover runbook, as they stand on the page: a standby that follows whoever is primary, and the
old primary that becomes a standby again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.dev import EmbeddedServer
from sharded_wf.dev.binaries import find_binaries
from sharded_wf.dev.pgdata import DATA
from sharded_wf.dev.places import run_as, server_account
from tests.support.processes import PROJECT, wait_until
from tests.support.standby import Pair, standby_of

PAGE = (PROJECT / "docs" / "runbooks" / "failover.md").read_text()


def line(beginning: str) -> str:
    """The one line of code on the page that begins so."""
    (found,) = re.findall(rf"^ {{4,}}({re.escape(beginning)} .+)$", PAGE, re.MULTILINE)
    return str(found)


def rewind(pair: Pair) -> None:
    """``pg_rewind``, with the page's names replaced by ours."""
    program, *arguments = shlex.split(line("pg_rewind"))
    option, given = arguments[-1].split("=", 1)
    assert (program, option) == ("pg_rewind", "--source-server")
    both = conninfo_to_dict(pair.dsn("postgres"))
    source = make_conninfo(given, **{key: both[key] for key in ("host", "port", "user")})
    words = [word.replace("DATA", str(pair.primary.directory / DATA)) for word in arguments[:-1]]
    account = server_account()
    binaries = find_binaries(str(pair.primary.binaries_directory), account)
    done = run_as(account, [binaries.program(program), *words, f"{option}={source}"])
    assert (done.returncode, "Done!" in done.stderr) == (0, True), done.stderr


@pytest.mark.sampled
def test_the_old_primary_becomes_a_standby_again(server_factory: Callable[..., EmbeddedServer]) -> None:
    with standby_of(server_factory(settings={"wal_log_hints": "on", "wal_keep_size": "1GB"})) as pair:
        pair.primary.kill()
        pair.promote()
        pair.primary.start()  # nobody fenced it: the two part
        with psycopg.connect(pair.primary.dsn(), autocommit=True) as conn:
            conn.execute("create table lost ()")
        pair.primary.stop()
        with psycopg.connect(pair.standby.dsn(), autocommit=True) as conn:
            conn.execute("create table kept ()")
            assert line("psql").endswith("--command=checkpoint")
            conn.execute("checkpoint")
            rewind(pair)
            pair.primary.start()

            def follows() -> bool:
                names = conn.execute("select application_name from pg_stat_replication where state = 'streaming'")
                return names.fetchall() == [("pg1a",)]

            wait_until(follows, "that it streams, by its name in the list of synchronous standbys")
            for beginning in ("alter system set synchronous_standby_names", "alter system set wal_receiver_timeout"):
                conn.execute(line(beginning).encode())
            conn.execute("select pg_reload_conf()")
            conn.execute("create table confirmed ()")
        with psycopg.connect(pair.primary.dsn(), autocommit=True) as conn:
            assert conn.execute("select to_regclass('lost'), to_regclass('kept') is null").fetchone() == (None, False)
