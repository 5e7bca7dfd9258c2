"""Clocks: of the shards against ours, and of executors against their shards.

Nothing that must be right depends on them (dead is what doesn't move). But timers come due, and rows are dated, by the
clocks of executors.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from sharded_wf.doctor.checks import ClusterCheck, Family, Fleet, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, age
from sharded_wf.doctor.look import Look
from sharded_wf.limits import DOCTOR_CLOCK_SKEW_CRITICAL_SECONDS, DOCTOR_CLOCK_SKEW_SECONDS, HEARTBEAT_SECONDS

_MEND = ("timedatectl set-ntp true  # or: chronyc makestep; on the machine whose clock is wrong",)


def _severity(seconds: float) -> Severity:
    return Severity.CRITICAL if seconds > DOCTOR_CLOCK_SKEW_CRITICAL_SECONDS else Severity.WARNING


def _word(seconds: float) -> str:
    return f"{age(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'}"


def clock_skew(fleet: Fleet) -> Iterator[Finding]:
    """Our own clock, if most shards say that it is off; shards whose clocks are off from ours, or from the others'."""
    skews = {name: facts.clock_ahead_seconds for name, facts in fleet.facts.items()}
    if not skews:
        return
    middle = median(skews.values())
    differ = sum(abs(ahead) > DOCTOR_CLOCK_SKEW_SECONDS for ahead in skews.values())
    if len(skews) > 1 and differ > len(skews) / 2 and abs(middle) > DOCTOR_CLOCK_SKEW_SECONDS:
        yield Finding(
            _severity(abs(middle)),
            f"this machine's clock is {_word(-middle)} that of most shards",
            "If workers run here, their timers come due at the wrong time, and what they record is dated wrongly.",
            _MEND,
        )
    else:
        middle = 0.0
    for name, ahead in skews.items():
        off = ahead - middle
        if abs(off) - fleet.facts[name].clock_error_seconds > DOCTOR_CLOCK_SKEW_SECONDS:
            yield Finding(
                _severity(abs(off)),
                f"the server's clock is {_word(off)} {'those of the other shards' if middle else 'ours'}",
                "Moments of different shards can't be compared: histories look wrong, and what the server dates itself "
                "(transactions of users, beats of moves) is taken for older or younger than it is.",
                _MEND,
                name,
            )


def executor_clocks(look: Look) -> Iterator[Finding]:
    """Executors whose beats are dated in the future, or whose beats move and are old."""
    for lease in look.facts.leases:
        if max(lease.ahead_seconds, lease.behind_seconds) <= DOCTOR_CLOCK_SKEW_SECONDS:
            continue
        off = lease.ahead_seconds or -max(lease.behind_seconds - HEARTBEAT_SECONDS, 0.0)
        yield Finding(
            _severity(abs(off)),
            f"the clock of executor {lease.executor.executor} is {_word(off)} the server's",
            "Its timers come due at the wrong time, and what it records is dated wrongly.",
            (_MEND[0].replace("the machine whose clock is wrong", lease.executor.executor.rpartition(":")[0]),),
        )


FAMILY = Family(
    "clocks",
    "shards, executors and we agree",
    (ClusterCheck("clock-skew", clock_skew), ShardCheck("executor-clock", executor_clocks)),
)
