"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
