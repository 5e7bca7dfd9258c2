"""Embedded servers: durable, alone on their directory, and gone when their owner is."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from sharded_wf.dev import EmbeddedServer, reachable_directory
from sharded_wf.dev.places import runtime_home, server_account
from sharded_wf.dev.supervisor import is_alive, process_family
from sharded_wf.errors import EmbeddedPostgresMissing, EmbeddedServerError
from tests.support.processes import WorkerProcess, wait_until

ServerFactory = Callable[..., EmbeddedServer]

OWNER_SCRIPT = """
    import sys
    from sharded_wf.dev import EmbeddedServer
    directory, version, shared = sys.argv[1] or None, sys.argv[2], sys.argv[3] == "shared"
    server = EmbeddedServer.create(directory, version=version, shared=shared)
    server.start()
    if sys.argv[3] == "paused":
        server.pause()
    print("running", server.directory, flush=True)
    sys.stdin.readline()
    server.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def kept_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for data that are kept, which root's server account can reach too; not made yet."""
    directory = reachable_directory(tmp_path / "data")
    yield directory
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # its holder may still be stopping the server of an owner that was killed
        shutil.rmtree(directory)


def postmaster_of(server_directory: Path) -> int:
    return int((server_directory / "data" / "postmaster.pid").read_text().splitlines()[0])


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def value(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def test_commits_survive_kill_and_nothing_is_relaxed(server_factory: ServerFactory) -> None:
    server = server_factory()
    dsn = server.dsn()
    execute(dsn, "create table t as select 42 as answer")
    server.kill()
    assert not server.is_running()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    server.start()
    assert value(dsn, "select answer from t") == 42
    for name in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
        assert value(dsn, f"show {name}") == "on"


@pytest.mark.parametrize("name", ["fsync", "synchronous_commit", "full_page_writes"])
def test_durability_can_not_be_switched_off(name: str) -> None:
    before = set(runtime_home().glob("temporary-*"))
    server = EmbeddedServer.create(settings={name: "off"})
    try:
        with pytest.raises(EmbeddedServerError, match=name):
            server.start()
    finally:
        server.close()
    assert not server.directory.exists() or server.directory in before


def state_of(pid: int) -> str:
    return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]


def test_pause_answers_nothing_and_resume_answers_all(server_factory: ServerFactory) -> None:
    server = server_factory()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        backend = connection.info.backend_pid
        server.pause()
        try:
            assert server.is_running()
            family = process_family(postmaster_of(server.directory))
            assert backend in family
            assert {state_of(pid) for pid in family} == {"T"}
            connection.pgconn.send_query(b"select 7")
            connection.pgconn.flush()
        finally:
            server.resume()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"7"
        assert connection.pgconn.get_result() is None


def test_pause_holds_what_is_forked_meanwhile(server_factory: ServerFactory) -> None:
    server = server_factory()
    ended = threading.Event()

    def knock() -> None:
        while not ended.is_set():
            with psycopg.connect(server.dsn()):
                pass

    with ThreadPoolExecutor(2) as threads:
        knocking = [threads.submit(knock) for _ in range(2)]
        try:
            for _ in range(20):
                server.pause()
                try:
                    family = process_family(postmaster_of(server.directory))
                    assert {state_of(pid) for pid in family} == {"T"}
                finally:
                    server.resume()
        finally:
            ended.set()
        for one in knocking:
            one.result()


def test_a_paused_server_stops(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.pause()
    server.stop()
    assert not server.is_running()


def test_restart_keeps_the_connection_strings(server_factory: ServerFactory) -> None:
    server = server_factory(tcp=True)
    unix, tcp = server.dsn(), server.dsn(tcp=True)
    assert "127.0.0.1" in tcp
    for mode in ("fast", "immediate"):
        server.restart(mode)
        assert (server.dsn(), server.dsn(tcp=True)) == (unix, tcp)
        assert value(unix, "select 1") == value(tcp, "select 1") == 1


def test_tcp_asks_for_the_password_and_is_off_unless_asked_for(server_factory: ServerFactory) -> None:
    server = server_factory(tcp=True)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://wf@127.0.0.1:{server.port}/postgres")
    without = server_factory()
    assert value(without.dsn(), "show listen_addresses") == ""
    with pytest.raises(EmbeddedServerError, match="tcp=True"):
        without.dsn(tcp=True)


def test_data_are_kept_in_a_directory_of_ones_own(kept_directory: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents)}
    with EmbeddedServer.create(kept_directory) as server:
        execute(server.dsn(), "create table kept (x int)")
    with EmbeddedServer.create(kept_directory) as server:
        assert value(server.dsn(), "select count(*) from kept") == 0
        with pytest.raises(EmbeddedServerError, match="of PostgreSQL 18"):
            EmbeddedServer.create(kept_directory, version="16")
    assert {path: path.stat().st_mode for path in before} == before


