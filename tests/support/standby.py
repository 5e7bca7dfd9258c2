"""A streaming standby of an embedded server, to promote while the primary is killed, frozen or left alone."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.dev import EmbeddedServer, pgdata
from sharded_wf.dev.binaries import find_binaries
from sharded_wf.dev.places import run_as, runtime_home, server_account
from tests.support.processes import wait_until


@dataclass
class Pair:
    """A primary and its standby."""

    primary: EmbeddedServer
    standby: EmbeddedServer

    def dsn(self, database: str, *servers: EmbeddedServer) -> str:
        """One connection string with the hosts of both, the primary's first (or of these, in this order)."""
        given = [conninfo_to_dict(one.dsn(database)) for one in servers or (self.primary, self.standby)]
        hosts, ports = (",".join(str(one[key]) for one in given) for key in ("host", "port"))
        return make_conninfo(
            user=str(given[0]["user"]), dbname=database, host=hosts, port=ports, target_session_attrs="read-write"
        )

    def make_synchronous(self) -> None:
        """From now on nothing is acknowledged that the standby does not have."""
        with psycopg.connect(self.primary.dsn(), autocommit=True) as conn:
            conn.execute("alter system set synchronous_standby_names = '*'")
            conn.execute("select pg_reload_conf()")

            def is_synchronous() -> bool:
                found = conn.execute("select sync_state from pg_stat_replication").fetchall()
                return found == [("sync",)]

            wait_until(is_synchronous, "synchronous replication")

    def promote(self) -> None:
        """Make the standby a primary; returns when it takes writes."""
        with psycopg.connect(self.standby.dsn(), autocommit=True) as conn:
            assert conn.execute("select pg_promote()").fetchone() == (True,)

    def wait_replayed(self) -> None:
        """Wait until the standby has all that the primary has written so far."""
        with (
            psycopg.connect(self.primary.dsn(), autocommit=True) as primary,
            psycopg.connect(self.standby.dsn(), autocommit=True) as standby,
        ):
            row = primary.execute("select pg_current_wal_insert_lsn()").fetchone()
            assert row is not None

            def replayed() -> bool:
                found = standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone()
                return found == (True,)

            wait_until(replayed, "that the standby has caught up")


@contextlib.contextmanager
def standby_of(primary: EmbeddedServer) -> Generator[Pair]:
    """A standby of a running server, as long as the block runs."""
    account = server_account()
    version = str(primary.binaries_directory)
    directory = Path(tempfile.mkdtemp(prefix="standby-", dir=runtime_home()))
    server: EmbeddedServer | None = None
    try:
        directory.chmod(0o711)
        data = directory / pgdata.DATA
        data.mkdir(mode=0o700)
        if account.is_other:
            shutil.chown(data, account.uid, account.gid)
        command = [find_binaries(version, account).program("pg_basebackup"), "--dbname", primary.dsn()]
        made = run_as(account, [*command, "--pgdata", str(data), "--checkpoint=fast", "--write-recovery-conf"])
        assert made.returncode == 0, made.stderr
        shutil.copy(primary.directory / pgdata.PASSWORD_FILE, directory)
        server = EmbeddedServer.create(directory, version=version, settings=primary.settings)
        server.start()
        yield Pair(primary, server)
    finally:
        if server is not None:
            server.close()
        shutil.rmtree(directory, ignore_errors=True)
