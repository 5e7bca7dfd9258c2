"""Which shards there are: one that joins, one that leaves."""

from __future__ import annotations

from pathlib import Path

from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.fanout import ask_one
from sharded_wf.cluster.initialize import Initialized, init_cluster
from sharded_wf.cluster.shard_map import check_identity, read_record
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ConfigError, MoveRefused
from sharded_wf.limits import STATUS_DEADLINE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import slots_present
from sharded_wf.reshard.fleet import unfinished_moves
from sharded_wf.reshard.record import read_moves
from sharded_wf.reshard.tables import SQL


def add_to_file(config: ClusterConfig, name: str, *, dsn: str | None, dsn_env: str | None) -> ClusterConfig:
    """Write a ``[[shard]]`` at the end of the cluster's ``shards.toml``; the configuration as it is then.
    ``ConfigError`` if the cluster was not read from a file, or the result can't be used; the file is as it was
    then."""
    path = Path(config.source)
    if not path.is_file():
        raise ConfigError(
            f"the cluster is not named by a file ({config.source}): write a shards.toml to add shards to it"
        )
    before = path.read_text(encoding="utf-8")
    key, value = ("dsn", dsn) if dsn is not None else ("dsn_env", dsn_env)
    quoted = "".join(f"\\{char}" if char in '"\\' else char for char in value or "")
    entry = f'\n[[shard]]\nname = "{name}"\n{key} = "{quoted}"\n'
    try:
        path.write_text(before.rstrip("\n") + "\n" + entry, encoding="utf-8")
        return ClusterConfig.from_file(path)
    except ConfigError:
        path.write_text(before, encoding="utf-8")
        raise


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
