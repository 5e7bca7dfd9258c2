"""``sharded-wf workflow``: find workflows, look into one, start, cancel, wait for a result."""

from __future__ import annotations

import operator
import re
import sys
import time
from asyncio import CancelledError
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from sharded_wf.cli.history import as_plain, draw, error_text, moment, read_error, status_text
from sharded_wf.cli.options import ClusterOption, JsonOption
from sharded_wf.cli.output import console, duration, print_error, print_json, table
from sharded_wf.client.blocking import BlockingClient, BlockingHandle
from sharded_wf.clock import SECOND_US
from sharded_wf.config import find_config
from sharded_wf.errors import ConfigError, IdConflict, ResultTimeout, WorkflowNotFound
from sharded_wf.model.attributes import Value, Where, attr
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import DEFAULT_QUEUE
from sharded_wf.serialization.histories import encode_history
from sharded_wf.store.workflows import Description
from sharded_wf.workflow.by_name import by_name

app = typer.Typer(help="Workflows: find them, look into one, start, cancel, wait for a result.", no_args_is_help=True)

_STATUS_NAMES = [status.label for status in Status]
_COMPARE: dict[str, Callable[[attr, Value], Where]] = {
    "=": operator.eq, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_COLUMNS = ("status", "id", "workflow", "queue", "created", "took")
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The workflow's ID.")]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Seconds to wait at most. Default: as long as it takes.", show_default=False)
]


