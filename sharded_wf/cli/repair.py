"""``sharded-wf workflow resume | fork``: repair one workflow, or all that a filter finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.text import Text

from sharded_wf.cli.history import status_text
from sharded_wf.cli.options import ClusterOption, JsonOption
from sharded_wf.cli.output import console, print_json
from sharded_wf.client.blocking import BlockingClient
from sharded_wf.client.repair import Failed, Repaired
from sharded_wf.config import find_config
from sharded_wf.errors import ConfigError, WorkflowNotFound
from sharded_wf.model.status import Status

_STATES = {status.label: status for status in (Status.FAILED, Status.CANCELLED, Status.QUARANTINED)}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_REASONS_SHOWN = 5
_KEYS = ("name", "status", "queue", "error", "since", "until")
_Work = Callable[[Callable[[Repaired], None]], Repaired]

IdArgument = Annotated[str | None, typer.Argument(metavar="[ID]", help="The workflow's ID; or use --where.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        help="All that ended badly and fit; may be repeated. name=app/function, status=failed|cancelled|quarantined, "
        "queue=NAME, error=CLASS, since= and until= a time like 2026-01-31T12:00Z, or as long ago as 30m, 2h, 7d.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only count what fits.")]


def resume(
    id: IdArgument = None,
    cluster: ClusterOption = None,
    where: WhereOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Let workflows that failed, were cancelled or quarantined go on: what they finished is kept, what they failed of
    runs again."""
    wanted = _filter(id, where)
    with BlockingClient.connect(find_config(cluster)) as client:
        if wanted is not None:
            _in_bulk("resumed", lambda told: client.resume_many(wanted, dry_run=dry_run, progress=told), dry_run, json)
            return
        assert id is not None
        status = _status(client, id)
        resumed = status in _STATES.values() and (dry_run or client.resume(id))
    if json:
        print_json({"id": id, "resumed": resumed and not dry_run, "was": status.label})
    elif resumed:
        verb = " would be resumed; it is " if dry_run else " goes on; it was "
        console().print(Text.assemble((id, "bold"), verb, status_text(status)))
    else:
        console().print(Text.assemble((id, "bold"), " has nothing to resume: it is ", status_text(status)))


def fork(
    from_step: Annotated[
        str, typer.Option(metavar="STEP", help="The step to begin with: its number in the history, or its name.")
    ],
    id: IdArgument = None,
    cluster: ClusterOption = None,
    new_id: Annotated[str | None, typer.Option(help="The new workflow's ID. Default: one is made.")] = None,
    where: WhereOption = None,
    suffix: Annotated[str, typer.Option(help="With --where: the new IDs are the old ones and this.")] = "-fork",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Start new workflows with the arguments of others, and with their results before a step."""
    wanted = _filter(id, where)
    step: int | str = int(from_step) if from_step.isdecimal() else from_step
    with BlockingClient.connect(find_config(cluster)) as client:
        if wanted is not None:
            _in_bulk(
                "forked",
                lambda told: client.fork_many(wanted, from_step=step, suffix=suffix, dry_run=dry_run, progress=told),
                dry_run,
                json,
            )
            return
        assert id is not None
        if dry_run:
            raise ConfigError("--dry-run goes with --where; to see what one workflow has: sharded-wf workflow show ID")
        handle = client.fork(id, from_step=step, new_id=new_id)
    if json:
        print_json({"id": handle.id, "created": handle.created, "forked_from": id})
    else:
        note = " begins with the results of " if handle.created else " exists already, forked from "
        console().print(Text.assemble((handle.id, "bold"), note, id))


def _status(client: BlockingClient, id_: str) -> Status:
    found = client.describe(id_)
    if found is None:
        raise WorkflowNotFound(f"no workflow has the ID {id_!r}")
    return found.status


def _in_bulk(verb: str, work: _Work, dry_run: bool, json: bool) -> None:
    out = console()
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=out,
        transient=True,
        disable=json or not out.is_terminal,
    )
    with bar:
        task = bar.add_task("looking …")
        total = work(lambda far: bar.update(task, description=f"{far.matched:,} found, {far.done:,} {verb}"))
    if json:
        said = {"matched": total.matched, verb: total.done, "skipped": total.skipped, "reasons": total.reasons}
        print_json({**said, "dry_run": dry_run})
        return
    skipped = f", {total.skipped:,} {'would be ' if dry_run else ''}skipped" if total.skipped else ""
    if dry_run:
        out.print(Text(f"{total.matched:,} workflows fit{skipped}; nothing was changed"))
    else:
        out.print(Text(f"{total.matched:,} workflows fit, {total.done:,} {verb}{skipped}"))
    for reason in list(total.reasons.values())[:_REASONS_SHOWN]:
        out.print(Text(f"  {reason}"))
    if (more := total.skipped - _REASONS_SHOWN) > 0:
        out.print(Text(f"  and {more:,} more"))


def _filter(id_: str | None, where: list[str] | None) -> Failed | None:
    """The filter of ``--where``, or None for one workflow."""
    if (id_ is None) == (not where):
        raise ConfigError("name one workflow by its ID, or many with --where, as in --where status=failed")
    if not where:
        return None
    given: dict[str, Any] = {}
    for one in where:
        key, sign, value = one.partition("=")
        if key not in _KEYS or not sign or not value:
            raise ConfigError(f"--where {one}: write KEY=VALUE; the keys are {', '.join(_KEYS)}")
        if key == "status":
            if value not in _STATES:
                raise ConfigError(f"--where {one}: the states to repair are {', '.join(_STATES)}")
            given[key] = _STATES[value]
        else:
            given[key] = _moment(one, value) if key in ("since", "until") else value
    return Failed(**given)


def _moment(option: str, text: str) -> datetime:
    if match := re.fullmatch(r"(\d+)([smhd])", text):
        return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--where {option}: a time is written 2026-01-31T12:00Z, or 2h for two hours ago") from None
    return found.astimezone() if found.tzinfo is None else found
