"""The commands that a finding names, such that they can be pasted into a shell. Never with a password."""

from __future__ import annotations

import shlex
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.config import CONFIG_FILE, ClusterConfig, ShardConfig

_SECRETS = ("password", "sslpassword", "oauth_client_secret")


def cli(config: ClusterConfig, *words: str) -> str:
    """``sharded-wf …`` on this cluster."""
    named = Path(config.source).is_file() and config.source != CONFIG_FILE
    return shlex.join(["sharded-wf", *words, *(["-c", config.source] if named else [])])


def worker(config: ClusterConfig, capability: str | None = None, queue: str | None = None) -> str:
    """Start a worker; which module holds the app, only its owner knows."""
    only = () if queue in (None, "default") else ("--queue", queue or "")
    app = (capability or "").partition("@")[0].partition("/")[0]
    return cli(config, "worker", "MODULE:APP", *only) + (f"  # the app named {app!r}" if app else "")


def psql(shard: ShardConfig, *statements: str, database: str | None = None) -> str:
    """Statements in the shard's database (or another one of its server), each in a transaction of its own."""
    given = {key: value for key, value in conninfo_to_dict(shard.dsn).items() if key not in _SECRETS}
    if database is not None:
        given["dbname"] = database
    words = ["psql", make_conninfo("", **given)]
    for statement in statements:
        words += ["-c", statement]
    return shlex.join(words)
