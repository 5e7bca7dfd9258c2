"""The tables of one slot as the catalog shows them, and statements about them.

Nothing here knows the tables by name: what a migration adds is moved with the rest. Whatever has no primary key can't
be followed while it changes, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import LiteralString, cast

from psycopg import sql

from sharded_wf.errors import MoveRefused
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.queries import Query, load
from sharded_wf.routing import slot_schema

SQL = load("moves")
FENCE = "fence"
"""The one table that is not copied: each side writes its own."""
CLAIM = "claim"
"""The one table whose rows belong to no single workflow. When a slot is switched it is empty: all is given back."""
ROUTED_BY = {"workflow": "id", "ready": "id", "outbox": "sender"}
"""The column that says to which half of a slot a row goes when the slot is split; in other tables, ``workflow_id``.
(What is in the outbox may lie in any slot; by its sender, a row that is copied twice goes to the same half.)"""

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its stored columns in order, and those of its primary key with their types."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    key_types: tuple[str, ...]

    @property
    def routed_by(self) -> int:
        """Which of the columns says to which half of a slot a row goes. Raises ``MoveRefused``."""
        column = ROUTED_BY.get(self.name, "workflow_id")
        if column not in self.key:
            raise MoveRefused(f"table {self.name} has no {column!r} in its primary key: it can't be split")
        return self.columns.index(column)


@dataclass(frozen=True, slots=True)
class Names:
    """The schemas of one move. None but the first looks like a slot to anybody else."""

    slot: str
    copy: str
    changes: str
    retired: str

    @classmethod
    def of(cls, slot: int, epoch: int, into: int) -> Names:
        """The names for a move of the slot to this epoch, where it shall be the slot ``into``."""
        schema, copy = slot_schema(slot), slot_schema(into)
        return cls(schema, f"{copy}_incoming_{epoch}", f"{schema}_changes_{epoch}", f"{schema}_retired_{epoch}")


@dataclass(frozen=True, slots=True)
class Part:
    """What a slot becomes: itself on another shard, or one of the two that it is split into. ``names.copy`` is where
    that is put together. ``holds``: whether a workflow ID is of this part; None: all are."""

    slot: int
    names: Names
    holds: Callable[[str], bool] | None = None


def text_of(query: Query, names: Names, table: Table | None = None, **more: str) -> LiteralString:
    """The statement with all of its names filled in; they come from the catalog, and from our own rules."""
    text = query.text.replace("{copy}", names.copy).replace("{changes}", names.changes)
    text = text.replace("{retired}", names.retired)
    if table is not None:
        more = {
            "table": table.name,
            "columns": ", ".join(table.columns),
            "t_columns": ", ".join(f"t.{column}" for column in table.columns),
            "key": ", ".join(table.key),
            # Under other names: `order by place` would mean the text.
            "key_text": ", ".join(f"{column}::text as key_{at}" for at, column in enumerate(table.key)),
            "key_names": ", ".join(f"key_{at}" for at in range(len(table.key))),
            "key_arrays": ", ".join(f"${at}::text[]::{type_}[]" for at, type_ in enumerate(table.key_types, 1)),
            "k_is_t": " and ".join(f"k.{column} = t.{column}" for column in table.key),
            **more,
        }
    for name, value in more.items():
        text = text.replace("{" + name + "}", value)
    return Query(query.name, text).on(more.get("on", names.slot))


def read_tables(conn: Connection, schema: str) -> tuple[Table, ...]:
    """The tables of a slot, the fence left out. Raises ``MoveRefused`` if one can't be moved."""
    columns: dict[str, list[str]] = {}
    keys: dict[str, dict[int, tuple[str, str]]] = {}
    for row in conn.execute(SQL["read_columns"].on(), (schema,)).fetchall():
        table, column, type_, place = cast(tuple[str, str, str, int | None], row)
        if not _IDENTIFIER.fullmatch(table) or not _IDENTIFIER.fullmatch(column):
            raise MoveRefused(f"{schema}.{table} is no table of ours ({column!r}); move it elsewhere, then try again")
        columns.setdefault(table, []).append(column)
        if place is not None:
            keys.setdefault(table, {})[place] = (column, type_)
    columns.pop(FENCE, None)
    if without := sorted(columns.keys() - keys.keys()):
        raise MoveRefused(f"{schema}.{without[0]} has no primary key: its changes can't be followed while it is copied")
    tables: list[Table] = []
    for name, stored in columns.items():
        key = [keys[name][place] for place in sorted(keys[name])]
        tables.append(Table(name, tuple(stored), tuple(c for c, _ in key), tuple(t for _, t in key)))
    return tuple(tables)


def key_bound(table: Table, operator: str, key: tuple[str, ...] | None) -> str:
    """``(workflow_id, place) > ('a'::text, '1'::integer)``; without a key, ``true``."""
    if key is None:
        return "true"
    values = ", ".join(
        f"{sql.Literal(value).as_string(None)}::{type_}" for value, type_ in zip(key, table.key_types, strict=True)
    )
    return f"({', '.join(table.key)}) {operator} ({values})"
