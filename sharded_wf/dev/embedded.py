"""A Postgres server of our own: create, start, stop, and, for tests, kill and pause.

A server belongs to the processes that started it: when the last of them is gone, however it went, the server stops
(see :mod:`sharded_wf.dev.supervisor`). One lock on the directory says that a server runs on it; the supervisor holds
it, so it can't be left behind. Everything here is the same for root and for others; what root needs is in
:mod:`sharded_wf.dev.places`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from sharded_wf.dev import pgdata
from sharded_wf.dev.binaries import Binaries, find_binaries
from sharded_wf.dev.ownership import Ownership
from sharded_wf.dev.places import bare_environment, can_enter, path_digest, runtime_home, server_account
from sharded_wf.dev.supervisor import StopMode, freeze_family, is_alive, signal_family
from sharded_wf.errors import EmbeddedServerError

VERSION_DEFAULT = "18"
UNIX_PORT = 5432
"""Only names the socket file, whose directory is the server's own."""
# Below the ports that systems give to outgoing connections: a server that restarts finds its port free again.
TCP_PORTS = range(15_000, 32_000)
PORT_ATTEMPTS_MAX = 5
POLL_SECONDS = 0.005
LOG_KEPT_MAX_BYTES = 10 * 1024 * 1024
LOG_SHOWN_LINES = 12


