"""Work that does not go on: nobody to run it, nobody to carry it, or set aside."""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.doctor import commands
from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, Unseen, age, some
from sharded_wf.doctor.look import Look
from sharded_wf.limits import (
    DOCTOR_NAMED_MAX,
    DOCTOR_OPEN_MAX_ROWS,
    DOCTOR_OVERDUE_SECONDS,
    DOCTOR_QUARANTINE_OLD_SECONDS,
    DOCTOR_QUARANTINE_RECENT_SECONDS,
    STATUS_COUNT_MAX_ROWS,
    STATUS_LANES_MAX,
)


def _can_run(look: Look, capability: str, queue: str) -> bool:
    return any(executor.can_run(capability, queue) for executor in look.facts.executors)


def _about(count: int, exact: bool) -> str:
    return f"{count:,}" if exact else f"at least {count:,}"


def queues_without_executor(look: Look) -> Iterator[Finding]:
    """Ready work that no live executor of this shard takes."""
    waiting: dict[tuple[str, str], tuple[int, bool]] = {}
    answers = look.each_slot("count_backlog", (STATUS_LANES_MAX, STATUS_COUNT_MAX_ROWS), family="fleet")
    for capability, queue, ready in (row for rows in answers.values() for row in rows):
        count, exact = waiting.get((capability, queue), (0, True))
        waiting[capability, queue] = (count + ready, exact and ready < STATUS_COUNT_MAX_ROWS)
    for (capability, queue), (count, exact) in sorted(waiting.items()):
        if not _can_run(look, capability, queue):
            yield Finding(
                Severity.WARNING,
                f"{_about(count, exact)} ready in queue {queue!r}, and no live executor here runs {capability!r}",
                "They wait until one does: no worker has this app (or this version of it, or serves this queue or "
                "this shard).",
                (commands.worker(look.config, capability, queue), look.cli("versions")),
            )


def unrunnable(look: Look) -> Iterator[Finding]:
    """Waiting workflows that no live executor could take up when they wake."""
    rows: dict[str, int] = dict(look.rows("estimate_workflows", (look.schemas,)))
    total = sum(rows.values())
    percent = min(100.0, 100.0 * DOCTOR_OPEN_MAX_ROWS / total) if total else 100.0
    if percent < 100:
        look.unseen.append(
            Unseen("unrunnable", look.shard.name, f"{100 - percent:.0f}% of {total:,} workflows, which were not read",
                   look.cli("versions"))
        )  # fmt: skip
    parked: dict[tuple[str, str], tuple[int, list[str]]] = {}
    for capability, queue, count, ids in (
        row for found in look.each_slot("count_parked", (percent,)).values() for row in found
    ):
        known, names = parked.get((capability, queue), (0, []))
        parked[capability, queue] = (known + count, [*names, *ids])
    for (capability, queue), (count, ids) in sorted(parked.items()):
        if not _can_run(look, capability, queue):
            yield Finding(
                Severity.WARNING,
                f"{_about(count, percent == 100)} parked workflows of {capability!r} in queue {queue!r} "
                f"({some(ids[:DOCTOR_NAMED_MAX])}), and no live executor here runs that",
                "Their timers are not fired in time, and when they wake nobody takes them up. Often the last worker of "
                "an old version was stopped too early.",
                (commands.worker(look.config, capability, queue), look.cli("versions")),
            )


def suspects(look: Look) -> Iterator[Finding]:
    """Workflows that took executors down, and wait to be run alone."""
    found = [rows[0] for rows in look.each_slot("count_suspects", (STATUS_COUNT_MAX_ROWS,)).values() if rows[0][0]]
    if found:
        ids = [id_ for row in found for id_ in row[2]]
        oldest = max(row[1] for row in found)
        yield Finding(
            Severity.WARNING,
            f"{sum(row[0] for row in found):,} workflows were running, without progress, when their executors died, "
            f"more than once: {some(ids)}; the oldest has waited {age(oldest)}",
            "Each is run alone, in a process of its own, which `sharded-wf worker` starts (an executor within your own "
            "program does not). What dies there is quarantined.",
            (look.cli("workflow", "show", ids[0]), commands.worker(look.config)),
        )


