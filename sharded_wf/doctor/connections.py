"""Connections: how many there are, and how many there may be."""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity
from sharded_wf.doctor.look import Look
from sharded_wf.limits import DOCTOR_CONNECTIONS_CRITICAL_PART, DOCTOR_CONNECTIONS_PART, DOCTOR_NAMED_MAX


def connections(look: Look) -> Iterator[Finding]:
    """The budget of the server, of this database and of this role."""
    rows = look.rows("read_connections")
    server, database, role = look.row("read_connection_limits")
    total, here, mine = (sum(row[column] for row in rows) for column in (1, 2, 3))
    by = ", ".join(f"{name} {count}" for name, count, _, _ in rows[:DOCTOR_NAMED_MAX])
    ours = next((count for name, count, _, _ in rows if name == "sharded_wf"), 0)
    executors = sum(1 for lease in look.facts.leases if lease.executor.live)
    each = f" {executors} executors work here; one more takes about {round(ours / executors)}." if executors else ""
    more = look.settings["max_connections"].value
    raised = look.psql(f"alter system set max_connections = {2 * int(more)}") + "  # then restart the server"
    for used, limit, of, mend in (
        (total, server, "the server", raised),
        (here, database, f"database {look.facts.database!r}",
         look.psql(f'alter database "{look.facts.database}" connection limit -1')),
        (mine, role, f"role {look.facts.role!r}", look.psql(f'alter role "{look.facts.role}" connection limit -1')),
    ):  # fmt: skip
        if limit >= 0 and used >= DOCTOR_CONNECTIONS_PART * limit:
            yield Finding(
                Severity.CRITICAL if used >= DOCTOR_CONNECTIONS_CRITICAL_PART * limit else Severity.WARNING,
                f"{used} of {limit} connections of {of} are taken: {by}",
                "When none is left, new executors and clients are refused, and so are those that have lost theirs, "
                f"takeovers among them.{each} A pooler (PgBouncer) is the other way out.",
                (mend,),
            )


FAMILY = Family("connections", "there is room for more", (ShardCheck("connections", connections),))
