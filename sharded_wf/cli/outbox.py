"""``sharded-wf outbox``: outboxes in databases that are no shards."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, find_cluster
from sharded_wf.cli.output import console
from sharded_wf.cluster.outbox import init_outbox

app = typer.Typer(help="Outboxes in databases of your own, for start_in and send_in.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Outboxes in databases of your own, for start_in and send_in."""


@app.command()
def init(
    dsn: Annotated[str, typer.Argument(metavar="DSN", help="The database that gets an outbox.")],
    cluster: ClusterOption = None,
) -> None:
    """Make the outbox (the schema wf_outbox) in a database that is no shard. Safe to repeat."""
    config = find_cluster(cluster)
    made = init_outbox(config, dsn)
    out = console()
    out.print(Text("the outbox is ready" if made else "the outbox exists"))
    if all(outbox.dsn != dsn for outbox in config.outboxes):
        out.print(Text('name it in shards.toml, so that executors carry from it: [[outbox]] name = "…" dsn = "…"'))
