"""Dead rows, bloat, and the age of transaction IDs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sharded_wf.doctor import commands
from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, size, some
from sharded_wf.doctor.look import Look
from sharded_wf.limits import (
    DOCTOR_BLOAT_BYTES,
    DOCTOR_BLOAT_FACTOR,
    DOCTOR_DEAD_ROWS,
    DOCTOR_DEAD_ROWS_CRITICAL,
    DOCTOR_NAMED_MAX,
    DOCTOR_WRAPAROUND_CRITICAL_XIDS,
    DOCTOR_WRAPAROUND_FACTOR,
)

_ROW_BYTES = {"ready": 300, "wake": 200, "timer": 200, "claim": 20_000}
"""What a row and its index entries take at most, roughly. Messages are as large as users like, and not judged."""


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    live: int
    dead: int
    bytes: int
    churns: bool

    @property
    def needs(self) -> int:
        return self.live * _ROW_BYTES.get(self.name.partition(".")[2], 0)


def _tables(look: Look) -> list[_Table]:
    return [
        _Table(f"{schema}.{name}", live, dead, table + indexes, churns)
        for schema, name, live, dead, table, indexes, churns in look.rows("read_tables", (look.schemas,))
    ]


def dead_rows(look: Look) -> Iterator[Finding]:
    """Tables that are not vacuumed, or whose dead rows something still holds."""
    bad = [one for one in _tables(look) if one.dead >= DOCTOR_DEAD_ROWS and one.dead > one.live]
    bad.sort(key=lambda one: -one.dead)
    if not bad:
        return
    named = some([f"{one.name} ({one.dead:,} beside {one.live:,} live)" for one in bad])
    mend = [look.psql(*(f"vacuum {one.name}" for one in bad[:DOCTOR_NAMED_MAX]))]
    if any(one.churns for one in bad) and not look.facts.executors:
        mend.append(commands.worker(look.config))
    yield Finding(
        Severity.CRITICAL if bad[0].dead >= DOCTOR_DEAD_ROWS_CRITICAL else Severity.WARNING,
        f"dead rows: {named}",
        "Every claim steps over the dead rows at the head of its queue, so claims become slower and slower. Executors "
        "vacuum the queues every few seconds: either none runs, or a transaction, a replication slot or a standby "
        "holds back vacuum (then that is found below, and comes first).",
        tuple(mend),
    )


def bloat(look: Look) -> Iterator[Finding]:
    """Queues that are far larger than what they hold: vacuum empties pages, and keeps them."""
    bad = [
        one for one in _tables(look)
        if one.churns and one.name.partition(".")[2] in _ROW_BYTES
        and one.bytes >= DOCTOR_BLOAT_BYTES and one.bytes > DOCTOR_BLOAT_FACTOR * one.needs
    ]  # fmt: skip
    bad.sort(key=lambda one: -one.bytes)
    if bad:
        named = some([f"{one.name} ({size(one.bytes)} for {one.live:,} rows)" for one in bad])
        yield Finding(
            Severity.WARNING,
            f"bloat: {named}",
            "Looks over a queue read its empty pages again and again, and so does every vacuum. VACUUM FULL rewrites "
            "the few rows that are left; it locks the table, for milliseconds if it is as empty as this.",
            (look.psql("set lock_timeout = '2s'", *(f"vacuum full {one.name}" for one in bad[:DOCTOR_NAMED_MAX])),),
        )


def wraparound(look: Look) -> Iterator[Finding]:
    """Transaction IDs that will run out."""
    most = int(look.settings["autovacuum_freeze_max_age"].value)
    multi_most = int(look.settings["autovacuum_multixact_freeze_max_age"].value)
    for database, xids, multis, ours, may_connect in look.rows("read_wraparound"):
        late = xids > DOCTOR_WRAPAROUND_FACTOR * most or multis > DOCTOR_WRAPAROUND_FACTOR * multi_most
        if not late:
            continue
        critical = max(xids, multis) > DOCTOR_WRAPAROUND_CRITICAL_XIDS
        left = 2_147_483_648 - max(xids, multis)
        freeze = look.psql("vacuum (freeze)", database=None if ours else database)
        let_in, shut = (
            look.psql(f'alter database "{database}" allow_connections {word}') for word in ("true", "false")
        )
        yield Finding(
            Severity.CRITICAL if critical else Severity.WARNING,
            f"database {database!r}: its oldest transaction is {xids:,} transactions old (multixacts: {multis:,}); "
            f"autovacuum should have seen to it at {most:,} ({multi_most:,})",
            f"{left:,} transactions from here the server refuses every write of every database. What holds back vacuum "
            "(transactions, slots, standbys: see below) comes first; then this.",
            (freeze,) if may_connect else (let_in, freeze, shut),
        )


FAMILY = Family(
    "vacuum",
    "queues are vacuumed, transaction IDs are young",
    (ShardCheck("dead-rows", dead_rows), ShardCheck("bloat", bloat), ShardCheck("wraparound", wraparound)),
)
