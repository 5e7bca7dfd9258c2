"""The root of the command line: the groups of commands, and how errors are shown.

To add a group, write a module with a ``typer.Typer`` and name it in ``GROUPS``; for a single command, in ``COMMANDS``:
they are listed in this order, what is wanted first before the rest.

Exit codes: 0 all is well; 1 the command worked, and its answer is bad (a shard is away, a workflow failed); 2 it could
not do what was asked (configuration, usage); 3 `doctor` found something critical.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from sharded_wf.cli import bench, demo, dev, doctor, outbox, repair, retention, shards, versions, worker, workflow
from sharded_wf.cli.output import print_error
from sharded_wf.errors import ShardedWfError

EXIT_CANNOT = 2

GROUPS: dict[str, typer.Typer] = {
    "workflow": workflow.app,
    "shards": shards.app,
    "retention": retention.app,
    "outbox": outbox.app,
}
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "dev": dev.dev,
    "worker": worker.worker,
    "versions": versions.versions,
    "doctor": doctor.doctor,
}

app = typer.Typer(
    name="sharded-wf",
    help="Durable workflows straight on Postgres, sharded.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sharded-wf {version('sharded-wf')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Durable workflows straight on Postgres, sharded."""


workflow.app.command()(repair.resume)
workflow.app.command()(repair.fork)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def _list_on_one_line(group: typer.Typer) -> None:
    """The list of commands would break lines where the docstrings do."""
    for command in group.registered_commands:
        summary = inspect.getdoc(command.callback) or ""
        command.short_help = command.short_help or " ".join(summary.partition("\n\n")[0].split())


for _group in (app, *GROUPS.values()):
    _list_on_one_line(_group)
app.command("bench", context_settings=bench.PASSED_ON, add_help_option=False)(bench.bench)


def main() -> None:
    """Run the command line of this process. An error of ours is one clear message, not a traceback."""
    try:
        app()
    except ShardedWfError as error:
        print_error(str(error))
        sys.exit(EXIT_CANNOT)