def test_what_a_server_writes_is_for_its_owner_alone(server_factory: ServerFactory) -> None:
    server = server_factory()
    account = server_account()
    data = server.data_directory.stat()
    assert (data.st_uid, stat.S_IMODE(data.st_mode)) == (account.uid, 0o700)
    secret = (server.directory / "password").stat()
    assert (secret.st_uid, stat.S_IMODE(secret.st_mode)) == (os.geteuid(), 0o600)
    sockets = Path(str(value(server.dsn(), "show unix_socket_directories"))).stat()
    assert stat.S_IMODE(sockets.st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an account of its own for servers")
def test_root_is_told_of_a_directory_that_the_account_can_not_reach(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match="choose another directory"):
        EmbeddedServer.create(closed / "data")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    elsewhere = reachable_directory(closed / "data")
    assert closed not in elsewhere.parents
    assert reachable_directory(closed / "data") == elsewhere


@pytest.mark.parametrize("state", ["alone", "paused"])
def test_a_server_stops_when_its_owner_is_killed(state: str) -> None:
    with WorkerProcess(OWNER_SCRIPT, "", "18", state) as owner:
        directory = Path(owner.wait_line("running").split()[1])
        family = process_family(postmaster_of(directory))
        assert len(family) > 3
        owner.kill()
        wait_until(lambda: not any(map(is_alive, family)), "the end of the orphaned server")
    wait_until(lambda: not directory.exists(), "the removal of its temporary data")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_server_stops_even_when_its_supervisor_is_killed(server_factory: ServerFactory) -> None:
    server = server_factory()
    postmaster = postmaster_of(server.directory)
    family = process_family(postmaster)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{postmaster}/status").read_text().splitlines())
    os.kill(int(status["PPid"]), signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, family)), "the end of the orphaned server")
    assert not server.is_running()
    server.start()
    assert value(server.dsn(), "select 1") == 1


def test_a_second_owner_is_refused_unless_they_share(kept_directory: Path) -> None:
    with WorkerProcess(OWNER_SCRIPT, str(kept_directory), "18", "alone") as owner:
        owner.wait_line("running")
        with pytest.raises(EmbeddedServerError, match="another process"):
            EmbeddedServer.create(kept_directory).start()


def test_a_shared_server_lives_until_its_last_user_is_gone(kept_directory: Path) -> None:
    with WorkerProcess(OWNER_SCRIPT, str(kept_directory), "18", "shared") as first:
        first.wait_line("running")
        postmaster = postmaster_of(kept_directory)
        with EmbeddedServer.create(kept_directory, shared=True) as second:
            assert postmaster_of(kept_directory) == postmaster
            first.kill()
            assert value(second.dsn(), "select 1") == 1
            with WorkerProcess(OWNER_SCRIPT, str(kept_directory), "18", "shared") as third:
                third.wait_line("running")
                third.say("close")
                third.wait_line("closed")
                assert value(second.dsn(), "select 1") == 1
        wait_until(lambda: not is_alive(postmaster), "the end of the shared server")


def test_two_processes_that_start_a_shared_server_at_once_both_get_it(kept_directory: Path) -> None:
    with (
        WorkerProcess(OWNER_SCRIPT, str(kept_directory), "18", "shared") as one,
        WorkerProcess(OWNER_SCRIPT, str(kept_directory), "18", "shared") as other,
    ):
        one.wait_line("running")
        other.wait_line("running")
        postmaster = postmaster_of(kept_directory)
    wait_until(lambda: not is_alive(postmaster), "the end of the shared server")


def test_a_forked_child_does_not_keep_the_server_alive(server_factory: ServerFactory) -> None:
    server = server_factory()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent is done
        os._exit(0)
    try:
        server.close()
        assert not server.directory.exists()
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_a_failed_start_shows_the_log(server_factory: ServerFactory) -> None:
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        server_factory(settings={"no_such_setting": "1"})


def test_a_missing_version_says_what_to_do() -> None:
    with pytest.raises(EmbeddedPostgresMissing, match="no PostgreSQL 9"):
        EmbeddedServer.create(version="9")
    with pytest.raises(EmbeddedPostgresMissing, match="no program 'postgres'"):
        EmbeddedServer.create(version="/nowhere/bin")


def test_databases_come_and_go(server_factory: ServerFactory) -> None:
    server = server_factory()
    name = 'Odd "name" / 1'
    dsn = server.create_database(name)
    assert value(dsn, "select current_database()") == name
    with psycopg.connect(dsn):  # a session does not keep it
        server.drop_database(name)
        server.drop_database(name)


@pytest.mark.parametrize("version", ["16", "18"])
def test_both_versions_of_the_wheel_run(server_factory: ServerFactory, version: str) -> None:
    server = server_factory(version=version)
    assert str(value(server.dsn(), "show server_version")).startswith(version)
    assert server.version.startswith(version)


@pytest.mark.sampled
def test_a_postgres_of_the_machine_runs(server_factory: ServerFactory) -> None:
    programs = Path("/usr/lib/postgresql/15/bin")
    if not programs.exists():
        pytest.skip(f"no PostgreSQL 15 at {programs}")
    for version in ("15", str(programs)):
        assert str(value(server_factory(version=version).dsn(), "show server_version")).startswith("15")
