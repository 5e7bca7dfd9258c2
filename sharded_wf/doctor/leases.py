"""Executors that have stopped, and what nobody has taken over."""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.doctor import commands
from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, age
from sharded_wf.doctor.look import Look
from sharded_wf.limits import DOCTOR_OVERDUE_SECONDS, LEASE_SECONDS


def stuck_leases(look: Look) -> Iterator[Finding]:
    """Leases whose beat stands still, and that nobody takes away."""
    dead = [lease.executor for lease in look.facts.leases if not lease.executor.live]
    others = any(lease.executor.live for lease in look.facts.leases)
    for one in dead:
        if others and one.beat_age_seconds < 3 * LEASE_SECONDS:
            continue  # it is just being taken over
        mend = (
            (look.psql("select pid, state, query from pg_stat_activity where query like '%wf_control.lease%'"),)
            if others
            else (commands.worker(look.config, one.capabilities[0] if one.capabilities else None),)
        )
        yield Finding(
            Severity.CRITICAL if others else Severity.WARNING,
            f"executor {one.executor} was last heard of {age(one.beat_age_seconds)} ago, and still has its lease",
            "What it held waits. "
            + ("Another executor is here and should have taken over: something holds the lease's row."
               if others else "No other executor is here to take over: any worker will do it when it starts."),
            mend,
        )  # fmt: skip


def orphaned_claims(look: Look) -> Iterator[Finding]:
    """Claims whose lease is gone."""
    found = [rows[0] for rows in look.each_slot("count_orphaned").values() if rows[0][0]]
    oldest = max((row[2] for row in found), default=0.0)
    if found and oldest > DOCTOR_OVERDUE_SECONDS:
        yield Finding(
            Severity.WARNING,
            f"{sum(row[1] for row in found):,} workflows are claimed by executors that are gone, for {age(oldest)}",
            "They wait until an executor of this shard finds them, which every one does when it starts.",
            (commands.worker(look.config),),
        )


FAMILY = Family(
    "leases",
    "every executor's heart beats, nothing is orphaned",
    (ShardCheck("stuck-lease", stuck_leases), ShardCheck("orphaned-claims", orphaned_claims)),
)
