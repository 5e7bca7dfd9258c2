"""Settings of the server, as our own sessions have them: roles and databases have settings of their own."""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, age
from sharded_wf.doctor.look import Look
from sharded_wf.doctor.reach import turn_back
from sharded_wf.limits import DOCTOR_CHECKPOINTS_MIN

_FORGETS = {
    "fsync": "What was committed, and the whole database, may be gone after the machine fails.",
    "full_page_writes": "Pages that were half written when the machine failed can't be repaired: data are lost.",
    "synchronous_commit": "Commits are acknowledged before they are on disk: after a crash, starts and results that "
    "were acknowledged may be missing.",
}


def durability(look: Look) -> Iterator[Finding]:
    """What was acknowledged must be on disk."""
    for name, why in _FORGETS.items():
        setting = look.settings[name]
        if setting.value == "off":
            what = f"{name} is off (from the {setting.source})"
            yield Finding(Severity.CRITICAL, what, why, (look.psql(*_turn_on(look, name)),))


def autovacuum_off(look: Look) -> Iterator[Finding]:
    """Executors vacuum the queues, and nothing else."""
    for name in ("autovacuum", "track_counts"):
        if look.settings[name].value == "off":
            yield Finding(
                Severity.WARNING,
                f"{name} is off",
                "Executors vacuum the queues only. Histories, and the planner's statistics of them, are left to "
                "autovacuum: without it tables bloat, and one day the server stops to save its transaction IDs.",
                (look.psql(*_turn_on(look, name)),),
            )


def wal_level(look: Look) -> Iterator[Finding]:
    """Without enough in the WAL there is no standby and no archive."""
    if look.settings["wal_level"].value == "minimal":
        yield Finding(
            Severity.WARNING,
            "wal_level is minimal",
            "Neither a standby nor a backup that can be rolled forward is possible: if this server is lost, so is all "
            "that was done since the last dump.",
            (look.psql("alter system reset wal_level") + "  # then restart the server",),
        )


def checkpoints(look: Look) -> Iterator[Finding]:
    """Checkpoints should come by the clock, not because the WAL is full."""
    since, timed, forced = look.row(
        "read_checkpoints_17" if look.facts.server_version >= 170000 else "read_checkpoints"
    )
    megabytes = int(look.settings["max_wal_size"].value)
    # Commands (CHECKPOINT, DROP DATABASE, base backups) force some as well; WAL forces one for half of max_wal_size.
    forced = min(forced, int(look.row("read_wal_bytes")[0] / (megabytes * 2**20 / 4)))
    if forced >= DOCTOR_CHECKPOINTS_MIN and forced > timed:
        span = f" in {age(since)}" if since is not None else ""
        yield Finding(
            Severity.WARNING,
            f"about {forced:,} checkpoints were forced by WAL and {timed:,} came on schedule{span}; max_wal_size is "
            f"{megabytes} MB",
            "Each checkpoint makes the next change of every page write that whole page to the WAL. More room for WAL "
            "means fewer of them, and more throughput.",
            (look.psql(f"alter system set max_wal_size = '{4 * megabytes}MB'", "select pg_reload_conf()",
                       f"select pg_stat_reset_shared('{_CHECKPOINTER[look.facts.server_version >= 170000]}')"),),
        )  # fmt: skip


def pending_restart(look: Look) -> Iterator[Finding]:
    """Settings that were changed and are not in force."""
    if changed := [name for name, _ in look.rows("read_pending_restart")]:
        yield Finding(
            Severity.NOTE,
            f"changed, and in force only after a restart: {', '.join(changed)}",
            "Who reads the configuration believes what is not so; and the next restart, perhaps in an emergency, "
            "brings a server that was never tried out.",
            (look.psql("select name, setting, sourcefile, sourceline from pg_settings where pending_restart"),),
        )


def _turn_on(look: Look, name: str) -> tuple[str, ...]:
    """A default of all of these is on."""
    return turn_back(look, name) if "file" not in look.settings[name].source else (
        f"alter system set {name} = on", "select pg_reload_conf()")  # fmt: skip


_CHECKPOINTER = {True: "checkpointer", False: "bgwriter"}

FAMILY = Family(
    "settings",
    "commits are durable, autovacuum is on, WAL has room",
    (
        ShardCheck("durability", durability),
        ShardCheck("autovacuum-off", autovacuum_off),
        ShardCheck("wal-level", wal_level),
        ShardCheck("checkpoints", checkpoints),
        ShardCheck("pending-restart", pending_restart),
    ),
)
