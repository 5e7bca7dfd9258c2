"""Plans of the hot statements: the real ones of ``sql/queries``, as engine sessions have them.

Such a session keeps generic plans and avoids sequential scans; so one that scans a large table all the same has no
index to go by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, LiteralString

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
    """On the slot with the most workflows; whether the others have the same indexes is checked elsewhere."""
    rows: dict[str, dict[str, int]] = {}
    for schema, table, live, *_ in look.rows("read_tables", (look.schemas,)):
        rows.setdefault(schema, {})[table] = live
    big = {schema: {name: count for name, count in tables.items() if count >= DOCTOR_BIG_TABLE_ROWS}
           for schema, tables in rows.items()}  # fmt: skip
    schema = max(big, key=lambda one: sum(big[one].values()), default=None)
    if schema is None or not big[schema]:
        return
    slot = int(schema.removeprefix("wf_"))
    found: dict[str, list[str]] = {}
    for name, tables in _scanned(look, hot_statements(slot)).items():
        for table in tables:
            if table in big[schema] and (name, table) not in _MAY_SCAN:
                found.setdefault(table, []).append(name)
    for table, names in sorted(found.items()):
        count = f"{len(names)} statements read" if len(names) > 1 else "a statement reads"
        yield Finding(
            Severity.CRITICAL,
            f"{count} all of {schema}.{table} ({big[schema][table]:,} rows): {some(sorted(names))}",
            "These run all the time, and each has an index to go by, which is missing here or can't be used: the more "
            "history, the slower.",
            (look.psql(f"\\d {schema}.{table}"),),
        )


def _scanned(look: Look, statements: dict[str, str]) -> dict[str, set[str]]:
    """The tables that each statement would read sequentially."""
    names = {f"doctor_{number}": name for number, name in enumerate(statements)}
    found: dict[str, set[str]] = {}
    for setting in _PLAN_SETTINGS:
        look.run(f"set local {setting} = {SETTINGS[setting]}")  # pyright: ignore[reportArgumentType]
    prepared: list[str] = []
    try:
        for handle, name in names.items():
            look.run(_text(f"prepare {handle} as {statements[name]}"))
            prepared.append(handle)
        for handle, count in look.rows("read_parameter_types"):
            nulls = ", ".join(["null"] * (count or 0))
            ((plan,),) = look.run(
                _text(f"explain (format json, costs off) execute {handle}" + (f"({nulls})" if nulls else ""))
            )
            found[names[handle]] = set(_sequential(plan if isinstance(plan, list) else json.loads(plan)))
    finally:
        # Behind a pooler the session is somebody else's next.
        if look.conn.info.transaction_status is not pq.TransactionStatus.INERROR:
            for handle in prepared:
                look.run(_text(f"deallocate {handle}"))
    return found


def _text(text: str) -> LiteralString:
    # From the package's own files.
    return text  # pyright: ignore[reportReturnType]


def _sequential(plans: list[dict[str, Any]]) -> Iterator[str]:
    for plan in plans:
        node = plan.get("Plan", plan)
        if node.get("Node Type") == "Seq Scan":
            yield node["Relation Name"]
        yield from _sequential(node.get("Plans", []))


FAMILY = Family("plans", "hot statements go by their indexes", (ShardCheck("seq-scan", scans),))
