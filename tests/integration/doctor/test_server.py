"""What is wrong with a server: its settings, its sessions, its replication, its connections. Each condition is made for
real, and what the finding says is done in a shell."""

from __future__ import annotations

import dataclasses
import struct
import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from sharded_wf.cluster import fleet
from sharded_wf.cluster.fleet import fleet_status
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.dev import EmbeddedServer
from sharded_wf.doctor import replication, sessions, settings
from sharded_wf.doctor.finding import Severity
from tests.support.doctor import findings, gone, is_mended, mend, the_finding
from tests.support.processes import wait_until

Own = Callable[..., tuple[ClusterConfig, EmbeddedServer]]


def do(config: ClusterConfig, *statements: str) -> None:
    with psycopg.connect(config.shards[0].dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def test_settings(own: Own) -> None:
    config, server = own()
    assert not findings(config, "durability")
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        do(config, f"alter system set {name} = off", "select pg_reload_conf()")
        assert is_mended(config, "durability").severity is Severity.CRITICAL
    for whose in ("database wf", "role wf", "role wf in database wf"):
        do(config, f"alter {whose} set synchronous_commit = off")
        assert is_mended(config, "durability").what.startswith("synchronous_commit is off (from the ")
    do(config, "alter system set autovacuum = off", "select pg_reload_conf()")
    is_mended(config, "autovacuum-off")
    do(config, "alter database wf set default_transaction_read_only = on")
    is_mended(config, "read-only")

    do(
        config,
        "alter system set max_wal_senders = 0",
        "alter system set wal_level = minimal",
        "select pg_reload_conf()",
    )
    assert the_finding(config, "pending-restart").severity is Severity.NOTE
    server.restart()
    mend(the_finding(config, "wal-level"))
    server.restart()
    assert not findings(config, "wal-level")
    assert not findings(config, "pending-restart")


def test_forced_checkpoints(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DOCTOR_CHECKPOINTS_MIN", 3)
    config, _ = own(max_wal_size="32MB", min_wal_size="32MB", checkpoint_timeout="1h")
    do(config, *["checkpoint"] * 20)
    assert not findings(config, "checkpoints"), "those that were asked for don't count"

    def write() -> bool:
        do(config, "create table t as select repeat('x', 1000) from generate_series(1, 40000)", "drop table t")
        return bool(findings(config, "checkpoints"))

    wait_until(write, "checkpoints that are forced")
    finding = is_mended(config, "checkpoints")
    assert "checkpoints were forced by WAL and" in finding.what
    assert "max_wal_size = '128MB'" in finding.mend[0].replace("'\"'\"'", "'")


def test_sessions(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "DOCTOR_LONG_TRANSACTION_SECONDS", 0.2)
    monkeypatch.setattr(sessions, "DOCTOR_IDLE_TRANSACTION_SECONDS", 0.2)
    monkeypatch.setattr(sessions, "DOCTOR_PREPARED_TRANSACTION_SECONDS", 0.2)
    config, _ = own(max_prepared_transactions="2")
    dsn = config.shards[0].dsn
    for check in ("long-transaction", "idle-in-transaction", "prepared-transaction"):
        assert not findings(config, check)

    with psycopg.connect(dsn, application_name="report") as conn:
        ended: list[bool] = []
        thread = threading.Thread(target=lambda: ended.append(_ends(conn, "select pg_sleep(60)")))
        thread.start()
        assert "(report of wf) has been in one transaction" in is_mended(config, "long-transaction").what
        thread.join()
        assert ended == [True]
    with psycopg.connect(dsn) as conn:
        conn.execute("select 1")
        is_mended(config, "idle-in-transaction")
        assert _ends(conn, "select 1")
    with psycopg.connect(dsn) as conn:
        conn.execute("create table t ()")
        conn.execute("prepare transaction 'x''y'")
    is_mended(config, "prepared-transaction")


def _ends(conn: psycopg.Connection[tuple[object, ...]], statement: str) -> bool:
    """Whether the session is ended before its statement is."""
    try:
        conn.execute(statement.encode())
    except psycopg.OperationalError:
        return True
    return False


@pytest.mark.sampled
def test_lock_waits(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "DOCTOR_LOCK_WAIT_SECONDS", 0.2)
    config, _ = own()
    dsn = config.shards[0].dsn
    holder = psycopg.connect(dsn, application_name="holder")
    with psycopg.connect(dsn, autocommit=True) as waiter:
        holder.execute("lock table wf_0000.timer")
        thread = threading.Thread(target=lambda: waiter.execute("select * from wf_0000.timer"))
        thread.start()
        finding = is_mended(config, "lock-wait")
        thread.join()
    holder.close()
    assert "(holder, idle in transaction) holds; it runs: select * from wf_0000.timer" in finding.what


def test_connections(own: Own) -> None:
    config, server = own(max_connections="20")
    held = [psycopg.connect(config.shards[0].dsn, application_name="greedy") for _ in range(14)]
    taken = "15 of 17 connections of the server are taken: greedy 14, sharded_wf 1"
    # (Who has just gone counts until the server has noticed.)
    wait_until(lambda: taken in the_finding(config, "connections").what, taken, interval=0.2)
    finding = the_finding(config, "connections")
    assert finding.severity is Severity.WARNING
    held += [psycopg.connect(config.shards[0].dsn) for _ in range(2)]
    assert the_finding(config, "connections").severity is Severity.CRITICAL
    mend(finding)
    for conn in held:
        conn.close()
    server.restart()
    assert not findings(config, "connections")
    for whose in ("database", "role"):
        do(config, f"alter {whose} wf connection limit 1")
        if whose == "database":
            is_mended(config, "connections")
    # A superuser is above its own limit, and is told all the same.
    is_mended(config, "connections")


def test_replication_slots(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = own(max_slot_wal_keep_size="1MB", wal_keep_size="0")
    do(config, "select pg_create_physical_replication_slot('gone', true)")
    assert the_finding(config, "replication-slot").severity is Severity.NOTE
    with monkeypatch.context() as patched:
        patched.setattr(replication, "DOCTOR_SLOT_WAL_BYTES", -1)
        assert the_finding(config, "replication-slot").severity is Severity.WARNING
    do(config, *["create table t as select 1", "select pg_switch_wal()", "drop table t"] * 3, "checkpoint")
    finding = is_mended(config, "replication-slot")
    assert (finding.severity, "WAL that its reader needs is gone" in finding.what) == (Severity.CRITICAL, True)


def test_a_synchronous_standby_that_is_not_there(own: Own) -> None:
    config, _ = own()
    do(config, "alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()")
    assert is_mended(config, "synchronous-standby").severity is Severity.CRITICAL


class Standby:
    """The network side of a standby: it is streamed to, and says what we tell it to say."""

    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn, application_name="standby", autocommit=True, replication="true")
        row = self.conn.execute("IDENTIFY_SYSTEM").fetchone()
        assert row is not None
        self.position = bytes(row[2]).decode()
        self.conn.pgconn.send_query(f"START_REPLICATION PHYSICAL {self.position}".encode())
        self.conn.pgconn.get_result()

    def has_replayed(self, position: str) -> None:
        """Written, flushed and replayed up to here."""
        high, low = position.split("/")
        at = (int(high, 16) << 32) + int(low, 16)
        self.conn.pgconn.put_copy_data(struct.pack("!cQQQQB", b"r", at, at, at, 0, 0))
        self.conn.pgconn.flush()

    def feed_back(self, xmin: int) -> None:
        """What hot_standby_feedback sends: the oldest transaction that the standby still looks at."""
        self.conn.pgconn.put_copy_data(struct.pack("!cQIIII", b"h", 0, xmin, 0, 0, 0))
        self.conn.pgconn.flush()


def test_a_standby_under_another_name_is_told_without_rights_to_see_it(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It streams, but not as one of those that commits wait for."""
    for module in (replication, fleet):
        monkeypatch.setattr(module, "COMMIT_STUCK_SECONDS", 0.1)
    config, server = own()
    do(config, "create role plain login", "grant pg_read_all_data to plain")
    dsn = make_conninfo(config.shards[0].dsn, user="plain")
    plain = dataclasses.replace(config, shards=(ShardConfig("pg1", dsn),))
    standby = Standby(server.dsn())
    do(config, "alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()")
    assert "no such standby is connected, but 'standby'" in the_finding(config, "synchronous-standby").what
    assert not findings(plain, "synchronous-standby")
    with psycopg.connect(dsn, autocommit=True) as conn:
        thread = threading.Thread(target=conn.execute, args=(b"create temp table t ()",))
        thread.start()
        assert "commits wait for one that confirms them" in the_finding(plain, "synchronous-standby").what
        problem = fleet_status(plain).shards[0].problem or ""
        assert "commits wait for a synchronous standby" in problem
        assert "'nobody'" in problem
        do(config, "alter system reset synchronous_standby_names", "select pg_reload_conf()")
        thread.join()
    assert fleet_status(plain).healthy
    standby.conn.close()


def test_standbys(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    config, server = own()
    assert the_finding(config, "no-standby").severity is Severity.NOTE
    standby = Standby(server.dsn())
    standby.has_replayed(standby.position)
    gone(config, "no-standby")
    gone(config, "replication-lag")
    monkeypatch.setattr(replication, "DOCTOR_LAG_BYTES", 1_000_000)
    do(config, "create table t as select generate_series(1, 100000)")
    assert "standby 'standby' (local" in the_finding(config, "replication-lag").what
    with psycopg.connect(config.shards[0].dsn, autocommit=True) as conn:
        row = conn.execute("select pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        standby.has_replayed(row[0])
    gone(config, "replication-lag")

    monkeypatch.setattr(replication, "DOCTOR_STANDBY_XMIN_AGE_XIDS", 100)
    with psycopg.connect(config.shards[0].dsn, autocommit=True) as conn:
        row = conn.execute("select pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        standby.feed_back(row[0])
        wait_until(
            lambda: bool(conn.execute("select from pg_stat_replication where backend_xmin is not null").fetchall()),
            "the feedback",
        )
    assert not findings(config, "standby-feedback")
    burn(config, 200)
    the_finding(config, "standby-feedback")
    standby.conn.close()
    gone(config, "standby-feedback")


def burn(config: ClusterConfig, xids: int) -> None:
    """So many transactions."""
    do(config, f"do $$ begin for i in 1..{xids} loop perform pg_current_xact_id(); commit; end loop; end $$")


def test_wraparound(own: Own) -> None:
    """A transaction that was prepared and forgotten, and autovacuum that can't do its work."""
    config, _ = own(
        autovacuum_freeze_max_age="100000", vacuum_freeze_table_age="100000", vacuum_freeze_min_age="0",
        autovacuum_naptime="1s", max_prepared_transactions="2",
    )  # fmt: skip
    assert not findings(config, "wraparound")
    with psycopg.connect(config.shards[0].dsn) as conn:
        conn.execute("create table t ()")
        conn.execute("prepare transaction 'forgotten'")
    burn(config, 130_000)
    ours = [one for one in findings(config, "wraparound") if "database 'wf'" in one.what]
    assert [one.severity for one in ours] == [Severity.WARNING]
    mend(ours[0])
    assert [one for one in findings(config, "wraparound") if "database 'wf'" in one.what], "what holds it comes first"
    do(config, "rollback prepared 'forgotten'")
    for finding in findings(config, "wraparound"):
        mend(finding)
    gone(config, "wraparound")