class EmbeddedServer:
    """One Postgres server. Make it with :meth:`create`; as a context manager it is started, and closed at the end.

    A server is for use by one thread at a time. A process forked from the owner does not own it.
    """

    def __init__(
        self,
        directory: Path,
        binaries: Binaries,
        settings: Mapping[str, str],
        *,
        tcp: bool,
        shared: bool,
        temporary: bool,
    ) -> None:
        self.directory = directory
        self.data_directory = directory / pgdata.DATA
        self.log_path = directory / "postgres.log"
        self.settings = dict(settings)
        self.tcp = tcp
        self.shared = shared
        self.temporary = temporary
        self._binaries = binaries
        self._account = server_account()
        self._socket_directory = runtime_home() / path_digest(directory)
        self._port_file = directory / "port"
        self._port = int(self._port_file.read_text()) if tcp and self._port_file.exists() else None
        self._owner_process = os.getpid()
        self._ownership: Ownership | None = None

    @classmethod
    def create(
        cls,
        directory: Path | str | None = None,
        *,
        version: str = VERSION_DEFAULT,
        settings: Mapping[str, str] | None = None,
        tcp: bool = False,
        shared: bool = False,
    ) -> Self:
        """Make a server, or open the one that is there; it is not started.

        Args:
            directory: where its data are kept. Without one they are temporary, vanish when the server is closed, and
                can't be shared.
            version: ``18`` or ``16``, which come with the extra ``embedded``; another major version that is installed
                here; or the path of the directory that holds Postgres' programs.
            settings: lines for ``postgresql.conf``, over our defaults. Durability can't be switched off.
            tcp: listen on 127.0.0.1 too, at a free port that the server keeps.
            shared: if another process runs the server already, use it together; otherwise that is an error at
                :meth:`start`. A shared server stops with its last user.

        Raises:
            EmbeddedPostgresMissing: this version is not installed; the message says what to install.
            EmbeddedServerError: the data are of another version, or the directory can't be used.
        """
        account = server_account()
        binaries = find_binaries(version, account)
        temporary = directory is None
        if directory is None:
            place = Path(tempfile.mkdtemp(prefix="temporary-", dir=runtime_home()))
            made = True
        else:
            place = Path(directory).absolute()
            made = not place.exists()
            place.mkdir(parents=True, exist_ok=True)
        if made:
            place.chmod(0o711 if account.is_other else 0o700)
        if account.is_other and not can_enter(account, place):
            raise EmbeddedServerError(
                f"as root, Postgres runs as {account.name}, who can't get to {place}: choose another directory "
                "(sharded_wf.dev.reachable_directory finds one), or run as another user"
            )
        server = cls(place, binaries, settings or {}, tcp=tcp, shared=shared and not temporary, temporary=temporary)
        try:
            server._prepare_data()
        except BaseException:
            server.close()
            raise
        return server

    def _prepare_data(self) -> None:
        with open(self.directory / "create.lock", "w") as file:
            # Two processes may share a server from its first moment.
            fcntl.flock(file, fcntl.LOCK_EX)
            if not self.data_directory.exists():
                pgdata.create_data(self.directory, self._binaries, self._account, kept=not self.temporary)
        found = (self.data_directory / "PG_VERSION").read_text().strip()
        if found != self._binaries.major:
            raise EmbeddedServerError(
                f"the data in {self.directory} are of PostgreSQL {found}, not {self._binaries.major}: "
                "ask for that version, or use another directory"
            )

    @property
    def version(self) -> str:
        """The server's version as it names itself, such as ``18.1``."""
        return self._binaries.version

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; of a server without TCP, the number that names its socket."""
        return self._port if self._port is not None else UNIX_PORT

    @property
    def binaries_directory(self) -> Path:
        """Where the server's programs lie (``pg_dump``, ``psql`` and others)."""
        return self._binaries.directory

    def is_running(self) -> bool:
        """Whether the server runs; a paused one does."""
        return self._ownership is not None and self._is_owner() and not self._ownership.has_ended()

    def _is_owner(self) -> bool:
        return self._owner_process == os.getpid()

    def start(self) -> None:
        """Start the server and wait until it takes connections; crash recovery gets the time it needs. Does nothing if
        it runs.

        Raises:
            EmbeddedServerError: it did not start (the message ends with its log), or another process runs it.
        """
        if not self._is_owner():
            raise EmbeddedServerError(f"the server belongs to process {self._owner_process}, of which this is a fork")
        if self.is_running():
            return
        self._forget()
        for attempt in range(PORT_ATTEMPTS_MAX):
            lock = self._lock_or_join()
            if lock is not None:
                self._choose_port(again=attempt > 0)
                self._ownership = self._launch(lock)
            if self._wait_ready():
                return
            self._forget()
            # A server of our own may have lost its port to somebody else; one that we joined may have been stopping.
            if lock is not None and not (self.tcp and "could not bind" in self._log_tail()):
                break
        raise EmbeddedServerError(f"Postgres did not start in {self.directory}:\n{self._log_tail()}")

    def _lock_or_join(self) -> int | None:
        """The directory's lock, or None if we now share the server of somebody else, who holds it."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if not self.shared:
                    os.close(descriptor)
                    raise EmbeddedServerError(f"another process runs the server in {self.directory}") from None
            self._ownership = Ownership.join(self._control_path)
            if self._ownership is not None:
                os.close(descriptor)
                return None
            time.sleep(POLL_SECONDS)  # it starts or stops just now

    @property
    def _control_path(self) -> Path:
        return self._socket_directory / "control"

    def _choose_port(self, *, again: bool) -> None:
        if not self.tcp or (self._port is not None and not again):
            return
        while True:
            port = random.SystemRandom().choice(TCP_PORTS)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                break
        self._port = port
        self._port_file.write_text(f"{port}\n")

    def _launch(self, lock: int) -> Ownership:
        account = self._account
        self._socket_directory.mkdir(mode=0o700, exist_ok=True)
        if account.is_other:
            os.chown(self._socket_directory, account.uid, account.gid)
        own = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": str(self.port),
            "unix_socket_directories": str(self._socket_directory),
        }
        pgdata.write_settings(self.data_directory, account, {**self.settings, **own})
        config: dict[str, Any] = {
            "postgres": self._binaries.program("postgres"),
            "data": str(self.data_directory),
            "directory": str(self.directory),
            "sockets": str(self._socket_directory),
            "control": str(self._control_path),
            "temporary": self.temporary,
            "switch": account.is_other,
            "uid": account.uid,
            "gid": account.gid,
            "environment": bare_environment(),
        }
        with self._open_log() as log:
            return Ownership.launch(config, lock, log)

    def _open_log(self) -> BinaryIO:
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > LOG_KEPT_MAX_BYTES:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
        return open(os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

    def _wait_ready(self) -> bool:
        """Wait until Postgres says in its own file that it takes connections; False if it ended before."""
        assert self._ownership is not None
        if not self._ownership.wait_launched():
            return False
        while True:
            with contextlib.suppress(OSError, IndexError, ValueError):
                lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
                if int(lines[0]) == self._ownership.postmaster and lines[7].strip() == "ready":
                    if lines[5]:
                        self._port = int(lines[3])
                    return True
            if self._ownership.has_ended(POLL_SECONDS):
                return False

    def _log_tail(self) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_SHOWN_LINES:])

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server, for everybody who uses it, and wait for that. Does nothing if it does not run.

        Args:
            mode: ``fast`` ends the sessions and writes a checkpoint; ``immediate`` ends at once, as a crash does.
        """
        if self._ownership is not None and self._is_owner():
            self._ownership.request_stop(mode)
        self._forget()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start; connection strings stay valid."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL all of the server's processes, as when the machine fails, and wait until they are gone."""
        family = signal_family(self._running_postmaster(), signal.SIGKILL)
        while any(is_alive(pid) for pid in family):
            time.sleep(POLL_SECONDS)
        self._forget()

    def pause(self) -> None:
        """SIGSTOP all of the server's processes and wait until they have stopped: connections stay open, and nothing
        answers.

        Raises:
            EmbeddedServerError: the server does not run, or a process of it did not stop within seconds.
        """
        if not freeze_family(self._running_postmaster()):
            raise EmbeddedServerError(f"a process of the server in {self.directory} does not stop: call resume()")

    def resume(self) -> None:
        """Let a paused server go on."""
        signal_family(self._running_postmaster(), signal.SIGCONT)

    def _running_postmaster(self) -> int:
        if self._ownership is None or not self.is_running():
            raise EmbeddedServerError(f"the server in {self.directory} does not run")
        return self._ownership.postmaster

    def close(self) -> None:
        """Give the server up: if nobody else uses it, it stops; temporary data are removed. Closing twice is fine."""
        if not self._is_owner():
            return
        if self._ownership is not None:
            if self.shared:
                self._ownership.leave()
                self._ownership = None
            else:
                self._ownership.release()
        self._forget()
        if self.temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    def _forget(self) -> None:
        """Wait for the end of the server that we had, which has ended or is about to."""
        ownership, self._ownership = self._ownership, None
        if ownership is not None and self._is_owner():
            ownership.wait_end()

    def dsn(self, database: str = "postgres", *, tcp: bool | None = None) -> str:
        """The connection string of a database, as superuser.

        Args:
            database: its name; it need not exist.
            tcp: over TCP on 127.0.0.1, or over the Unix socket; unless said, over the socket.

        Raises:
            EmbeddedServerError: TCP is asked for and the server has none.
        """
        name = quote(database, safe="")
        if not tcp:
            return f"postgresql://{pgdata.SUPERUSER}@/{name}?host={self._socket_directory}&port={self.port}"
        if not self.tcp or self._port is None:
            raise EmbeddedServerError("this server does not listen on TCP: create it with tcp=True, and start it")
        password = (self.directory / pgdata.PASSWORD_FILE).read_text()
        return f"postgresql://{pgdata.SUPERUSER}:{password}@127.0.0.1:{self._port}/{name}"

    def create_database(self, name: str, *, tcp: bool | None = None) -> str:
        """Make an empty database; its connection string, as :meth:`dsn` gives it."""
        self._administer(sql.SQL("create database {}").format(sql.Identifier(name)))
        return self.dsn(name, tcp=tcp)

    def drop_database(self, name: str) -> None:
        """Remove a database, and end the sessions that use it. Does nothing if it is not there."""
        self._administer(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
