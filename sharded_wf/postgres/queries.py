"""The SQL of the project, by name.

Every statement lives in a file of ``sql/queries``, one file per table family, where it can be read, explained and
tested without Python. A file is a row of sections::

    -- name: claim
    -- Comment lines: what it does and why it is so.
    delete from {slot}.ready where ... $1 ...;

``{slot}`` becomes the schema of a slot, ``{control}`` the control schema, and ``$1`` … are the parameters. Schemas are
filled in by plain replacement, since statements may hold braces of their own (JSON, arrays), and once per schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, LiteralString

from sharded_wf.routing.shard_map import CONTROL_SCHEMA

_NAME_LINE = re.compile(r"--\s*name:\s*(.*?)\s*$")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_SQL_TOKEN = re.compile(r"(?P<comment>--[^\n]*)|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|'[^']*'|;|[^-$';]+|.", re.DOTALL)
_LOCKS_LINE = re.compile(r"^-- locks: (.+)$", re.MULTILINE)
_MIGRATION_FILE = re.compile(r"(\d{4})_(pre|post)_([a-z0-9_]+)\.sql")


class SqlFileError(Exception):
    """A file under ``sql/`` breaks the format: a mistake of this project, found by its tests, never by users."""


@dataclass(frozen=True, slots=True)
class Query:
    """One named statement, with ``{slot}`` and ``{control}`` still open."""

    name: str
    text: str
    _filled: dict[str, LiteralString] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, schema: str = "") -> LiteralString:
        """The statement for one slot's schema (``wf_0007``); statements without ``{slot}`` need no schema."""
        filled = self._filled.get(schema)
        if filled is None:
            if not schema and "{slot}" in self.text:
                raise ValueError(f"query {self.name!r} runs on a slot: say which")
            filled = self._filled[schema] = _fill(self.text, schema)
        return filled


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of a schema. ``pre`` runs before the new code is deployed and must suit the old code too;
    ``post`` runs after the old code is gone."""

    version: int
    phase: Literal["pre", "post"]
    name: str
    text: str

    @property
    def locks(self) -> tuple[str, ...]:
        """The tables, there before it, that nobody else can write while it runs: as its line ``-- locks: …`` says."""
        found = _LOCKS_LINE.search(self.text)
        return () if found is None else tuple(name.strip() for name in found[1].split(","))

    def statements(self, schema: str = "") -> list[LiteralString]:
        """The script for one slot's schema, one statement after the other (Citus takes no two at once); a migration of
        the control schema needs no schema."""
        found = [""]
        for token in _SQL_TOKEN.finditer(self.text):
            if token[0] == ";":
                found.append("")
            elif not token["comment"]:
                found[-1] += token[0]
        return [_fill(statement.strip(), schema) for statement in found if statement.strip()]


def sql_root() -> Traversable:
    """The ``sql`` directory: inside the package when installed from a wheel, else at the top of the checkout."""
    installed = files("sharded_wf") / "sql"
    if installed.is_dir():
        return installed
    checkout = Path(__file__).resolve().parents[2] / "sql"
    if checkout.is_dir():
        return checkout
    raise SqlFileError(f"the sql directory is neither at {installed} nor at {checkout}: the installation is broken")


@cache
def load(family: str) -> dict[str, Query]:
    """The statements of ``sql/queries/<family>.sql`` by name; read once per process."""
    path = sql_root() / "queries" / f"{family}.sql"
    if not path.is_file():
        raise SqlFileError(f"there is no query family {family!r}: {path} is missing")
    return parse(path.read_text(encoding="utf-8"), source=f"sql/queries/{family}.sql")


def parse(text: str, source: str) -> dict[str, Query]:
    """The statements of one file's text, by name. ``SqlFileError`` names the source and what is wrong in it."""
    sections: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if match := _NAME_LINE.match(line):
            name = match[1]
            if not _IDENTIFIER.fullmatch(name):
                raise SqlFileError(f"{source}:{number}: {name!r} is no name for a query (use a-z, 0-9, _)")
            if name in sections:
                raise SqlFileError(f"{source}:{number}: a second query is named {name!r}")
            lines = sections[name] = []
        elif line.strip() and not line.lstrip().startswith("--"):
            if lines is None:
                raise SqlFileError(f"{source}:{number}: a statement stands before the first '-- name:' line")
            lines.append(line.rstrip())
    return {name: Query(name, _statement(name, lines, source)) for name, lines in sections.items()}


@cache
def load_migrations(kind: Literal["control", "slot", "outbox", "citus"]) -> tuple[Migration, ...]:
    """The migrations of the control schema or of a slot, in the order of their numbers; read once per process."""
    found: dict[int, Migration] = {}
    for path in (sql_root() / "migrations" / kind).iterdir():
        if not path.name.endswith(".sql"):
            continue
        match = _MIGRATION_FILE.fullmatch(path.name)
        if match is None:
            raise SqlFileError(f"migration {path.name!r} is not named NNNN_pre_what.sql or NNNN_post_what.sql")
        version = int(match[1])
        if version in found:
            raise SqlFileError(f"two {kind} migrations have the number {version:04d}")
        phase: Literal["pre", "post"] = "pre" if match[2] == "pre" else "post"
        found[version] = Migration(version, phase, match[3], path.read_text(encoding="utf-8"))
    if sorted(found) != list(range(1, len(found) + 1)):
        raise SqlFileError(f"the {kind} migrations are not numbered 1, 2, 3 …: {sorted(found)}")
    return tuple(found[version] for version in sorted(found))


def _statement(name: str, lines: list[str], source: str) -> str:
    if not lines:
        raise SqlFileError(f"{source}: query {name!r} is empty")
    lines[-1] = lines[-1].removesuffix(";").rstrip()
    if any(line.endswith(";") for line in lines):
        raise SqlFileError(f"{source}: query {name!r} has more than one statement; give each a name")
    return "\n".join(lines)


def _fill(text: str, schema: str) -> LiteralString:
    # Literal in the sense that matters to psycopg: from the package's own files, and the schema from our own rule.
    return text.replace("{control}", CONTROL_SCHEMA).replace("{slot}", schema)  # pyright: ignore[reportReturnType]