@app.command("list")
def list_(
    cluster: ClusterOption = None,
    name: Annotated[str | None, typer.Option(help="Only this workflow, as app/function.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only in this state: {', '.join(_STATUS_NAMES)}.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only of this queue.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only with such an attribute: customer=c-42, amount>=10, vip=true; may be repeated.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    json: JsonOption = False,
) -> None:
    """List workflows of all shards, the newest first. Exits with 1 if a shard does not answer."""
    wanted = None if status is None else _status_of(status)
    away: dict[str, str] = {}
    with BlockingClient.connect(find_config(cluster)) as client:
        found = client.list(
            where=_conditions(where or []), name=name, status=wanted, queue=queue, limit=limit, away=away
        )
    if json:
        print_json([as_plain(one) for one in found])
    else:
        _print_list(found, limit, "no workflows" + (" like this" if name or status or queue or where else ""))
    for shard, reason in away.items():
        print_error(f"without those on {shard}, which can't be reached: {reason}")
    if away:
        raise typer.Exit(1)


def _print_list(found: list[Description], limit: int, nothing: str) -> None:
    out = console()
    if not found:
        out.print(nothing)
        return
    rows = table(*_COLUMNS, numbers=frozenset({"created", "took"}), wraps=frozenset({"id"}))
    for one in found:
        rows.add_row(*_row(one))
    out.print(rows)
    if len(found) == limit:
        out.print(Text(f"\nthe newest {limit}; more with --limit", "dim"))


@app.command()
def show(id: IdArgument, cluster: ClusterOption = None, json: JsonOption = False) -> None:
    """Show all that is known of a workflow, and its steps with their times."""
    with BlockingClient.connect(find_config(cluster)) as client:
        found = _described(client, id)
        history = client.history(id)
        attributes = client.attributes(id)
        slot, shard = client.locate(id)
    if json:
        print_json(as_plain(found, history) | {"attributes": attributes, "shard": shard, "slot": slot})
    else:
        draw(console(), found, history, f"{shard}, slot {slot}", attributes)


@app.command()
def export(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Workflows, by ID.")] = None,
    cluster: ClusterOption = None,
    name: Annotated[str | None, typer.Option(help="Instead of IDs: of this workflow, as app/function.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only in this state: {', '.join(_STATUS_NAMES)}.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most, the newest.")] = 100,
) -> None:
    """Write whole workflows with their histories to stdout, as JSON Lines, to be replayed in tests."""
    if bool(ids) == bool(name):
        raise ConfigError("name what to export: IDs, or --name app/function")
    wanted = None if status is None else _status_of(status)
    with BlockingClient.connect(find_config(cluster)) as client:
        chosen = ids or [one.id for one in client.list(name=name, status=wanted, limit=limit)]
        for id_ in chosen:
            sys.stdout.buffer.write(encode_history(client.export(id_)) + b"\n")
        sys.stdout.buffer.flush()


@app.command()
def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The workflow, as app/function.")],
    args: Annotated[str, typer.Option(metavar="JSON", help="Its arguments, a JSON array.")] = "[]",
    cluster: ClusterOption = None,
    id: Annotated[
        str | None, typer.Option(help="Its ID; the same ID again starts nothing. Default: a new one.")
    ] = None,
    queue: Annotated[str, typer.Option(help="The queue that it waits in.")] = DEFAULT_QUEUE,
    priority: Annotated[int, typer.Option(help="Lower numbers first, within a queue.")] = 0,
    delay: Annotated[float | None, typer.Option(help="Seconds before it may begin.")] = None,
    version: Annotated[str | None, typer.Option(help="The app's version, if it has one.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its result, and print that.")] = False,
    timeout: TimeoutOption = None,
    json: JsonOption = False,
) -> None:
    """Start a workflow by name; its code need not be here. Exits with 1 if it is waited for and fails."""
    bound = by_name(name, version=version).bind(*_arguments(args))
    with BlockingClient.connect(find_config(cluster)) as client:
        try:
            handle = client.start(bound, id=id, queue=queue, priority=priority, delay=delay)
        except IdConflict as error:
            # What it goes on to advise is for programs.
            raise IdConflict(str(error).rpartition("; use another ID")[0] + "; use another --id") from None
        if wait:
            _print_result(client, handle, timeout, json=json)
        elif json:
            print_json({"id": handle.id, "created": handle.created})
        else:
            note = "started" if handle.created else "exists already"
            console().print(Text.assemble((handle.id, "bold"), f" {note}"))


@app.command()
def cancel(id: IdArgument, cluster: ClusterOption = None) -> None:
    """Ask a workflow to end: at once if it never ran, else at its next await."""
    with BlockingClient.connect(find_config(cluster)) as client:
        before = _described(client, id).status
        if before.is_final:
            console().print(Text.assemble((id, "bold"), " has ended already: ", status_text(before)))
            return
        client.cancel(id)
        after = _described(client, id).status
    said = status_text(after) if after.is_final else Text("asked to end; it does at its next await")
    console().print(Text.assemble((id, "bold"), " ", said))


@app.command()
def terminate(id: IdArgument, cluster: ClusterOption = None) -> None:
    """End a workflow: none of its code runs any more, no clean-up either."""
    _ask(id, cluster, lambda client: client.terminate(id), "is to end at once")


@app.command()
def pause(id: IdArgument, cluster: ClusterOption = None) -> None:
    """Let a workflow begin nothing more, until it is unpaused. A step that runs comes to its end."""
    _ask(id, cluster, lambda client: client.pause(id), "is paused")


@app.command()
def unpause(id: IdArgument, cluster: ClusterOption = None) -> None:
    """Let a paused workflow go on."""
    _ask(id, cluster, lambda client: client.unpause(id), "goes on")


@app.command()
def result(
    id: IdArgument,
    cluster: ClusterOption = None,
    timeout: TimeoutOption = None,
    json: JsonOption = False,
) -> None:
    """Wait for a workflow's result and print it, as JSON. Exits with 1 if it failed, or has none within the timeout."""
    with BlockingClient.connect(find_config(cluster)) as client:
        _print_result(client, client.get_handle(id), timeout, json=json)


def _print_result(client: BlockingClient, handle: BlockingHandle[Any], timeout: float | None, *, json: bool) -> None:
    try:
        value = handle.result(timeout)
    except ResultTimeout as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    except Exception:
        # What the workflow raised and what we raised can be of the same class; its row knows which it was.
        found = client.describe(handle.id)
        if found is None or not found.status.is_final or found.status is Status.SUCCEEDED:
            raise
        _print_failure(found, json=json)
        raise typer.Exit(1) from None
    print_json({"id": handle.id, "status": "succeeded", "result": value} if json else value)


def _print_failure(found: Description, *, json: bool) -> None:
    if json:
        print_json({"id": found.id, "status": found.status.label, "error": msgspec.Raw(found.error or b"null")})
        return
    error = read_error(found.error)
    if error is not None and error.type == CancelledError.__qualname__:
        print_error(f"workflow {found.id!r} was cancelled")
        return
    print_error(f"workflow {found.id!r} {found.status.label}" + (f": {error_text(error)}" if error else ""))
    if error is not None and error.traceback:
        console().print(Text(error.traceback.rstrip(), "dim"))


def _ask(id_: str, cluster: str | None, request: Callable[[BlockingClient], None], said: str) -> None:
    """Make a request of a workflow that has not ended, and say so."""
    with BlockingClient.connect(find_config(cluster)) as client:
        status = _described(client, id_).status
        if status.is_final:
            console().print(Text.assemble((id_, "bold"), " has ended already: ", status_text(status)))
            return
        request(client)
    console().print(Text.assemble((id_, "bold"), f" {said}"))


def _conditions(texts: list[str]) -> Where | None:
    """The conditions of ``--where``; a value that reads as a number or a boolean is one."""
    found: Where | None = None
    for text in texts:
        match = re.fullmatch(r"([^=<>]+)(>=|<=|=|>|<)(.*)", text, re.DOTALL)
        if match is None:
            raise ConfigError(f"--where {text}: write for example customer=c-42 or amount>=10")
        one = _COMPARE[match[2]](attr(match[1]), _value(match[3]))
        found = one if found is None else found & one
    return found


def _value(text: str) -> Value:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = text
    return value if isinstance(value, (str, int, float, bool)) else text


def _described(client: BlockingClient, id_: str) -> Description:
    found = client.describe(id_)
    if found is None:
        raise WorkflowNotFound(f"no workflow has the ID {id_!r}")
    return found


def _arguments(text: str) -> list[Any]:
    example = """--args '["o-1", 4200]'"""
    try:
        return msgspec.json.decode(text, type=list[Any])
    except msgspec.ValidationError:
        raise ConfigError(f"--args {text}: the arguments are a JSON array, as in {example}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--args {text}: no valid JSON ({error}); write for example {example}") from None


def _status_of(name: str) -> Status:
    for status in Status:
        if status.label == name.lower():
            return status
    raise ConfigError(f"--status {name}: there is no such state; there are {', '.join(_STATUS_NAMES)}")


def _row(one: Description) -> list[Text]:
    now = int(time.time() * SECOND_US)
    took = "-"
    if one.started_at is not None:
        took = duration(((one.completed_at or now) - one.started_at) / SECOND_US)
    return [
        status_text(one.status),
        Text(one.id, "bold"),
        Text(one.name),
        Text(one.queue, "dim" if one.queue == DEFAULT_QUEUE else ""),
        Text(moment(one.created_at, now), "dim"),
        Text(took),
    ]