def quarantined(look: Look) -> Iterator[Finding]:
    """Workflows that took their executor down while they ran alone."""
    bounds = (DOCTOR_QUARANTINE_OLD_SECONDS, STATUS_COUNT_MAX_ROWS)
    found = sorted((row for rows in look.each_slot("read_quarantined", bounds).values() for row in rows),
                   key=lambda row: row[1])  # fmt: skip
    if found:
        recent = found[0][1] < DOCTOR_QUARANTINE_RECENT_SECONDS
        yield Finding(
            Severity.WARNING if recent else Severity.NOTE,
            f"{len(found):,} workflows were quarantined in the last {age(DOCTOR_QUARANTINE_OLD_SECONDS)}, the last one "
            f"{age(found[0][1])} ago: {some([row[0] for row in found])}",
            "They took their process down each time they ran, out of memory or in native code, and will not be run "
            "again by themselves. Mend the code, then let them go on.",
            (look.cli("workflow", "show", found[0][0]), look.cli("workflow", "resume", found[0][0])),
        )


def overdue_timers(look: Look) -> Iterator[Finding]:
    """Timers that nobody fires."""
    answers = look.each_slot("count_overdue", (DOCTOR_OVERDUE_SECONDS, STATUS_COUNT_MAX_ROWS))
    late = [rows[0] for rows in answers.values() if rows[0][0]]
    if late:
        count = sum(row[0] for row in late)
        yield Finding(
            Severity.WARNING,
            f"{_about(count, all(row[0] < STATUS_COUNT_MAX_ROWS for row in late))} timers are overdue, "
            f"the oldest by {age(max(row[1] for row in late))}",
            "Sleeps, timeouts and delayed starts are late. Any executor of this shard fires them: "
            + ("those that are here don't keep up, or something holds their rows." if look.facts.executors
               else "there is none."),
            (commands.worker(look.config),),
        )  # fmt: skip


def stuck_outbox(look: Look) -> Iterator[Finding]:
    """Messages to other slots that are not carried over."""
    answers = look.each_slot("count_outgoing", (DOCTOR_OVERDUE_SECONDS, STATUS_COUNT_MAX_ROWS))
    waiting = [rows[0] for rows in answers.values() if rows[0][0]]
    if waiting:
        receivers = [receiver for row in waiting for receiver in row[2]]
        yield Finding(
            Severity.WARNING,
            f"{sum(row[0] for row in waiting):,} messages to other slots wait, the oldest for "
            f"{age(max(row[1] for row in waiting))}, to {some(receivers)}",
            "The relay of any executor of this shard carries them, as soon as the receiver's shard answers.",
            (look.cli("shards", "status"), commands.worker(look.config)),
        )


def refused_requests(look: Look) -> Iterator[Finding]:
    """What users' own transactions asked for and what can never be done."""
    count, error = look.row("count_refused", (STATUS_COUNT_MAX_ROWS,))
    if count:
        yield Finding(
            Severity.WARNING,
            f"{count:,} starts or messages of users' transactions were refused; the last: {error}",
            "They were committed with the users' data, and never happened. Nothing removes them: look, see to it, then "
            "delete them.",
            (look.psql("select id, refused_at, error, body from wf_control.request_refused order by id"),
             look.psql("delete from wf_control.request_refused where id = …")),
        )  # fmt: skip


FAMILY = Family(
    "work",
    "whatever waits has somebody to run it",
    (
        ShardCheck("queue-without-executor", queues_without_executor),
        ShardCheck("unrunnable", unrunnable),
        ShardCheck("suspects", suspects),
        ShardCheck("quarantined", quarantined),
        ShardCheck("overdue-timers", overdue_timers),
        ShardCheck("stuck-outbox", stuck_outbox),
        ShardCheck("refused-requests", refused_requests),
    ),
)
