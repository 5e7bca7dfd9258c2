"""A Citus cluster for tests: fresh databases on the servers of one that somebody started.

``SHARDED_WF_TEST_CITUS`` is the DSN of a database of its coordinator in which the workers are added
(`citus_add_node`); the role must be a superuser. Each test has databases of its own on all of these servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.certificate import slot_schemas
from tests.support.processes import wait_until

VARIABLE = "SHARDED_WF_TEST_CITUS"
COORDINATOR = os.environ.get(VARIABLE, "")
HOW = (
    f"{VARIABLE} is not set: nothing was tested on Citus. Set it to the DSN of a coordinator with two workers, "
    "and give the same tests to pytest again (docs/citus.md says how to start one)"
)
_numbers = itertools.count(1)
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Node:
    """A server of the cluster."""

    host: str
    port: int

    def dsn(self, database: str) -> str:
        """The connection string of a database there."""
        return make_conninfo(COORDINATOR, host=self.host, port=self.port, dbname=database)


def nodes() -> list[Node]:
    """The coordinator, then the workers."""
    with psycopg.connect(COORDINATOR, autocommit=True) as conn:
        rows = conn.execute(
            "select nodename, nodeport from pg_dist_node where noderole = 'primary' and isactive order by groupid"
        ).fetchall()
    return [Node(*row) for row in rows]


def make(workers: int) -> str:
    """An empty Citus cluster of so many of the workers, in databases of its own; its coordinator's DSN."""
    name = f"test_citus_{os.getpid()}_{next(_numbers)}"
    servers = nodes()
    if len(servers) <= workers:
        raise AssertionError(f"{VARIABLE} leads to a cluster of {len(servers) - 1} workers, and {workers} are needed")
    servers = servers[: workers + 1]
    for node in servers:
        with psycopg.connect(node.dsn("postgres"), autocommit=True) as conn:
            conn.execute(sql.SQL("create database {} encoding 'UTF8' template template0").format(sql.Identifier(name)))
        with psycopg.connect(node.dsn(name), autocommit=True) as conn:
            conn.execute("create extension citus")
            if node is not servers[0]:  # what tests make there is the node's own, as on a shard elsewhere
                setting = sql.SQL("alter database {} set citus.enable_ddl_propagation = off")
                conn.execute(setting.format(sql.Identifier(name)))
    first, *others = servers
    with psycopg.connect(first.dsn(name), autocommit=True) as conn:
        conn.execute("select citus_set_coordinator_host(%s, %s)", (first.host, first.port))
        for node in others:
            conn.execute("select citus_add_node(%s, %s)", (node.host, node.port))
    return first.dsn(name)


@contextmanager
def in_use(*, alone: bool = False) -> Generator[None]:
    """While the block runs nobody stops the servers; ``alone``: nobody else uses them, so that they may be stopped."""
    named = hashlib.sha256(COORDINATOR.encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"sharded_wf_citus_{named}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


class Server:
    """The processes of one node, if it runs on this machine: to stop, start, pause and resume as `EmbeddedServer`."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            ((text,),) = conn.execute("select pg_read_file('postmaster.pid')").fetchall()
            self.pid = int(text.split()[0])
        process = Path(f"/proc/{self.pid}")
        try:
            self._command = process.joinpath("cmdline").read_bytes().decode().rstrip("\0").split("\0")
            self._command[0] = str(process.joinpath("exe").readlink())
            self._user = process.stat().st_uid
        except OSError as error:
            raise AssertionError(
                f"the node at {dsn} does not run on this machine, or as another user: {error}"
            ) from None

    def _processes(self) -> list[int]:
        found = [self.pid]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if parent == self.pid:
                    found.append(int(entry.name))
        return found

    def pause(self) -> None:
        """SIGSTOP all of it: connections stay open, nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT all of it."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it, as ``EmbeddedServer.stop``."""
        os.kill(self.pid, signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        wait_until(self._is_down, "the node is down")

    def start(self) -> None:
        """Start it again, if it was stopped."""
        if self._is_down():
            nothing = subprocess.DEVNULL
            started = subprocess.Popen(
                self._command, user=self._user, start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing
            )
            _started.append(started)  # it outlives us; nobody waits for it
            self.pid = started.pid
        wait_until(self._answers, "the node is up")

    def _is_down(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state == "Z"  # the process that started it has other things to do than to notice its end

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def drop(coordinator: str) -> None:
    """Remove a cluster that ``make`` made, workers first, as Citus' own background process reconnects."""
    name = str(conninfo_to_dict(coordinator)["dbname"])
    for node in reversed(nodes()):
        with psycopg.connect(node.dsn("postgres"), autocommit=True) as conn:
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def wipe(dsn: str) -> int | None:
    """Empty every table of a node, so that it is as it was after ``shards init``, and end whatever works there. The
    number of its slots; None if slots have moved since."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name like 'sharded_wf%'"
        )
        if conn.execute("select exists (select from wf_control.shard_map where epoch > 1)").fetchone() != (False,):
            return None
        if conn.execute("select exists (select from wf_control.move)").fetchone() != (False,):
            return None
        for table in ("lease", "waiter", "flush", "request", "request_refused", "departure", "timeline"):
            conn.execute(sql.SQL("delete from wf_control.{}").format(sql.Identifier(table)))
        for (table,) in conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall():
            conn.execute(sql.SQL("drop table {}").format(sql.Identifier(table)))
        conn.execute("update wf_control.retention set holder = null, until = '-infinity'")
        schemas = slot_schemas(conn)
        for schema in schemas:
            tables = conn.execute(
                "select tablename from pg_tables where schemaname = %s and tablename <> 'fence' "
                "and tablename !~ '_[0-9]+$'",
                (schema,),
            ).fetchall()
            for (table,) in tables:
                conn.execute(sql.SQL("delete from {}").format(sql.Identifier(schema, table)))
        return len(schemas)
