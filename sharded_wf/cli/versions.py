"""``sharded-wf versions``: what is still open on which version of an app, and which executors could run it."""

from __future__ import annotations

import msgspec
import typer
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, JsonOption, find_cluster
from sharded_wf.cli.output import console, duration, print_json, table
from sharded_wf.cluster.versions import OpenVersion, open_versions

_COLUMNS = ("app", "version", "pending", "running", "parked", "oldest", "executors")
_NUMBERS = frozenset({"pending", "running", "parked", "oldest"})
_NONE = "–"


def versions(cluster: ClusterOption = None, json: JsonOption = False) -> None:
    """Show what is still open on which version of an app, and which executors could run it.

    Exits with 1 if something is open that no live executor can run. Reads every workflow once.
    """
    found = open_versions(find_cluster(cluster))
    if json:
        print_json([msgspec.to_builtins(one) | {"open": one.open} for one in found])
    else:
        _print(found)
    if any(one.stranded for one in found):
        raise typer.Exit(1)


def _print(found: tuple[OpenVersion, ...]) -> None:
    out = console()
    if not found:
        out.print("nothing is open, and no executor runs")
        return
    rows = table(*_COLUMNS, numbers=_NUMBERS, wraps=frozenset({"executors"}))
    for one in found:
        name = one.app if one.function is None else f"{one.app}/{one.function} (pinned)"
        oldest = _NONE if one.oldest_seconds is None else duration(one.oldest_seconds)
        rows.add_row(
            Text(name, "bold"),
            Text(one.version or _NONE),
            *(Text(f"{count:,}" if count else _NONE) for count in (one.pending, one.running, one.parked)),
            Text(oldest),
            Text(", ".join(one.executors)) if one.executors else Text("nobody", "bold red" if one.open else "dim"),
        )
    out.print(rows)
    for one in found:
        if one.stranded:
            version = "without a version" if one.version is None else f"of version {one.version!r}"
            out.print(
                Text.assemble(
                    ("! ", "bold yellow"),
                    f"{one.stranded:,} open of {one.app!r} {version} that no live executor can run: start a worker "
                    "with that code, or one that upgrades it",
                )
            )
