"""``sharded-wf dev``: everything that an app needs to run on this machine, in one terminal."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sharded_wf.cli.output import console
from sharded_wf.dev.cluster import DIRECTORY_DEFAULT, SHARDS_DEFAULT, SHARDS_MAX, EmbeddedCluster
from sharded_wf.dev.reload import ReloadingExecutor, Sources
from sharded_wf.executor.loading import check_app_path


def dev(
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, for example shop.flows:app.")],
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SHARDS_MAX,
            help=f"How many shards a new cluster gets ({SHARDS_DEFAULT} unless said).",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the data are kept.")] = Path(DIRECTORY_DEFAULT),
) -> None:
    """Run an app on private Postgres servers of this machine, and start its executor anew when a source file changes.

    The data are kept for the next time. Ctrl-C ends everything."""
    check_app_path(app)
    out = console()

    def announce(text: str) -> None:
        out.print(Text.assemble(("dev  ", "bold cyan"), text))

    announce("starting the shards")
    with EmbeddedCluster(directory, shards=shards) as cluster:
        servers = cluster.servers
        config_path = os.path.relpath(directory / "shards.toml")
        announce(f"{len(servers)} shards, each a PostgreSQL {servers[0].version} server, kept in {directory}")
        announce(f"from another terminal: --cluster {config_path}")
        executor = ReloadingExecutor([app, "--cluster", config_path], Sources(Path.cwd()), announce)
        announce(f"watching the Python files below {Path.cwd()}; Ctrl-C ends everything")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: executor.end())
        executor.run()
        announce("stopping")
    announce("stopped")
