"""What a session sends, and what comes back; and what of it is different on a node of a Citus cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import pq

from sharded_wf.postgres.queries import Query, load

_GUARD = load("citus")["guard"]
_FIRST_AFTER = 50


def _by_name() -> dict[str, list[Query]]:
    def place(query: Query) -> int:
        return int(query.name.partition("__")[2] or _FIRST_AFTER - 1)

    found: dict[str, list[Query]] = {}
    for query in sorted(load("on_citus").values(), key=place):
        found.setdefault(query.name.partition("__")[0], []).append(query)
    return found


_ON_CITUS = _by_name()
_SLOT_PREFIX = "wf_"


@dataclass(frozen=True, slots=True)
class Statement:
    """One named query on one schema, with its parameters in binary form (``None`` is null). ``parts``: the same
    question in several, for a node of a Citus cluster, which can't be asked about many slots at once."""

    query: Query
    schema: str
    params: Sequence[bytes | None] = ()
    parts: Sequence[Statement] = ()


class Result:
    """What one statement gave: its rows in binary form, and how many rows it touched."""

    __slots__ = ("_result", "count")

    def __init__(self, result: pq.abc.PGresult) -> None:
        self._result = result
        self.count = result.command_tuples or 0

    def __len__(self) -> int:
        return self._result.ntuples

    def rows(self) -> list[tuple[Any, ...]]:
        """Every row; a value is ``bytes`` in binary format, or ``None``. (Which may be null, the statement knows.)"""
        value, width = self._result.get_value, self._result.nfields
        if not width:
            return [()] * self._result.ntuples
        columns = range(width)
        values = iter([value(row, column) for row in range(self._result.ntuples) for column in columns])
        return list(zip(*[values] * width, strict=True))

    def value(self) -> bytes | None:
        """The first column of the first row; ``None`` if there is no row."""
        return self._result.get_value(0, 0) if self._result.ntuples else None


class Joined(Result):
    """The answers to the parts of a statement."""

    def __init__(self, parts: Sequence[Result]) -> None:
        self._parts = parts
        self.count = sum(part.count for part in parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def rows(self) -> list[tuple[Any, ...]]:
        return [row for part in self._parts for row in part.rows()]


def on_citus(statement: Statement) -> tuple[Statement, ...]:
    """The statement in words that a node of a Citus cluster understands: one, or several, for one transaction. The one
    that answers has the statement's own name."""
    others = _ON_CITUS.get(statement.query.name)
    if others is None:
        return (statement,)
    return tuple(Statement(other, statement.schema, statement.params) for other in others)


def guard_of(statements: Iterable[Statement]) -> list[Statement]:
    """What must end a transaction of these statements on a node of a Citus cluster: it raises what a missing table
    would, if one of their slots is served elsewhere."""
    schemas = dict.fromkeys(statement.schema for statement in statements)
    slots = [schema[len(_SLOT_PREFIX) :] for schema in schemas if schema[len(_SLOT_PREFIX) :].isdigit()]
    return [Statement(_GUARD, "", (f"{{{','.join(slots)}}}".encode(),))] if slots else []
