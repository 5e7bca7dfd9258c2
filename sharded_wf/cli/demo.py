"""``sharded-wf demo``: see it work, and see it survive."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sharded_wf.cli.output import console, duration, table
from sharded_wf.dev.cluster import DIRECTORY_DEFAULT, EmbeddedCluster
from sharded_wf.dev.demo import APP, Demo, ExecutorView, Result, View, find_packages
from sharded_wf.dev.demo_flows import count_file
from sharded_wf.dev.demo_verdict import Check, Figures, check, figures_of, run_seconds
from sharded_wf.limits import LEASE_SECONDS

SHARDS = 4
BAR_MAX_COLUMNS = 60
FRAMES_PER_SECOND = 8
_NUMBERS = ("workflows", "steps", "per second", "waited p50", "ran p50", "ran p95")
_STATES = {
    "starting": ("○", "dim"),
    "working": ("●", "green"),
    "killed": ("✗", "bold red"),
    "taken over": ("✗", "yellow"),
}


def demo(
    files: Annotated[
        int | None, typer.Option(min=1, help="Only so many files of the standard library.", show_default="all")
    ] = None,
) -> None:
    """Four shards, two executors, a workflow for each file of Python's standard library; one executor is killed midway,
    and the result is checked. Exits with 1 if the check does not hold."""
    out = console()
    packages = find_packages(files)
    begun = time.monotonic()

    def announce(text: str) -> None:
        out.print(Text.assemble((f"{time.monotonic() - begun:5.1f} s  ", "dim"), text))

    out.print(_title(packages))
    with tempfile.TemporaryDirectory(prefix="sharded-wf-demo-") as directory, EmbeddedCluster(shards=SHARDS) as cluster:
        version = cluster.servers[0].version
        announce(f"started {SHARDS} shards, each a PostgreSQL {version} server, with 48 slots in all")
        work = Demo(cluster.config, Path(directory), packages, announce)
        with _drawn(out, work.view):
            result = asyncio.run(work.run())
        announce("done; stopping the servers")
    checks = check(result)
    out.print()
    out.print(_figures(result))
    out.print()
    for one in checks:
        _print_check(out, one)
    out.print()
    out.print(_next_commands())
    if not all(one.holds for one in checks):
        raise typer.Exit(1)


def _title(packages: dict[str, list[str]]) -> Text:
    count = sum(map(len, packages.values()))
    return Text.assemble(
        ("sharded-wf demo", "bold"),
        f" · counting what the {count:,} files in {len(packages)} packages of Python "
        f"{sys.version_info.major}.{sys.version_info.minor}'s standard library define\n",
    )


# --- while it runs --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _drawn(out: Console, view: View) -> Generator[None]:
    """Draw the view while the block runs; into a file, only what is announced goes."""
    if not out.is_terminal:
        yield
        return
    with Live(
        get_renderable=_frame_of(view), console=out, refresh_per_second=FRAMES_PER_SECOND, transient=True,
        redirect_stdout=False, redirect_stderr=False,
    ):  # fmt: skip
        yield


def _frame_of(view: View) -> Callable[[], Padding]:
    return lambda: Padding(Group(_bars(view), Text(), _executors(view)), (1, 0, 0, 2))


def _bars(view: View) -> Table:
    """A bar for all files, and how many of them each shard has finished."""
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(width=min(BAR_MAX_COLUMNS, 36))
    rows.add_column(justify="right", no_wrap=True)
    rows.add_row(
        Text("files", "bold"),
        ProgressBar(view.files, view.files_done, complete_style="green", finished_style="green"),
        Text(f"{view.files_done:,} of {view.files:,}", "bold"),
    )
    share = max(1, max(view.done.values(), default=0), view.files // SHARDS)
    for shard, done in view.done.items():
        rows.add_row(
            Text(f"  {shard}", "dim"), ProgressBar(share, done, complete_style="cyan"), Text(f"{done:,}", "dim")
        )
    return rows


def _executors(view: View) -> Group:
    lines = [_executor(executor) for executor in view.executors]
    return Group(*lines, Text(f"\n{view.doing}, {view.elapsed_seconds:.0f} s", "dim"))


def _executor(executor: ExecutorView) -> Text:
    mark, style = _STATES[executor.state]
    told = executor.state
    if told == "killed":
        told = f"killed; its lease runs out within {LEASE_SECONDS:g} s, then the other takes over"
    elif told == "taken over":
        told = "killed, and its work taken over"
    return Text.assemble(
        (f"{mark} ", style), f"executor {executor.number} ", (f"({executor.pid}) ", "dim"), (told, style)
    )


# --- at the end -----------------------------------------------------------------------------------------------------


def _figures(result: Result) -> Table:
    rows = [row for found in result.rows.values() for row in found]
    seconds = run_seconds(rows)
    made = table("shard", *_NUMBERS, numbers=frozenset(_NUMBERS))
    for shard, found in result.rows.items():
        made.add_row(Text(shard, "bold"), *_cells(figures_of(found, seconds)))
    made.add_section()
    made.add_row(Text("all", "bold"), *_cells(figures_of(rows, seconds)), style="bold")
    return made


def _cells(figures: Figures) -> list[str]:
    times = (figures.waited_p50_seconds, figures.ran_p50_seconds, figures.ran_p95_seconds)
    return [f"{figures.workflows:,}", f"{figures.steps:,}", f"{figures.per_second:.1f}", *map(duration, times)]


def _print_check(out: Console, one: Check) -> None:
    mark = Text("✓ ", "bold green") if one.holds else Text("✗ ", "bold red")
    if not out.is_terminal:
        out.print(mark + Text(one.text))
        return
    line = Table.grid()
    line.add_row(mark, Text(one.text))
    out.print(line)


def _next_commands() -> Text:
    """Three commands that work as they stand, in this order, in two terminals."""
    command = _command()
    example = ast.__file__
    cluster = f"--cluster {DIRECTORY_DEFAULT}/shards.toml"
    return Text.assemble(
        "Try next, in two terminals:\n\n",
        (f"  {command} dev {APP}\n\n", "cyan"),
        (f"  {command} workflow start {count_file.name} \\\n", "cyan"),
        (f"      --args '[\"{example}\"]' \\\n", "cyan"),
        (f"      --id first --wait {cluster}\n\n", "cyan"),
        (f"  {command} workflow show first \\\n      {cluster}", "cyan"),
    )


def _command() -> str:
    """How to call us from where the user is."""
    if shutil.which("sharded-wf") is not None:
        return "sharded-wf"
    script = Path(sys.argv[0])
    if script.name != "sharded-wf":
        return f"{_shortest(Path(sys.executable))} -m sharded_wf"
    return _shortest(script)


def _shortest(path: Path) -> str:
    return min(os.path.relpath(path), str(path.absolute()), key=len)
