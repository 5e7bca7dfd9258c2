"""A Citus cluster as a set of shards: its nodes are the shards, and its slots distributed schemas.

Every node of Citus reaches every row, at the price of a hop. We go to the node that holds them: each has a control
schema of its own (plain tables, which Citus knows nothing of), with the leases of the slots that the node *serves*.
Which these are is what the shard map says, as on any other shard; that their rows lie on the same node is what makes it
fast, and what Citus decides. When Citus has moved a slot's rows, the node that served it goes on serving it, over the
hop, until ``reshard.citus`` lets the other one serve it.

Tables are made through the coordinator. Nothing else needs it: with the coordinator away the data path goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sharded_wf.cluster.fanout import ask_each, reason_of
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ConfigError
from sharded_wf.limits import CITUS_VERSION_MIN, CONNECT_TIMEOUT_SECONDS, MAP_RELOAD_PATIENCE_SECONDS
from sharded_wf.postgres.connect import Connection, connection
from sharded_wf.postgres.failures import unavailable
from sharded_wf.postgres.migrate import Moment, Phase, SchemaStep, announce, migrate, pending, split_phases
from sharded_wf.postgres.queries import load, load_migrations
from sharded_wf.routing import slot_schema

_SQL = load("citus")
COORDINATOR = "coordinator"
"""What messages call it. Shards are named after their groups (``group1``), so none has this name."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Which migrations the slots have: kept by the coordinator, with a copy on each node."""

    schemas: list[str]
    versions: list[int]
    names: list[str]


def resolve(config: ClusterConfig) -> ClusterConfig:
    """The configuration with its shards. That of a plain cluster, or of one whose nodes are known, is as it was; else
    the coordinator is asked. Blocks. Raises ``ShardUnavailable``; ``ConfigError`` if it is no Citus coordinator."""
    if config.coordinator is None or config.shards:
        return config
    with coordinator(config, "nodes") as conn:
        return _with_nodes(config, conn)


def refresh(config: ClusterConfig) -> ClusterConfig:
    """The configuration with the shards that there are now, as far as one of those that are known can tell."""
    if config.coordinator is None:
        return config
    answers = ask_each(
        config.shards, lambda _, conn: _with_nodes(config, conn), purpose="nodes",
        deadline_seconds=CONNECT_TIMEOUT_SECONDS, patience_seconds=MAP_RELOAD_PATIENCE_SECONDS,
    )  # fmt: skip
    return next(iter(answers.given.values()), config)


@contextmanager
def coordinator(
    config: ClusterConfig, purpose: str, deadline_seconds: float | None = CONNECT_TIMEOUT_SECONDS
) -> Generator[Connection]:
    """A connection to the coordinator. Raises ``ShardUnavailable`` if it can't be reached or breaks off."""
    assert config.coordinator is not None
    try:
        with connection(config.coordinator, purpose=purpose, deadline_seconds=deadline_seconds) as conn:
            yield conn
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise unavailable(COORDINATOR, error, reason_of(error)) from None


def _with_nodes(config: ClusterConfig, conn: Connection) -> ClusterConfig:
    """The configuration with the nodes that the catalog names, reached as the coordinator is but for host and port."""
    _check_citus(config, conn)
    assert config.coordinator is not None
    given: dict[str, Any] = {**conninfo_to_dict(config.coordinator)}
    given.pop("hostaddr", None)
    rows = cast(list[tuple[int, str, int]], conn.execute(_SQL["read_nodes"].on()).fetchall())
    shards = tuple(
        ShardConfig(f"group{group}", make_conninfo("", **{**given, "host": name, "port": port}))
        for group, name, port in rows
    )
    if not shards:
        raise ConfigError(
            f"{config.source}: the Citus cluster has no nodes for slots yet; run on its coordinator: "
            "select citus_add_node('host', 5432)"
        )
    return replace(config, shards=shards)


def _check_citus(config: ClusterConfig, conn: Connection) -> None:
    found = conn.execute(_SQL["read_version"].on()).fetchone()
    where = f"{config.source}: [citus] coordinator"
    if found is None:
        raise ConfigError(f"{where}: database {conn.info.dbname} has no Citus; run there: create extension citus")
    major, _, minor = str(found[0]).partition("-")[0].partition(".")
    if (int(major), int(minor or 0)) < CITUS_VERSION_MIN:
        wanted = ".".join(map(str, CITUS_VERSION_MIN))
        raise ConfigError(f"{where}: it is Citus {found[0]}; {wanted} or later is needed")


