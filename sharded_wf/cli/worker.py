"""``sharded-wf worker``: run the workflows of an app."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from sharded_wf.cli.options import ClusterOption
from sharded_wf.config import find_config
from sharded_wf.executor import Executor
from sharded_wf.executor.loading import load_app
from sharded_wf.executor.worker import run, supervise
from sharded_wf.limits import (
    CONCURRENCY_DEFAULT_WORKFLOWS,
    DRAIN_DEADLINE_SECONDS,
    PARK_AFTER_SECONDS,
    SYNC_THREADS_DEFAULT,
)


def worker(
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, for example shop.flows:app.")],
    cluster: ClusterOption = None,
    shard: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A shard to serve; repeat for more. Default: all.")
    ] = None,
    queue: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A queue to serve; repeat for more. Default: all.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Executor processes; one uses about one core.")] = 1,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=f"{CONCURRENCY_DEFAULT_WORKFLOWS:,} for each shard",
            help="Workflows that each process holds in memory at most.",
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Plain def steps and workflows of each shard that each process runs at once.")
    ] = SYNC_THREADS_DEFAULT,
    park_after: Annotated[
        float, typer.Option(min=0, help="Seconds that a workflow waits in memory before it is parked.")
    ] = PARK_AFTER_SECONDS,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that unfinished work may take after SIGTERM before it is given back.")
    ] = DRAIN_DEADLINE_SECONDS,
    health_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            show_default=False,
            help="Tell at /healthz and /readyz of this port how it fares, and which slots are affected. Further "
            "processes take the ports after it.",
        ),
    ] = 0,
    health_host: Annotated[str, typer.Option(help="The address of that port.")] = "127.0.0.1",
    isolated: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the workflows of an app until SIGTERM, then drain. Run as many workers, on as many machines, as you like."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = find_config(cluster)
    loaded = load_app(app)
    again = [sys.executable, "-m", "sharded_wf", *sys.argv[1:]]
    if processes > 1:
        ports = [health_port and health_port + place for place in range(processes)]
        supervise([[*again, "--processes", "1", "--health-port", str(port)] for port in ports])
        return
    run(
        Executor(
            loaded, config, shards=shard or None, queues=queue or None, concurrency=concurrency, threads=threads,
            park_after=park_after, drain_seconds=drain_seconds, isolated=isolated,
            isolation_command=[*again, "--processes", "1", "--health-port", "0", "--isolated"],
        ),
        (health_host, health_port) if health_port else None,
    )  # fmt: skip
