"""Where it runs: embedded servers, one for each shard, or scratch databases on the servers of a ``shards.toml``.

The ledger is a database that the engine knows nothing of: with embedded servers on a small server of its own, so that
it costs the measured ones nothing; else beside the first shard.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.cluster.citus import resolve
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig, ShardConfig, find_config
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.errors import ConfigError
from sharded_wf.limits import SLOTS_DEFAULT

EMBEDDED_MAX = 16
SHARED_BUFFERS_MB = 1024  # of all embedded servers together
SHARED_BUFFERS_MIN_MB = 128
LEDGER_TABLES = """
create table acknowledged (client int not null, at timestamptz not null default clock_timestamp(), ids uuid[] not null);
create table body (
    workflow_id text not null, number int not null, token text not null, at timestamptz not null, pid int not null);
"""


@dataclass(frozen=True)
class Shape:
    """What to measure on. Exactly one of ``embedded`` (how many shards) and ``config`` (a ``shards.toml`` or a DSN)
    counts: ``config`` if it is set. ``slots``: of the whole cluster."""

    embedded: int = 1
    config: str | None = None
    slots: int = SLOTS_DEFAULT


@dataclass(frozen=True)
class Cluster:
    """A fresh cluster, gone at the end. ``servers``: by shard, where we started them ourselves. ``bare``: a database of
    the first shard's server for the bare loop."""

    config: ClusterConfig
    ledger: str
    bare: str
    servers: Mapping[str, EmbeddedServer]

    @property
    def first(self) -> str:
        return self.config.shards[0].dsn


@contextmanager
def open_cluster(shape: Shape) -> Generator[Cluster]:
    """Raises ``ConfigError`` if the shape can't be had, and what servers and databases raise."""
    if shape.config is None:
        with _open_embedded(shape) as cluster:
            yield cluster
    else:
        with _open_scratch(resolve(find_config(shape.config)), shape.slots) as cluster:
            yield cluster


@contextmanager
def _open_embedded(shape: Shape) -> Generator[Cluster]:
    count = shape.embedded
    if not 1 <= count <= EMBEDDED_MAX:
        raise ConfigError(f"{count} embedded shards: choose 1 to {EMBEDDED_MAX}")
    buffers = max(SHARED_BUFFERS_MIN_MB, SHARED_BUFFERS_MB // count)
    settings = {"shared_buffers": f"{buffers}MB", "max_wal_size": "8GB", "max_connections": "300"}
    with ExitStack() as exits:
        made = [EmbeddedServer.create(settings=settings) for _ in range(count)]
        made.append(EmbeddedServer.create())  # the ledger's
        for server in made:
            exits.callback(_discard, server)
        with ThreadPoolExecutor(len(made)) as threads:
            list(threads.map(EmbeddedServer.start, made))
        *servers, ledger = made
        names = [f"pg{number}" for number in range(1, count + 1)]
        shards = [ShardConfig(name, one.create_database("bench")) for name, one in zip(names, servers, strict=True)]
        config = ClusterConfig("bench", tuple(shards), source="the embedded servers")
        init_cluster(config, shape.slots)
        yield Cluster(
            config,
            _make_ledger(ledger.create_database("ledger")),
            servers[0].create_database("bare"),
            dict(zip(names, servers, strict=True)),
        )


def _discard(server: EmbeddedServer) -> None:
    server.stop("immediate")  # no checkpoint of what nobody reads again
    server.close()


@contextmanager
def _open_scratch(config: ClusterConfig, slots: int) -> Generator[Cluster]:
    """Databases with names that nobody has: nothing that was there is touched."""
    name = f"sharded_wf_bench_{secrets.token_hex(4)}"
    with ExitStack() as exits:

        def create(dsn: str, database: str) -> str:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
            exits.callback(_drop, dsn, database)
            return make_conninfo(dsn, dbname=database)

        coordinator = None
        try:
            if config.coordinator is not None:
                coordinator, shards = _create_citus(config, name, create)
            else:
                shards = tuple(
                    ShardConfig(shard.name, create(shard.dsn, f"{name}_{number}"))
                    for number, shard in enumerate(config.shards)
                )
            first = config.shards[0].dsn
            ledger, bare = create(first, f"{name}_ledger"), create(first, f"{name}_bare")
        except psycopg.Error as error:
            raise ConfigError(
                f"{config.source}: no scratch database can be made ({str(error).strip()}); the bench needs a role that "
                "may CREATE DATABASE on each shard's server"
            ) from None
        scratch = ClusterConfig("bench", shards, source=config.source, coordinator=coordinator)
        init_cluster(scratch, slots)
        yield Cluster(scratch, _make_ledger(ledger), bare, {})


def _create_citus(
    config: ClusterConfig, name: str, create: Callable[[str, str], str]
) -> tuple[str, tuple[ShardConfig, ...]]:
    """A Citus cluster in databases of this name, on the servers of this one: its coordinator's DSN, and its shards."""
    assert config.coordinator is not None
    made = [create(dsn, name) for dsn in (config.coordinator, *(shard.dsn for shard in config.shards))]
    for dsn in made:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("create extension citus")
    with psycopg.connect(made[0], autocommit=True) as conn:
        places = [conninfo_to_dict(dsn) for dsn in made]
        conn.execute("select citus_set_coordinator_host(%s, %s::int)", (places[0]["host"], places[0].get("port", 5432)))
        for place in places[1:]:
            conn.execute("select citus_add_node(%s, %s::int)", (place["host"], place["port"]))
    return made[0], resolve(ClusterConfig("bench", (), source=config.source, coordinator=made[0])).shards


def _drop(dsn: str, database: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database)))


def _make_ledger(dsn: str) -> str:
    # It outlives every process that we start, and that is all that is asked of it: no wait for the disk.
    given = make_conninfo(dsn, options="-c synchronous_commit=off")
    with psycopg.connect(given, autocommit=True) as conn:
        conn.execute(LEDGER_TABLES)
    return given
