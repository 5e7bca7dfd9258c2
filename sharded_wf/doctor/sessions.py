"""Sessions that hold back vacuum, or each other."""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, age
from sharded_wf.doctor.look import Look
from sharded_wf.limits import (
    DOCTOR_IDLE_TRANSACTION_SECONDS,
    DOCTOR_LOCK_WAIT_SECONDS,
    DOCTOR_LONG_CRITICAL_FACTOR,
    DOCTOR_LONG_TRANSACTION_SECONDS,
    DOCTOR_PREPARED_TRANSACTION_SECONDS,
)

_PINS = (
    "Until it ends, vacuum removes no row that died since it began, in any table of this database: queues fill with "
    "dead rows, and claims become slower and slower."
)


def _severity(seconds: float, bound: float) -> Severity:
    return Severity.CRITICAL if seconds > DOCTOR_LONG_CRITICAL_FACTOR * bound else Severity.WARNING


def _who(pid: int, user: str, application: str) -> str:
    return f"session {pid} ({' of '.join(filter(None, (application, user))) or 'nameless'})"


def long_transactions(look: Look) -> Iterator[Finding]:
    """Transactions that have been at work for long."""
    for pid, user, application, state, seconds, _, query, xids in look.rows("read_transactions"):
        if not state.startswith("idle in transaction") and seconds > DOCTOR_LONG_TRANSACTION_SECONDS:
            yield Finding(
                _severity(seconds, DOCTOR_LONG_TRANSACTION_SECONDS),
                f"{_who(pid, user, application)} has been in one transaction for {age(seconds)}, "
                f"{xids:,} transactions ago; it runs: {query}",
                _PINS,
                (look.psql(f"select pg_terminate_backend({pid})"),),
            )
    hidden = look.row("count_hidden_sessions")[0]
    if hidden:
        look.hidden("long-transaction", f"{hidden} sessions of other roles: how long their transactions last")


def idle_in_transaction(look: Look) -> Iterator[Finding]:
    """Sessions that began a transaction and do nothing in it."""
    for pid, user, application, state, _, seconds, query, xids in look.rows("read_transactions"):
        if state.startswith("idle in transaction") and seconds > DOCTOR_IDLE_TRANSACTION_SECONDS:
            yield Finding(
                _severity(seconds, DOCTOR_IDLE_TRANSACTION_SECONDS),
                f"{_who(pid, user, application)} has been {state} for {age(seconds)}; "
                f"its snapshot is {xids:,} transactions old; its last statement: {query}",
                f"It does nothing and keeps its locks. {_PINS}",
                (
                    look.psql(f"select pg_terminate_backend({pid})"),
                    look.psql(f"alter role \"{user}\" set idle_in_transaction_session_timeout = '60s'")
                    + "  # so that it does not happen again",
                ),
            )


def prepared_transactions(look: Look) -> Iterator[Finding]:
    """Prepared transactions that nobody ends. They survive restarts."""
    for gid, owner, database, seconds, xids in look.rows("read_prepared"):
        if seconds > DOCTOR_PREPARED_TRANSACTION_SECONDS:
            quoted = "'" + gid.replace("'", "''") + "'"
            yield Finding(
                _severity(seconds, DOCTOR_PREPARED_TRANSACTION_SECONDS),
                f"transaction {gid!r} of {owner}, in database {database!r}, was prepared {age(seconds)} ago "
                f"({xids:,} transactions) and neither committed nor rolled back",
                f"It keeps its locks, also over a restart. {_PINS} sharded_wf prepares none: ask whoever did.",
                (look.psql(f"rollback prepared {quoted}", database=database),),
            )


def lock_waits(look: Look) -> Iterator[Finding]:
    """Sessions that wait for a lock, and who holds it."""
    for pid, application, query, seconds, holders, names, states in look.rows("read_blocked"):
        if seconds > DOCTOR_LOCK_WAIT_SECONDS:
            held = ", ".join(
                f"{holder} ({name or 'nameless'}, {state or 'hidden'})"
                for holder, name, state in zip(holders, names, states, strict=True)
            )
            yield Finding(
                Severity.WARNING,
                f"session {pid} ({application or 'nameless'}) has waited {age(seconds)} for a lock that {held} holds; "
                f"it runs: {query}",
                "What waits here may be a claim, a takeover or the move of a slot; whoever comes after it waits too.",
                (look.psql(*(f"select pg_terminate_backend({holder})" for holder in holders)),),
            )


FAMILY = Family(
    "sessions",
    "nobody holds back vacuum, nobody waits for a lock",
    (
        ShardCheck("long-transaction", long_transactions),
        ShardCheck("idle-in-transaction", idle_in_transaction),
        ShardCheck("prepared-transaction", prepared_transactions),
        ShardCheck("lock-wait", lock_waits),
    ),
)
