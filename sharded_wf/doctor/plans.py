"""Plans of the hot statements: the real ones of ``sql/queries``, as engine sessions have them.

Such a session keeps generic plans and avoids sequential scans; so one that scans a large table all the same has no
index to go by.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import pq

from sharded_wf.doctor.checks import Family, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity, some
from sharded_wf.doctor.look import Look
from sharded_wf.limits import DOCTOR_BIG_TABLE_ROWS
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import SETTINGS
from sharded_wf.routing import slot_schema
from sharded_wf.store import slots

HOT_FAMILIES = ("claims", "starts", "steps", "outcomes", "timers", "messages")
_MAY_SCAN = {("give_back_lease", "claim")}
"""Read whole, when an executor says goodbye: a row for each batch that is under way."""
_PLAN_SETTINGS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "plan_cache_mode", "jit")


def hot_statements(slot: int) -> dict[str, str]:
    """What executors and clients send all the time, by name."""
    schema = slot_schema(slot)
    found: dict[str, str] = {name: query.on(schema) for family in HOT_FAMILIES for name, query in load(family).items()}
    return found | {"peek": slots.peek({slot: schema}).query.on()}


def scans(look: Look) -> Iterator[Finding]:
    """On the slot with the most rows; whether the others have the same indexes is checked elsewhere. A node of a Citus
    cluster shows no such plans."""
    if look.config.coordinator is not None:
        return
    rows: dict[str, dict[str, int]] = {schema: {} for schema in look.schemas}
    for schema, table, live, *_ in look.rows("read_tables", (look.schemas,)):
        rows[schema][table] = live
    if not rows:
        return
    schema = max(rows, key=lambda one: sum(rows[one].values()))
    plans = _plans(look, schema)
    found: dict[str, list[str]] = {}
    for name, tables in plans.whole.items():
        for table in tables:
            if rows[schema][table] >= DOCTOR_BIG_TABLE_ROWS and (name, table) not in _MAY_SCAN:
                found.setdefault(table, []).append(name)
    for table, names in sorted(found.items()):
        count = f"{len(names)} statements read" if len(names) > 1 else "a statement reads"
        yield Finding(
            Severity.CRITICAL,
            f"{count} all of {schema}.{table} ({rows[schema][table]:,} rows): {some(sorted(names))}",
            "These run all the time, and each has an index to go by, which is missing here or can't be used: the more "
            "history, the slower.",
            (look.psql(f"\\d {schema}.{table}"),),
        )
    for reason, names in sorted(plans.refused.items()):
        yield Finding(
            Severity.CRITICAL,
            f"Postgres refuses {some(sorted(names))} on {schema}: {reason}",
            "These run all the time. The tables are not as their migrations made them: something is missing, or was "
            "changed by hand.",
            (look.psql(f"\\d {schema}.*"),),
        )


@dataclass(frozen=True, slots=True)
class _Plans:
    """``whole``: the tables of which each statement would read all, or all of an index; ``refused``: the statements
    that can't be planned, by reason."""

    whole: dict[str, set[str]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)


def _plans(look: Look, schema: str) -> _Plans:
    leading = {index: (column, table) for index, column, table in look.rows("read_leading_columns", (schema,))}
    found = _Plans()
    for setting in _PLAN_SETTINGS:
        look.run(_text(f"set local {setting} = {SETTINGS[setting]}"))
    handle = f"doctor_{uuid.uuid4().hex}"  # behind a pooler, the session has been others'
    for name, statement in hot_statements(int(schema.removeprefix("wf_"))).items():
        prepared = False
        try:
            with look.conn.transaction():
                look.run(_text(f"prepare {handle} as {statement}"))
                prepared = True
                (count,) = look.row("count_parameters", (handle,))
                nulls = f"({', '.join(['null'] * count)})" if count else ""
                ((plan,),) = look.run(_text(f"explain (format json, costs off) execute {handle}{nulls}"))
            found.whole[name] = set(_read_whole(plan[0]["Plan"], leading))
        except psycopg.errors.InsufficientPrivilege:
            raise
        except psycopg.ProgrammingError as error:
            found.refused.setdefault(error.diag.message_primary or str(error), []).append(name)
        finally:
            # It outlives the savepoint, and behind a pooler the session.
            if prepared and look.conn.info.transaction_status is pq.TransactionStatus.INTRANS:
                look.run(_text(f"deallocate {handle}"))
    return found


def _text(text: str) -> LiteralString:
    # From the package's own files.
    return text  # pyright: ignore[reportReturnType]


def _read_whole(node: dict[str, Any], leading: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """The tables that are read from end to end, by themselves or by an index whose first column is not asked for. What
    is below a limit ends early."""
    if node["Node Type"] == "Limit":
        return
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    elif node.get("Index Name") in leading:
        column, table = leading[node["Index Name"]]
        if not re.search(rf"\b{column}\b", node.get("Index Cond", "")):
            yield table
    for below in node.get("Plans", []):
        yield from _read_whole(below, leading)


FAMILY = Family("plans", "hot statements go by their indexes", (ShardCheck("seq-scan", scans),))
