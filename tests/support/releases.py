"""The next release of sharded_wf, as far as its tables go: a copy of this tree with two more migrations for slots and
one for the control schema, and with statements that use what these add.

It goes the usual way of a change that old code could not bear. ``pre`` adds columns (with defaults, so that rows of the
old code are fine), the new code writes and reads the new ones alone, and ``post`` removes the old one and the default:
what the old code writes is refused from then on.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from sharded_wf.postgres.queries import load_migrations
from tests.support.processes import PROJECT, WorkerProcess

VERSION = "99.0.0"
PRE = """
-- locks: claim, workflow
alter table {slot}.claim add column since timestamptz not null default clock_timestamp(),
    alter column claimed_at set default clock_timestamp();
alter table {slot}.workflow add column region text not null default 'before';
create table {slot}.stay (workflow_id text primary key);
"""
POST = """
-- locks: claim, workflow
alter table {slot}.claim drop column claimed_at;
alter table {slot}.workflow alter column region drop default;
"""
CONTROL_PRE = """
-- locks: waiter
alter table {control}.waiter add column since timestamptz not null default clock_timestamp();
"""
RUN_HERE = "import sys; sys.path.insert(0, {tree!r})\n"


@dataclass(frozen=True)
class Release:
    """A tree of the code. ``tree``: where; None: ours."""

    tree: Path | None = None

    @property
    def path(self) -> str:
        """The Python path of a process that runs it, with this project's tests."""
        return f"{self.tree}:{PROJECT}" if self.tree else str(PROJECT)

    def cli(self, *arguments: str) -> WorkerProcess:
        """``sharded-wf …`` of this release."""
        return self.run("from sharded_wf.cli import main; main()", *arguments)

    def run(self, code: str, *arguments: str, environment: dict[str, str] | None = None) -> WorkerProcess:
        """A program that imports this release."""
        given = {**(environment or {}), "PYTHONPATH": self.path}
        where = "" if self.tree is None else RUN_HERE.format(tree=str(self.tree))
        return WorkerProcess(where + textwrap.dedent(code), *arguments, environment=given)


def make_next(tree: Path) -> Release:
    """Write the next release there."""
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(PROJECT / "sharded_wf", tree / "sharded_wf", ignore=ignored)
    shutil.copytree(PROJECT / "sql", tree / "sql")
    metadata = tree / f"sharded_wf-{VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sharded-wf\nVersion: {VERSION}\n")
    slot, control = len(load_migrations("slot")), len(load_migrations("control"))
    for name, text in (
        (f"slot/{slot + 1:04d}_pre_region.sql", PRE),
        (f"slot/{slot + 2:04d}_post_region.sql", POST),
        (f"control/{control + 1:04d}_pre_waiters.sql", CONTROL_PRE),
    ):
        (tree / "sql" / "migrations" / name).write_text(text)
    changed = 0
    for path in sorted((tree / "sql" / "queries").iterdir()):
        text = path.read_text()
        text, claims = re.subn("claimed_at", "since", text)
        text, rows = re.subn(
            r"(insert into \{slot\}\.workflow \()(.*?\)\n\s+(?:select |values \())", r"\1region, \2'after', ", text
        )
        path.write_text(text)
        changed += claims + rows
    assert changed >= 8, "the statements that the next release changes are not where they were"
    return Release(tree)
