"""The examination: every check on every shard, all shards at once.

A check that fails is not the end of it: what it may not see, or what took too long, is noted; a shard that is
away, or breaks off, is a finding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TypeVar

import psycopg

from sharded_wf.clock import SYSTEM_CLOCK, Clock
from sharded_wf.cluster.citus import resolve
from sharded_wf.cluster.fanout import Answers, reason_of
from sharded_wf.cluster.shard_map import Record, check_identity, read_record
from sharded_wf.cluster.timelines import ask_primaries
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.doctor.checks import ClusterCheck, Fleet, ShardCheck
from sharded_wf.doctor.commands import cli, psql
from sharded_wf.doctor.finding import Finding, Severity, Unseen
from sharded_wf.doctor.look import Facts, Look
from sharded_wf.doctor.registry import FAMILIES, WRONG_DATABASE
from sharded_wf.errors import ConfigError, ShardUnavailable
from sharded_wf.limits import DOCTOR_DEADLINE_SECONDS
from sharded_wf.postgres.connect import Connection

T = TypeVar("T")

_AWAY = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
_SLOW = (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable)


@dataclass(slots=True)
class _Examined:
    """What one shard's examination came to. ``facts``: None if it is not part of the cluster."""

    facts: Facts | None = None
    findings: list[Finding] = field(default_factory=list)
    unseen: list[Unseen] = field(default_factory=list)
    broke_off: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The result. ``examined``: the shards that answered; ``findings``: the worst first within each family."""

    cluster: str
    shards: tuple[str, ...]
    examined: tuple[str, ...]
    slots: int
    seconds: float
    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]

    @property
    def severity(self) -> Severity | None:
        """The worst of all findings; None: nothing was found."""
        return max((finding.severity for finding in self.findings), default=None)

    @property
    def silent(self) -> tuple[str, ...]:
        """The shards of which nothing is known: they are away, or the database is not theirs."""
        wrong = {finding.shard for finding in self.of([WRONG_DATABASE])}
        return tuple(name for name in self.shards if name not in self.examined or name in wrong)

    def of(self, checks: Iterable[str]) -> tuple[Finding, ...]:
        """The findings of these checks."""
        names = set(checks)
        return tuple(finding for finding in self.findings if finding.check in names)


def examine(config: ClusterConfig, shards: Sequence[str] = (), *, clock: Clock = SYSTEM_CLOCK) -> Report:
    """Examine the cluster, or only these shards of it. Blocks for some seconds, at most ``DOCTOR_DEADLINE_SECONDS`` and
    what connecting takes. Only reads. Raises ``ConfigError`` if a shard that was named does not exist."""
    began = time.monotonic()
    config = resolve(config)
    asked = [config.shard(name) for name in dict.fromkeys(shards)] or list(config.shards)
    # The others are connected to as well: they know of these shards' old primaries.
    heard, _ = ask_primaries(
        config.shards,
        lambda shard, conn: _examine_shard(config, shard, conn, clock) if shard in asked else None,
        purpose="doctor",
        deadline_seconds=DOCTOR_DEADLINE_SECONDS,
    )
    answers = Answers(
        {name: one for name, one in heard.given.items() if one is not None},
        {shard.name: heard.failed[shard.name] for shard in asked if shard.name in heard.failed},
    )
    silent = {name: _reason(error) for name, error in answers.failed.items()}
    silent |= {name: one.broke_off for name, one in answers.given.items() if one.broke_off is not None}
    facts = {name: one.facts for name, one in answers.given.items() if one.facts is not None}
    whole = len(asked) == len(config.shards)
    fleet = Fleet(config, facts, silent, version("sharded-wf"), whole)
    findings = [finding for one in answers.given.values() for finding in one.findings]
    for family in FAMILIES:
        for check in family.checks:
            if isinstance(check, ClusterCheck):
                findings += [replace(finding, check=check.name) for finding in check.run(fleet)]
    return Report(
        config.name,
        tuple(shard.name for shard in asked),
        tuple(shard.name for shard in asked if shard.name in answers.given),
        len(fleet.placement),
        time.monotonic() - began,
        tuple(sorted(findings, key=_order([shard.name for shard in config.shards]))),
        tuple(unseen for one in answers.given.values() for unseen in one.unseen),
    )


def _examine_shard(config: ClusterConfig, shard: ShardConfig, conn: Connection, clock: Clock) -> _Examined:
    found = _Examined()
    look = Look(config, shard, conn, clock)
    try:
        with look.reading():
            record = read_record(conn)
        wrong = _wrong_database(config, shard, record)
        if wrong is not None:
            found.findings.append(wrong)
            return found
        found.facts = _again_if_moved(lambda: look.gather(record))
        for family in FAMILIES:
            for check in family.checks:
                if isinstance(check, ShardCheck):
                    found.findings += _make(check, look)
    except psycopg.errors.InsufficientPrivilege as error:
        grant = psql(shard, f'grant pg_monitor, pg_read_all_data to "{conn.info.user}"') + "  # as a superuser"
        look.unseen.append(Unseen("everything", shard.name, f"permission denied ({_first_line(error)})", grant))
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        found.broke_off = f"it broke off: {reason_of(error)}"
    found.unseen = look.unseen
    return found


def _wrong_database(config: ClusterConfig, shard: ShardConfig, record: Record) -> Finding | None:
    def finding(what: str, why: str, *mend: str) -> Finding:
        return Finding(Severity.CRITICAL, what, why, mend, shard.name, WRONG_DATABASE)

    if record.identity is None:
        return finding(
            f"{shard.address} is not part of the cluster",
            "It is a new shard that has not joined yet, or the DSN leads to the wrong database, or its data are lost.",
            cli(config, "shards", "add", shard.name, "--dry-run"),
        )
    try:
        check_identity(config, shard, record.identity)
    except ConfigError as error:
        return finding(
            str(error), "Every process that has this configuration refuses to start.", cli(config, "shards", "status")
        )
    return None


def _make(check: ShardCheck, look: Look) -> list[Finding]:
    """One check on one shard. Raises what says that the connection is gone."""
    seen = len(look.unseen)

    def run() -> list[Finding]:
        del look.unseen[seen:]
        with look.reading():
            return [replace(one, check=check.name, shard=look.shard.name) for one in check.run(look)]

    try:
        return _again_if_moved(run)
    except psycopg.errors.InsufficientPrivilege as error:
        why = f"permission denied ({_first_line(error)}); the role of the workers may see it"
        look.unseen.append(Unseen(check.name, look.shard.name, why))
    except _SLOW as error:
        look.unseen.append(Unseen(check.name, look.shard.name, f"it took too long: {_first_line(error)}"))
    except (psycopg.OperationalError, psycopg.InterfaceError):
        raise
    except psycopg.Error as error:
        look.unseen.append(Unseen(check.name, look.shard.name, f"it failed: {_first_line(error)}"))
    return []


def _again_if_moved(work: Callable[[], T]) -> T:
    """A slot may move away while it is looked at; the second time it is not there."""
    try:
        return work()
    except _AWAY:
        return work()


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).partition("\n")[0]


def _reason(error: Exception) -> str:
    if isinstance(error, ShardUnavailable):
        return error.reason
    if isinstance(error, psycopg.Error):
        return _first_line(error)
    raise error


def _order(shards: Sequence[str]) -> Callable[[Finding], tuple[int, int]]:
    places = {name: place for place, name in enumerate(shards)}
    return lambda finding: (-finding.severity, places.get(finding.shard or "", -1))
