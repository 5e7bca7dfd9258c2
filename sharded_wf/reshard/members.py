"""Which shards there are: one that joins, one that leaves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.fanout import ask_each, ask_one
from sharded_wf.cluster.initialize import Initialized, check_server, init_cluster
from sharded_wf.cluster.shard_map import check_identity, read_record
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ConfigError, MoveRefused, ShardUnavailable
from sharded_wf.limits import STATUS_DEADLINE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import slots_present
from sharded_wf.reshard.fleet import unfinished_moves
from sharded_wf.reshard.record import read_moves
from sharded_wf.reshard.tables import SQL


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A shard that can join: it answers, is empty, and the role may make our schemas there."""

    shard: ShardConfig
    server_version: str


def with_shard(
    config: ClusterConfig,
    name: str,
    *,
    dsn: str | None = None,
    dsn_env: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ClusterConfig:
    """The configuration as it is with this shard, too; the file is as it was. ``dsn`` or ``dsn_env``, one of the two.
    Where the shard is named with this DSN already, the configuration itself. ``ConfigError`` if it is named with
    another one, or can't be used."""
    if dsn is not None and dsn_env is not None:
        raise ConfigError("--dsn or --dsn-env, one of the two")
    if dsn is None:
        dsn = environ.get(dsn_env or "")
    if not dsn:
        raise ConfigError(f"--dsn-env names {dsn_env}, which is not set; set it to a DSN")
    known = {shard.name: shard for shard in config.shards}.get(name)
    if known is None:
        return replace(config, shards=(*config.shards, ShardConfig(name, dsn)))
    if known.dsn != dsn:
        raise ConfigError(
            f"{config.source}: [[shard]] {name!r} is there already, with another DSN; correct it there, then run: "
            f"sharded-wf shards add {name}"
        )
    return config


def newcomers(config: ClusterConfig) -> tuple[Newcomer, ...]:
    """The shards of the configuration that are not part of the cluster yet. Raises if one of them can't join:
    ``ShardUnavailable``, ``ConfigError``; and as ``load_map``."""

    def look(shard: ShardConfig, conn: Connection) -> str:
        check_server(shard, conn)
        row = conn.execute(SQL["may_make_schemas"].on()).fetchone()
        if row is None or not row[0]:
            raise ConfigError(
                f"the role {conn.info.user} may not make schemas in the database of shard {shard.name!r} "
                f"({shard.address}); there: grant create on database {conn.info.dbname} to {conn.info.user}"
            )
        version = conn.info.parameter_status("server_version") or str(conn.info.server_version)
        return version.partition(" ")[0]

    directory = load_map(config)
    for name, reason in directory.unreachable.items():
        raise ShardUnavailable(name, reason)  # a shard joins when all can be told
    members = {shard.name for shard in directory.shards}
    new = [shard for shard in config.shards if shard.name not in members]
    answers = ask_each(new, look, purpose="add", deadline_seconds=STATUS_DEADLINE_SECONDS).all_or_raise()
    return tuple(Newcomer(shard, answers[shard.name]) for shard in new)


def write_shard(config: ClusterConfig, name: str, *, dsn: str | None = None, dsn_env: str | None = None) -> None:
    """Write a ``[[shard]]`` at the end of the cluster's ``shards.toml``, at one stroke, as processes may be reading it.
    ``ConfigError`` if the result can't be used; the file is as it was then."""
    path = file_of(config).resolve()
    key, value = ("dsn", dsn) if dsn is not None else ("dsn_env", dsn_env)
    quoted = "".join(f"\\{char}" if char in '"\\' else char for char in value or "")
    entry = f'\n[[shard]]\nname = "{name}"\n{key} = "{quoted}"\n'
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        shutil.copy(path, scratch)  # with its mode: there may be passwords in it
        scratch.write_text(path.read_text(encoding="utf-8").rstrip("\n") + "\n" + entry, encoding="utf-8")
        ClusterConfig.from_file(scratch)
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{config.source} can't be written: {error}; add to it by hand:\n{entry}") from None
    finally:
        scratch.unlink(missing_ok=True)


def file_of(config: ClusterConfig) -> Path:
    """The file that the cluster was read from; ``ConfigError`` if there is none."""
    path = Path(config.source)
    if not path.is_file():
        raise ConfigError(
            f"the cluster is not named by a file ({config.source}): write a shards.toml to add shards to it"
        )
    return path


def add_shards(config: ClusterConfig) -> Initialized:
    """The shards that are new in the configuration join the cluster, without slots. Raises as ``init_cluster``; and as
    ``load_map`` if there is no cluster to join."""
    load_map(config)
    return init_cluster(config)


def check_removable(config: ClusterConfig, name: str) -> int:
    """Whether the shard is empty and may leave; how many executors have a lease there. Raises ``MoveRefused`` if
    not."""
    shard = config.shard(name)
    directory = load_map(config)
    if slots := directory.shard_map.slots_of(name):
        raise MoveRefused(f"shard {name!r} still holds {len(slots)} slots; run: sharded-wf shards drain {name}")
    for unfinished in unfinished_moves(config):
        if name in (unfinished.move.source, unfinished.move.target):
            raise MoveRefused(
                f"the move of slot {unfinished.move.slot} concerns shard {name!r} and is unfinished; "
                "run: sharded-wf shards move --resume"
            )
    leases, left = ask_one(shard, _leases, purpose="remove", deadline_seconds=STATUS_DEADLINE_SECONDS)
    if left:
        raise MoveRefused(_requests_wait(name))
    return leases


def _leases(_shard: ShardConfig, conn: Connection) -> tuple[int, bool]:
    if read_record(conn).identity is None:
        return 0, False
    row = conn.execute(SQL["count_leases"].on()).fetchone()
    return int(str(row[0])) if row else 0, requests_left(conn)


def requests_left(conn: Connection) -> bool:
    """Whether the shard's outbox holds what was not carried over yet."""
    row = conn.execute(SQL["has_requests"].on()).fetchone()
    return row is not None and bool(row[0])


def _requests_wait(name: str) -> str:
    return (
        f"the outbox of shard {name!r} holds starts or messages that were not carried over yet; "
        "executors do that: try again when one has run for a moment"
    )


def remove_shard(config: ClusterConfig, name: str) -> None:
    """The shard leaves the cluster: its control schema goes, and with it what made the database a shard. Executors that
    serve it notice and let go of it. Raises as ``check_removable``. Removing it twice is fine."""
    check_removable(config, name)

    def forget(shard: ShardConfig, conn: Connection) -> None:
        identity = read_record(conn).identity
        if identity is None:
            return
        check_identity(config, shard, identity)
        with conn.transaction():
            conn.execute(SQL["lock_members"].on())
            # Looked at again under the lock, which a move's first row waits for.
            if requests_left(conn):
                raise MoveRefused(_requests_wait(name))
            if slots_present(conn) or read_moves(conn):
                raise MoveRefused(
                    f"a slot is on its way to shard {name!r}; try again when it has arrived, and drain it"
                )
            conn.execute(SQL["drop_control"].on())

    ask_one(config.shard(name), forget, purpose="remove", deadline_seconds=STATUS_DEADLINE_SECONDS)
