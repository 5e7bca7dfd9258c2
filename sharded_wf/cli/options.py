"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from sharded_wf.cluster.citus import resolve
from sharded_wf.config import ClusterConfig, find_config

ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        metavar="FILE|DSN",
        help="A shards.toml, or the DSN of a single shard. Default: $SHARDED_WF_CONFIG, else ./shards.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "--plan", help="Show the plan and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def find_cluster(named: str | None) -> ClusterConfig:
    """The cluster to use, as ``find_config`` finds it; a Citus cluster with its nodes. Raises as both."""
    return resolve(find_config(named))
