"""``sharded-wf retention``: what is old and would go; remove it now."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from sharded_wf.cli.history import moment
from sharded_wf.cli.options import ClusterOption, DryRun, JsonOption, Yes, find_cluster
from sharded_wf.cli.output import confirm, console, print_error, print_json, table
from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ConfigError
from sharded_wf.maintenance.sweep_once import Swept, sweep_once
from sharded_wf.retention import Retention, parse_age

app = typer.Typer(help="Retention: what finished workflows are old, and removing them now.", no_args_is_help=True)

REPORT_EVERY_SECONDS = 0.1
OlderThan = Annotated[
    str | None,
    typer.Option(
        metavar="AGE",
        help='For every queue and workflow, instead of what shards.toml says: "30 days", "12h".',
        show_default=False,
    ),
]


@app.command()
def status(cluster: ClusterOption = None, older_than: OlderThan = None, json: JsonOption = False) -> None:
    """Count what is old enough to go, by queue and workflow. Removes nothing, and looks at a million rows a shard."""
    config = find_cluster(cluster)
    _show(_sweep(config, _policy(config, older_than, None), dry_run=True, quiet=json), json, dry_run=True)


@app.command()
def run(
    cluster: ClusterOption = None,
    older_than: OlderThan = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what goes to JSON Lines files here before.", show_default=False),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: JsonOption = False,
) -> None:
    """Remove finished workflows that are old enough, now; counts them and asks before. Safe to interrupt, to repeat,
    and beside running workers."""
    config = find_cluster(cluster)
    policy = _policy(config, older_than, export)
    if dry_run or not yes:
        planned = _sweep(config, policy, dry_run=True, quiet=json)
        if dry_run or not json:
            _show(planned, json, dry_run=True)
        if dry_run or not (planned.old or json):
            return
        kept = "" if policy.export is None else f", after writing them to {policy.export}"
        confirm(yes, f"Remove them for good{kept}?")
    _show(_sweep(config, policy, dry_run=False, quiet=json), json, dry_run=False)


def _policy(config: ClusterConfig, older_than: str | None, export: Path | None) -> Retention:
    if older_than is not None:
        age = parse_age(older_than, "--older-than")
        given = Retention(age, export=None if config.retention is None else config.retention.export)
    elif config.retention is not None:
        given = config.retention
    else:
        raise ConfigError(
            f"{config.source} says nothing about retention, so everything is kept; pass --older-than AGE, or write "
            '[retention] and below it default = "30 days"'
        )
    return given if export is None else dataclasses.replace(given, export=export)


def _sweep(config: ClusterConfig, policy: Retention, *, dry_run: bool, quiet: bool) -> Swept:
    out = console()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} slots"),
        console=out, transient=True, disable=quiet or not out.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("looking", total=None)
        shown = 0.0

        def report(swept: Swept) -> None:
            nonlocal shown
            if time.monotonic() - shown > REPORT_EVERY_SECONDS:
                shown = time.monotonic()
                text = f"{swept.old:,} old" if dry_run else f"{swept.deleted:,} removed"
                bar.update(task, completed=swept.looked_at_slots, total=swept.slots, description=text)

        return asyncio.run(sweep_once(config, policy, dry_run=dry_run, report=report))


def _show(swept: Swept, json: bool, *, dry_run: bool) -> None:
    groups = sorted(swept.groups.items(), key=lambda item: (-item[1].count, item[0]))
    if json:
        print_json(
            {
                "old": swept.old,
                "deleted": swept.deleted,
                "complete": swept.complete and not swept.failed,
                "failed": swept.failed,
                "groups": [
                    {"queue": queue, "workflow": name, "count": group.count, "oldest_created_at_us": group.oldest}
                    for (queue, name), group in groups
                ],
            }
        )
    else:
        out = console()
        rows = table("queue", "workflow", "old", "oldest", numbers=frozenset({"old"}))
        for (queue, name), group in groups:
            rows.add_row(Text(queue), Text(name), f"{group.count:,}", moment(group.oldest, SYSTEM_CLOCK.now_us()))
        if groups:
            out.print(rows)
        told = f"{swept.old:,} old enough to go" if dry_run else f"{swept.deleted:,} removed"
        out.print(Text(told + ("" if swept.complete else "; there may be more: the look was ended at its bound")))
        for name, reason in swept.failed.items():
            print_error(f"shard {name!r}: {reason}")
    if swept.failed:
        raise typer.Exit(1)