def places(conn: Connection) -> dict[int, str]:
    """The shard on whose node each slot's rows lie, as the catalog says. Any node may be asked."""
    rows = conn.execute(_SQL["read_places"].on()).fetchall()
    return {int(str(schema).removeprefix("wf_")): f"group{group}" for schema, group in rows}


def make_slots(config: ClusterConfig, slots: int) -> list[str]:
    """Make the slots 0, 1, … that are not there yet, each where Citus puts it. Returns their shards, in order."""
    with coordinator(config, "init", None) as conn:
        own_schemas(conn)
        migrate(conn, ())
        conn.execute(_SQL["slot_schemas"].on())
        migrate(conn, range(slots))
        found = places(conn)
    if sorted(found) != list(range(slots)):
        raise ConfigError(f"the Citus cluster holds schemas of {len(found)} slots already, and {slots} are wanted")
    return [found[slot] for slot in range(slots)]


def migrate_slots(
    config: ClusterConfig,
    phase: Phase = "all",
    *,
    force: bool = False,
    report: Callable[[SchemaStep, Moment], None] = lambda _step, _moment: None,
) -> list[SchemaStep]:
    """Apply what is pending to every slot, through the coordinator. As ``migrate``, and raises ``ShardUnavailable``."""
    with coordinator(config, "migrate", None) as conn:
        own_schemas(conn)
        applied = migrate(conn, (), phase=phase, force=force, report=report)
        conn.execute(_SQL["slot_schemas"].on())
        return applied + migrate(conn, places(conn), phase=phase, force=force, report=report)


def announce_posts(config: ClusterConfig, *, force: bool = False) -> Mapping[str, Exception]:
    """Before ``migrate_slots`` with all phases: whoever does not know the ``post`` migrations that it would make is
    shut out on every node. (The coordinator has no leases; so the nodes hear first.) Returns the nodes that refused,
    and why; then nothing may be made. Raises ``ShardUnavailable`` of the coordinator."""
    with coordinator(config, "migrate") as conn:
        _, rest = split_phases(pending(conn, places(conn)))
    posts = list(dict.fromkeys(step.migration for step in rest if step.migration.phase == "post"))
    if not posts:
        return {}
    answers = ask_each(
        config.shards, lambda _, conn: announce(conn, posts, force=force), purpose="migrate", deadline_seconds=None
    )
    return answers.failed


def read_notes(config: ClusterConfig) -> Notes:
    """Which migrations the slots have. Raises ``ShardUnavailable``."""
    with coordinator(config, "migrate") as conn:
        rows = cast(list[tuple[str, int, str]], conn.execute(_SQL["read_slot_notes"].on()).fetchall())
    return Notes([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def own_schemas(conn: Connection) -> None:
    """What is made on this connection from here on is the node's own."""
    conn.execute(_SQL["own_schemas"].on())


def make_control(
    conn: Connection,
    notes: Notes,
    phase: Phase = "all",
    *,
    force: bool = False,
    report: Callable[[SchemaStep, Moment], None] = lambda _step, _moment: None,
) -> list[SchemaStep]:
    """Make a node's control schema, or bring it up to date. As ``migrate``."""
    own_schemas(conn)
    applied = migrate(conn, (), phase=phase, force=force, report=report)
    for migration in load_migrations("citus"):
        for statement in migration.statements():
            conn.execute(statement)
    conn.execute(_SQL["write_slot_notes"].on(), (notes.schemas, notes.versions, notes.names))
    return applied


def move_rows(conn: Connection, slot: int, target: ShardConfig) -> None:
    """Have Citus move a slot's rows, while they are in use. For the coordinator's connection; it takes as long as it
    takes. Where they are there already, nothing happens."""
    if places(conn).get(slot) != target.name:
        host = conninfo_to_dict(target.dsn)
        conn.execute(_SQL["move_schema"].on(), (slot_schema(slot), host["host"], int(str(host["port"]))))


def plan_rebalance(config: ClusterConfig) -> Mapping[int, str]:
    """The slots that Citus's own rebalancer would move, and the shards where to. Raises ``ShardUnavailable``."""
    by_address = {(given["host"], str(given["port"])): shard.name for shard in config.shards
                  if (given := conninfo_to_dict(shard.dsn))}  # fmt: skip
    with coordinator(config, "rebalance") as conn:
        rows = conn.execute(_SQL["plan_rebalance"].on()).fetchall()
        return {
            int(str(table).partition(".")[0].removeprefix("wf_")): by_address[str(name), str(port)]
            for table, name, port in rows
            if str(table).startswith("wf_")
        }
