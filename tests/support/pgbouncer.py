"""PgBouncer in front of a test's databases, as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.support.processes import free_port, wait_until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class PgBouncer:
    """Runs inside a ``with`` block; ``through(dsn)`` gives a connection string by way of it.

    Args:
        directory: for its configuration; readable by an unprivileged user if we are root, as whom it refuses to run.
        dsns: connection strings of the databases, over a Unix socket or TCP.
        mode: when a server connection is given back. In session mode each client connection needs one of its own.
    """

    def __init__(
        self, directory: Path, dsns: Iterable[str], mode: Literal["transaction", "session"] = "transaction"
    ) -> None:
        self._directory = directory
        self._dsns = list(dsns)
        self._mode = mode
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()

    def through(self, dsn: str) -> str:
        """The same database by way of PgBouncer."""
        given = conninfo_to_dict(dsn)
        return f"postgresql://{given.get('user') or 'postgres'}@127.0.0.1:{self._port}/{given['dbname']}"

    def lead_to(self, dsn: str) -> None:
        """From now on the database of this name is that one, also for clients that are connected."""
        name = conninfo_to_dict(dsn)["dbname"]
        self._dsns = [dsn if conninfo_to_dict(one)["dbname"] == name else one for one in self._dsns]
        self._configure()
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def _configure(self) -> None:
        databases, users = [], set()
        for dsn in self._dsns:
            given = conninfo_to_dict(dsn)
            user = given.get("user") or "postgres"
            users.add(user)
            name, port = given["dbname"], given.get("port") or 5432
            databases.append(f"{name} = host={given['host']} port={port} dbname={name} user={user}")
        directory = self._directory
        (directory / "users.txt").write_text("".join(f'"{user}" ""\n' for user in sorted(users)))
        (directory / "pgbouncer.ini").write_text(
            "[databases]\n" + "\n".join(databases) + "\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\nauth_type = any\n"
            f"auth_file = {directory}/users.txt\npool_mode = {self._mode}\n"
            f"max_client_conn = 200\ndefault_pool_size = {8 if self._mode == 'transaction' else 60}\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        directory = self._directory
        self._configure()
        command = [PROGRAM, str(directory / "pgbouncer.ini")]
        if os.geteuid() == 0:
            for path in (directory, directory / "users.txt", directory / "pgbouncer.ini"):
                shutil.chown(path, "nobody")
            command[1:1] = ["-u", "nobody"]
        with (directory / "pgbouncer.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        wait_until(self._answers, f"that PgBouncer answers ({(directory / 'pgbouncer.log')})")
        return self

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.through(self._dsns[0]), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()
