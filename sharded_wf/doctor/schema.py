"""Tables, indexes, and the versions of everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sharded_wf.doctor.checks import ClusterCheck, Family, Fleet, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, some
from sharded_wf.doctor.look import Look
from sharded_wf.errors import SchemaOutOfDate
from sharded_wf.limits import POSTGRES_VERSION_MIN_NUM
from sharded_wf.postgres.migrate import check_schema
from sharded_wf.routing import CONTROL_SCHEMA

_NEWEST_KNOWN_NUM = 190000
"""Tested up to, not including, this version of Postgres."""


def migrations(look: Look) -> Iterator[Finding]:
    """Tables that are older than this version needs, or newer than it can use."""
    todo = look.facts.pending
    if todo:
        needed = [step for step in todo if step.migration.phase == "pre"]
        yield Finding(
            Severity.CRITICAL if needed else Severity.WARNING,
            f"{len(todo)} migrations are to be applied: {some([step.label for step in todo])}",
            "Processes of this version refuse to start here." if needed
            else "They follow when no process of the version before runs any more; until then old columns are kept.",
            (look.cli("shards", "migrate"),),
        )  # fmt: skip
        return
    try:
        check_schema(look.conn)
    except SchemaOutOfDate as error:
        yield Finding(
            Severity.CRITICAL,
            str(error),
            "Processes of this version refuse to start here; newer ones work.",
            ("pip install --upgrade sharded-wf",),
        )


@dataclass(frozen=True, slots=True)
class _Index:
    schema: str
    table: str
    name: str
    usable: bool
    constraint: str | None
    definition: str

    def on(self, schema: str) -> str:
        """The statement that makes the same index in another slot."""
        if self.constraint is not None:
            return f"alter table {schema}.{self.table} add constraint {self.name} {self.constraint}"
        made = self.definition.replace(f" ON {self.schema}.", f" ON {schema}.")
        return made.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)


def _indexes(look: Look) -> list[_Index]:
    return [_Index(*row) for row in look.rows("read_indexes", ([CONTROL_SCHEMA, *look.schemas],))]


def invalid_indexes(look: Look) -> Iterator[Finding]:
    """Indexes whose making was interrupted: they cost, and help nobody."""
    bad = [f"{index.schema}.{index.name}" for index in _indexes(look) if not index.usable]
    if bad:
        yield Finding(
            Severity.WARNING,
            f"indexes that can't be used: {some(bad)}",
            "Each write maintains them, and no query may use them. Their making (CREATE INDEX or REINDEX CONCURRENTLY) "
            "was interrupted.",
            (look.psql(*(f"reindex index concurrently {name}" for name in bad)),),
        )


def missing_indexes(look: Look) -> Iterator[Finding]:
    """Slots without an index that most others have: all slots have the same tables."""
    schemas = look.schemas
    having: dict[tuple[str, str], dict[str, _Index]] = {}
    for index in _indexes(look):
        if index.schema in schemas:
            having.setdefault((index.table, index.name), {})[index.schema] = index
    for (table, name), there in sorted(having.items()):
        lacking = [schema for schema in schemas if schema not in there]
        if lacking and len(there) > len(lacking):
            model = next(iter(there.values()))
            yield Finding(
                Severity.CRITICAL,
                f"the index {name} of {table} is missing in {some(lacking)}",
                "Primary keys are what makes starts idempotent and results final; the others keep looks from reading "
                "whole tables.",
                (look.psql(*(model.on(schema) for schema in lacking)),),
            )


def executor_versions(fleet: Fleet) -> Iterator[Finding]:
    """Executors of several versions, or of another one than this program."""
    found: dict[str, set[str]] = {}
    rank: dict[str, tuple[int, int, list[int]]] = {}
    for facts in fleet.facts.values():
        for executor in (lease.executor for lease in facts.leases if lease.executor.live):
            found.setdefault(executor.version, set()).add(executor.executor)
            numbers = [int(number) for number in re.findall(r"\d+", executor.version)]
            rank[executor.version] = (executor.control_known, executor.slot_known, numbers)
    if len(found) > 1:
        newest = max(rank, key=lambda version: rank[version])
        older = [(name, other) for other in sorted(found) if other != newest for name in sorted(found[other])]
        host, _, pid = older[0][0].rpartition(":")
        yield Finding(
            Severity.WARNING,
            f"executors run {len(found)} versions of sharded_wf; the newest is {newest}, and not run by "
            f"{some([f'{name} ({other})' for name, other in older])}",
            "Neighbouring versions work side by side, for the time of a deployment. One that lasts has been forgotten "
            "somewhere, and keeps post migrations from being applied.",
            (f"kill -TERM {pid}  # on {host}: it drains; then start it anew with {newest}",),
        )
    elif found and fleet.version not in found:
        yield Finding(
            Severity.NOTE,
            f"executors run sharded_wf {next(iter(found))}, and this program is {fleet.version}",
            "What it examines, and the migrations it knows, are of another version than what works. In the midst of an "
            "upgrade: go on with that (docs/runbooks/upgrading.md).",
            (f"pip install sharded-wf=={next(iter(found))}",),
        )


def postgres_versions(fleet: Fleet) -> Iterator[Finding]:
    """Servers of versions that are not supported."""
    for name, facts in fleet.facts.items():
        major = facts.server_version // 10_000
        if facts.server_version < POSTGRES_VERSION_MIN_NUM:
            yield Finding(
                Severity.CRITICAL,
                f"PostgreSQL {major} is older than sharded_wf needs ({POSTGRES_VERSION_MIN_NUM // 10_000})",
                "Statements may fail at any time. Add a new server, and drain this one.",
                (fleet.cli("shards", "drain", name),),
                name,
            )
        elif facts.server_version >= _NEWEST_KNOWN_NUM:
            yield Finding(
                Severity.NOTE,
                f"PostgreSQL {major} is newer than this version of sharded_wf was tested with",
                "It probably works. A later sharded_wf is tested with it.",
                ("pip install --upgrade sharded-wf",),
                name,
            )


FAMILY = Family(
    "schema",
    "tables and indexes are complete, versions fit",
    (
        ShardCheck("migrations", migrations),
        ShardCheck("invalid-index", invalid_indexes),
        ShardCheck("missing-index", missing_indexes),
        ClusterCheck("executor-versions", executor_versions),
        ClusterCheck("postgres-version", postgres_versions),
    ),
)
