"""``sharded-wf shards migrate``: bring the tables of every shard up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, DryRun, JsonOption, Yes, find_cluster
from sharded_wf.cli.output import confirm, console, print_error, print_json, ranges, table
from sharded_wf.cluster.fanout import Answers
from sharded_wf.cluster.migration import ShardPlan, migrate_fleet, plan_fleet
from sharded_wf.errors import ConfigError, ShardedWfError
from sharded_wf.postgres.migrate import Moment, SchemaStep, noted_name
from sharded_wf.postgres.queries import Migration
from sharded_wf.routing import CONTROL_SCHEMA

SLOTS_NAMED_MAX = 8
"""Of more, the plan says how many; --json names them all."""
_ROW_WRAPS = frozenset({"schemas", "locks, for a moment"})


def migrate(
    cluster: ClusterOption = None,
    pre: Annotated[
        bool,
        typer.Option(
            "--pre", help="Only what suits the old code too: before a deployment. Then again without, after it."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Shut out executors that are too old for what is applied, instead of refusing."),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: JsonOption = False,
) -> None:
    """Bring the tables of every shard up to date. Can be killed at any moment and run again, and run twice at once.
    Asks before what old processes can't work with; --json prints the plan alone."""
    config = find_cluster(cluster)
    plans = plan_fleet(config)
    if json:
        if not dry_run:
            raise ConfigError("--json prints a plan: say --dry-run as well")
        print_json(_plain(plans, pre=pre))
    elif any(_steps(plan, pre) for plan in plans.given.values()):
        _print_plan(plans, pre=pre)
    if dry_run:
        if not json and not any(_steps(plan, pre) for plan in plans.given.values()):
            console().print("nothing to do: every table is up to date" if not plans.failed else "nothing to do here")
        _print_failed(plans.failed)
        return
    if not pre and any(plan.rest for plan in plans.given.values()):
        confirm(yes, "Apply them, also what old processes can't work with?")
    with _bars(plans, pre=pre) as report:
        answers = migrate_fleet(config, "pre" if pre else "all", force=force, report=report)
    out = console()
    for name, applied in answers.given.items():
        if applied:
            schemas = {step.schema for step in applied}
            out.print(Text(f"{name}: {len(applied)} applied to {len(schemas)} schemas, up to {applied[-1].label}"))
        elif name not in answers.failed:
            out.print(Text(f"{name}: up to date"))
    _print_failed(answers.failed)


def _steps(plan: ShardPlan, pre: bool) -> tuple[SchemaStep, ...]:
    return plan.first if pre else plan.steps


def _print_failed(failed: dict[str, Exception]) -> None:
    said: dict[str, list[str]] = {}
    for name, error in failed.items():
        if not isinstance(error, ShardedWfError):
            raise error
        said.setdefault(str(error), []).append(name)
    for message, names in said.items():
        print_error(message if all(name in message for name in names) else f"{', '.join(names)}: {message}")
    if failed:
        raise typer.Exit(1)


def _print_plan(plans: Answers[ShardPlan], *, pre: bool) -> None:
    out = console()
    count = sum(len(_steps(plan, pre)) for plan in plans.given.values())
    out.print(Text(f"{count} to apply, each in a transaction of its own; on all shards at once, in this order"))
    out.print()
    rows = table("shard", "schemas", "migration", "processes that run", "locks, for a moment", wraps=_ROW_WRAPS)
    for name, plan in plans.given.items():
        for steps, fine in ((plan.first, True), (() if pre else plan.rest, False)):
            for migration, schemas in _grouped(steps):
                says = Text("go on") if fine else Text("must know it", "yellow")
                where = _schemas(schemas)
                label = f"{migration.version:04d} {noted_name(migration).replace('_', ' ', 1)}"
                locks = ", ".join(migration.locks) or "-"
                rows.add_row(Text(name, "bold"), Text(where), Text(label), says, Text(locks))
    out.print(rows)
    out.print()
    for name, plan in plans.given.items():
        notes = [f"{moving}: let it end first" for moving in plan.moving]
        if not pre:
            notes += [
                f"executor {one.executor} ({one.version}) does not know all of it: stop it before" for one in plan.old
            ]
        for note in notes:
            out.print(Text.assemble(("! ", "bold yellow"), (name, "bold"), f": {note}"))
    left = sum(len(plan.rest) for plan in plans.given.values())
    if pre and left:
        out.print(f"later, when every process runs the new version: {left} more, by sharded-wf shards migrate")


def _grouped(steps: Iterable[SchemaStep]) -> list[tuple[Migration, list[str]]]:
    """The schemas of each migration; the control schema's first."""
    found: dict[tuple[bool, int], tuple[Migration, list[str]]] = {}
    for step in steps:
        key = (step.schema != CONTROL_SCHEMA, step.migration.version)
        found.setdefault(key, (step.migration, []))[1].append(step.schema)
    return [found[key] for key in sorted(found)]


def _schemas(schemas: list[str]) -> str:
    if schemas == [CONTROL_SCHEMA]:
        return CONTROL_SCHEMA
    slots = [int(schema.removeprefix("wf_")) for schema in schemas]
    if len(slots) > SLOTS_NAMED_MAX:
        return f"{len(slots)} slots"
    return f"{'slot' if len(slots) == 1 else 'slots'} {ranges(slots)}"


def _plain(plans: Answers[ShardPlan], *, pre: bool) -> dict[str, object]:
    """The plan for programs."""
    return {
        "shards": [
            {
                "shard": name,
                "steps": [
                    {
                        "schema": step.schema, "version": step.migration.version, "name": noted_name(step.migration),
                        "old_processes_go_on": step in plan.first, "locks": list(step.migration.locks),
                    }
                    for step in _steps(plan, pre)
                ],
                "old_executors": [one.executor for one in plan.old],
                "moving": list(plan.moving),
            }
            for name, plan in plans.given.items()
        ],
        "failed": {name: str(error) for name, error in plans.failed.items()},
    }  # fmt: skip


@contextmanager
def _bars(plans: Answers[ShardPlan], *, pre: bool) -> Generator[Callable[[str, SchemaStep, Moment], None]]:
    """A bar for each shard that has something to do."""
    out = console()
    lock = threading.Lock()
    columns = (
        TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        tasks = {
            name: progress.add_task(name, total=len(_steps(plan, pre)), step="")
            for name, plan in plans.given.items()
            if _steps(plan, pre)
        }

        def report(shard: str, step: SchemaStep, moment: Moment) -> None:
            with lock:
                if shard in tasks:
                    progress.update(tasks[shard], step=step.label, advance=int(moment == "done"))

        yield report
