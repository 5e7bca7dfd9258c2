"""Making the outbox in a database of the user's that is no shard."""

from __future__ import annotations

import uuid

import psycopg

from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.fanout import reason_of
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ClusterMismatch, ConfigError, ShardUnavailable
from sharded_wf.postgres import borrowed
from sharded_wf.postgres.connect import connection
from sharded_wf.postgres.queries import load, load_migrations
from sharded_wf.store import requests

_MIGRATIONS = load("migrations")


def init_outbox(config: ClusterConfig, dsn: str) -> bool:
    """Make the schema ``wf_outbox`` in the database, for this cluster. Returns whether it was made just now; safe to
    repeat.

    Raises ``ClusterMismatch`` if the outbox there belongs to another cluster, ``ConfigError`` if the database is a
    shard or the role may not make schemas, ``ShardUnavailable`` if it can't be reached, and as ``load_map``.
    """
    cluster_id = load_map(config).cluster_id
    try:
        with connection(dsn, purpose="outbox init") as conn, conn.transaction():
            conn.execute(_MIGRATIONS["lock_migrations"].on())
            is_shard, has_outbox, _ = requests.is_shard_and_outbox(borrowed.run(conn, requests.where_am_i()))
            if is_shard:
                raise ConfigError("this database is a shard; it needs no outbox of its own")
            if has_outbox:
                _check_owner(requests.identity_of(borrowed.run(conn, requests.read_owner())), cluster_id)
                return False
            migrations = load_migrations("outbox")
            for migration in migrations:
                for statement in migration.statements(requests.OUTBOX_SCHEMA):
                    conn.execute(statement)
            borrowed.run(conn, requests.write_owner(cluster_id, config.name, len(migrations)))
            return True
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(f"the role may not make the schema {requests.OUTBOX_SCHEMA}: {error}") from None
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise ShardUnavailable("outbox", reason_of(error)) from None


def _check_owner(identity: tuple[uuid.UUID, str, str] | None, cluster_id: uuid.UUID) -> None:
    if identity is None or identity[0] != cluster_id:
        name = "nobody" if identity is None else repr(identity[1])
        raise ClusterMismatch(f"the outbox in this database belongs to another cluster ({name})")
