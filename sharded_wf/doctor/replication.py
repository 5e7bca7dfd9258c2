"""Standbys and replication slots: what they lack, and what they hold back."""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.cluster.fleet import read_writable
from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, age, size
from sharded_wf.doctor.look import Look
from sharded_wf.limits import (
    COMMIT_STUCK_SECONDS,
    DOCTOR_LAG_BYTES,
    DOCTOR_LAG_SECONDS,
    DOCTOR_SLOT_WAL_BYTES,
    DOCTOR_SLOT_WAL_CRITICAL_BYTES,
    DOCTOR_STANDBY_XMIN_AGE_XIDS,
)

_ON_STANDBY = (
    "psql -h STANDBY -c 'select pid, xact_start, query from pg_stat_activity "
    "where backend_xmin is not null order by xact_start'"
)


def replication_slots(look: Look) -> Iterator[Finding]:
    """Slots that nobody reads, or that can't be read any more."""
    for name, kind, active, wal_status, xids, kept in look.rows("read_slots"):
        drop = (look.psql(f"select pg_drop_replication_slot('{name}')") + "  # if its reader will not come back",)
        if wal_status in ("unreserved", "lost"):
            gone = "gone" if wal_status == "lost" else "about to go"
            yield Finding(
                Severity.CRITICAL,
                f"replication slot {name!r} ({kind}): WAL that its reader needs is {gone}",
                "Its standby can't follow any more (or soon can't), and is no protection: build it anew.",
                drop,
            )  # fmt: skip
        elif xids > DOCTOR_STANDBY_XMIN_AGE_XIDS:
            yield Finding(
                Severity.WARNING,
                f"replication slot {name!r} ({kind}) holds back vacuum by {xids:,} transactions",
                "No row that died since then is removed: queues fill with dead rows, and claims become slower.",
                drop,
            )
        elif not active:
            grave = kept > DOCTOR_SLOT_WAL_BYTES
            critical = kept > DOCTOR_SLOT_WAL_CRITICAL_BYTES
            yield Finding(
                Severity.CRITICAL if critical else Severity.WARNING if grave else Severity.NOTE,
                f"nobody reads the replication slot {name!r} ({kind}); the server keeps {size(kept)} of WAL for it",
                "WAL is kept until the slot is read, or the disk is full, at which the server stops.",
                drop,
            )


def _standbys(look: Look) -> list[tuple[str, str, str, str, float, float, int]]:
    rows = look.rows("read_standbys")
    return [row for row in rows if row[2] is not None]  # pyright: ignore[reportReturnType]


def standby_feedback(look: Look) -> Iterator[Finding]:
    """Standbys whose long queries hold back vacuum here."""
    for name, address, _, _, _, _, xids in _standbys(look):
        if xids > DOCTOR_STANDBY_XMIN_AGE_XIDS:
            yield Finding(
                Severity.WARNING,
                f"standby {name!r} ({address}) holds back vacuum by {xids:,} transactions (hot_standby_feedback)",
                "A long transaction on the standby keeps dead rows alive here. End it there.",
                (_ON_STANDBY,),
            )


def replication_lag(look: Look) -> Iterator[Finding]:
    """Standbys that lie behind."""
    hidden = sum(1 for row in look.rows("read_standbys") if row[2] is None)
    if hidden:
        look.hidden("replication-lag", f"the state of {hidden} standbys")
    for name, address, state, _, seconds, behind, _ in _standbys(look):
        if state in ("backup", "startup"):
            continue
        if seconds > DOCTOR_LAG_SECONDS or behind > DOCTOR_LAG_BYTES or state == "catchup":
            yield Finding(
                Severity.WARNING,
                f"standby {name!r} ({address}, {state}) lies {size(behind)} behind"
                + (f", {age(seconds)}" if seconds else ""),
                "If it is promoted now, that much is missing, unless it is a synchronous one; then every commit waits "
                "for it.",
                (look.psql("select application_name, state, sync_state, sent_lsn, write_lsn, flush_lsn, replay_lsn, "
                           "replay_lag from pg_stat_replication"),),
            )  # fmt: skip


def synchronous_standby(look: Look) -> Iterator[Finding]:
    """Commits that wait for a standby that is not there."""
    names = look.settings["synchronous_standby_names"].value
    standbys = look.rows("read_standbys")
    if not names or look.facts.standby:
        return
    if any(row[2] is None for row in standbys):  # we may not see their state, but what our own commits wait for
        waited = read_writable(look.conn)[1]
        lacking = f"commits wait for one that confirms them, for {age(waited)}" if waited > COMMIT_STUCK_SECONDS else ""
    elif any(row[3] in ("sync", "quorum") for row in standbys):
        lacking = ""
    else:
        lacking = "no such standby is connected"
        lacking += f", but {', '.join(sorted({repr(row[0]) for row in standbys}))}" if standbys else ""
    if lacking:
        yield Finding(
            Severity.CRITICAL,
            f"synchronous_standby_names is {names!r}, and {lacking}",
            "Every commit waits until one is there: nothing is started, claimed or recorded here. Bring the standby "
            "back; or, if it streams, give it a name of the list (application_name in its primary_conninfo); or do "
            "without it, knowing that a failover may then lose what was acknowledged.",
            (
                look.psql("alter system set synchronous_standby_names = ''", "select pg_reload_conf()")
                + "  # as a superuser",
            ),
        )


def no_standby(look: Look) -> Iterator[Finding]:
    """A shard without a standby."""
    if not look.facts.standby and not look.rows("read_standbys"):
        yield Finding(
            Severity.NOTE,
            "no standby is connected",
            "The state of a workflow is on one shard: if this server is lost, so are its workflows since the last "
            "backup.",
            ("pg_basebackup --write-recovery-conf --checkpoint=fast -D DIRECTORY -d "
             + look.psql().removeprefix("psql ") + "  # on another machine; the role needs REPLICATION",),
        )  # fmt: skip


FAMILY = Family(
    "replication",
    "standbys follow, and hold back nothing",
    (
        ShardCheck("replication-slot", replication_slots),
        ShardCheck("standby-feedback", standby_feedback),
        ShardCheck("replication-lag", replication_lag),
        ShardCheck("synchronous-standby", synchronous_standby),
        ShardCheck("no-standby", no_standby),
    ),
)
