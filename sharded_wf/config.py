"""Where the cluster is: the names and DSNs of its shards, and nothing else.

Which slot lies on which shard is not configured: it is stored in the databases, since a file that every process has its
own copy of could never be changed at one moment. So a stale file can make a process refuse to start; it can't make it
write to the wrong shard.

::

    # shards.toml
    [cluster]
    name = "shop"
    [[shard]]
    name = "pg1"
    dsn = "postgresql://wf@pg1a,pg1b/wf?target_session_attrs=read-write"
    [[shard]]
    name = "pg2"
    dsn_env = "PG2_DSN"     # the DSN is in this environment variable
    weight = 2              # optional: twice the share of slots of a shard that says nothing
    [[outbox]]              # a database of your own, for `start_in` and `send_in` in its transactions
    name = "orders"
    dsn = "postgresql://wf@orders/orders"
    [retention]             # optional: finished workflows are kept for ever unless this says otherwise
    default = "30 days"

A Citus cluster is named by its coordinator, in place of shards: they are its worker nodes, which it knows itself::

    [citus]
    coordinator = "postgresql://wf@coordinator/wf"      # or coordinator_env = "CITUS_DSN"
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from sharded_wf.errors import ConfigError, NoClusterConfigured
from sharded_wf.retention import Retention

CONFIG_VARIABLE = "SHARDED_WF_CONFIG"
CONFIG_FILE = "shards.toml"
LONE_NAME = "main"
"""What a cluster of one shard, and this shard, are called that only a DSN names."""
EMBEDDED = "embedded:"
"""In place of a DSN: private Postgres servers of this machine, for development. Never found by accident."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NAME_RULE = "1 to 63 letters, digits, '_', '-' or '.'"
_DSN_EXAMPLE = "postgresql://user@host/database"
# libpq's other complaints quote the DSN, and with it the password.
_HARMLESS_COMPLAINT = re.compile(r'invalid (connection option|URI query parameter:?) "[a-z_]+"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """One shard: its name, and the DSN of its database (several hosts for HA). The DSN may hold a password, so it is
    never shown: show ``address``. ``weight``: how much of the slots it shall have, in proportion to the others'; it is
    looked at when slots are dealt out (``shards init``, ``rebalance``, ``drain``), and by nothing else."""

    name: str
    dsn: str = field(repr=False)
    weight: float = field(default=1.0, compare=False)

    @property
    def address(self) -> str:
        """Where the shard is, for people: hosts, port and database, without user and password."""
        given = conninfo_to_dict(self.dsn)
        hosts = str(given.get("host") or given.get("hostaddr") or "local socket").split(",")
        ports = str(given.get("port") or "").split(",")
        if len(ports) < len(hosts):
            ports = ports[:1] * len(hosts)
        places = [f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False)]
        return f"{','.join(places)}/{given.get('dbname') or given.get('user') or ''}"


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The shards of one cluster, in the order of the file. ``source`` says where this was read, for messages;
    ``retention``, how long finished workflows are kept (None: for ever)."""

    name: str
    shards: tuple[ShardConfig, ...]
    source: str = field(default="ClusterConfig", compare=False)
    outboxes: tuple[ShardConfig, ...] = ()
    """Databases that are no shards, from whose outboxes (``sharded-wf outbox init``) the executors carry."""
    retention: Retention | None = field(default=None, hash=False)
    coordinator: str | None = field(default=None, repr=False)
    """The DSN of a Citus cluster's coordinator. ``shards`` are then its nodes, once it was asked
    (``cluster.citus.resolve``), and empty before."""

    def __post_init__(self) -> None:
        _check_name(self.name, f"{self.source}: [cluster] name")
        if self.coordinator is not None:
            _check_dsn(self.coordinator, f"{self.source}: [citus] coordinator")
            if not self.shards:
                return
        if not self.shards:
            raise ConfigError(f'{self.source}: no shard is named; write a [[shard]] with name = "pg1" and a dsn')
        by_dsn: dict[str, str] = {}
        names: set[str] = set()
        for shard in self.shards:
            where = f"{self.source}: [[shard]] {shard.name!r}"
            _check_name(shard.name, f"{where}: name")
            _check_dsn(shard.dsn, where)
            if not (math.isfinite(shard.weight) and shard.weight >= 0):
                raise ConfigError(f"{where}: weight is {shard.weight}; write a number, 0 or more (1 unless said)")
            if shard.name in names:
                raise ConfigError(f"{where} is there twice; give each shard a name of its own")
            if other := by_dsn.get(shard.dsn):
                raise ConfigError(f"{where} has the same dsn as {other!r}; each shard is a database of its own")
            names.add(shard.name)
            by_dsn[shard.dsn] = shard.name
        if not any(shard.weight for shard in self.shards):
            raise ConfigError(f"{self.source}: every shard has weight 0; give one of them more")
        for outbox in self.outboxes:
            where = f"{self.source}: [[outbox]] {outbox.name!r}"
            _check_name(outbox.name, f"{where}: name")
            _check_dsn(outbox.dsn, where)
            if other := by_dsn.get(outbox.dsn):
                raise ConfigError(
                    f"{where} has the dsn of {other!r}; a shard has its outbox anyway: leave this one out"
                )
            by_dsn[outbox.dsn] = outbox.name

    @classmethod
    def from_dsn(cls, dsn: str, source: str = "the argument") -> ClusterConfig:
        """A cluster of one shard; cluster and shard are named ``main``. ``ConfigError`` if it is no DSN."""
        _check_dsn(dsn, source)
        return cls(LONE_NAME, (ShardConfig(LONE_NAME, dsn),), source)

    @classmethod
    def from_file(cls, path: str | Path, environ: Mapping[str, str] = os.environ) -> ClusterConfig:
        """Read a ``shards.toml``. ``ConfigError`` names the file, the key and what to write instead."""
        source = str(path)
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise ConfigError(
                f"{source}: there is no such file; name a shards.toml or a DSN ({_DSN_EXAMPLE})"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} can't be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source} is no valid TOML: {error}") from None
        _check_keys(document, ("cluster", "shard", "citus", "outbox", "retention"), source)
        cluster = document.get("cluster", {})
        if not isinstance(cluster, dict) or "name" not in cluster:
            raise ConfigError(f'{source}: the cluster has no name; write [cluster] and below it name = "shop"')
        _check_keys(cluster, ("name",), f"{source}: [cluster]")
        shards = document.get("shard", [])
        if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
            raise ConfigError(f"{source}: shards are written as [[shard]], with two brackets on each side")
        outboxes = document.get("outbox", [])
        if not isinstance(outboxes, list) or not all(isinstance(outbox, dict) for outbox in outboxes):
            raise ConfigError(f"{source}: outboxes are written as [[outbox]], with two brackets on each side")
        name = _string(cluster, "name", f"{source}: [cluster]")
        coordinator = _coordinator(document["citus"], source, environ) if "citus" in document else None
        if coordinator is not None and shards:
            raise ConfigError(f"{source}: [citus] or [[shard]], one of the two: the coordinator knows the nodes itself")
        return cls(
            name, tuple(_database(shard, "shard", source, environ) for shard in shards), source,
            tuple(_database(outbox, "outbox", source, environ) for outbox in outboxes),
            _retention(document.get("retention"), source), coordinator,
        )  # fmt: skip

    def shard(self, name: str) -> ShardConfig:
        """The shard of this name; ``ConfigError`` names those that there are."""
        for shard in self.shards:
            if shard.name == name:
                return shard
        known = ", ".join(shard.name for shard in self.shards)
        raise ConfigError(f"{self.source}: there is no shard {name!r}; there are {known}")


def find_config(
    argument: str | os.PathLike[str] | ClusterConfig | None = None,
    *,
    embedded: Callable[[str], ClusterConfig] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ClusterConfig:
    """The cluster to use: the argument (a ``ClusterConfig``, a DSN, the path of a ``shards.toml``), else what
    ``SHARDED_WF_CONFIG`` says (a DSN or a path), else ``./shards.toml``.

    ``embedded`` provides the servers for the argument ``"embedded:"`` (what follows the colon is handed on to it);
    without it, and in the variable, that is refused: real orders must not start on a private database because a
    variable was forgotten. Raises ``NoClusterConfigured`` if nothing names a cluster, ``ConfigError`` if what does
    can't be used.
    """
    if isinstance(argument, ClusterConfig):
        return argument
    if argument is not None:
        named = os.fspath(argument)
        if named.startswith(EMBEDDED) and embedded is not None:
            return embedded(named.removeprefix(EMBEDDED))
        return _read(named, "the argument", environ)
    if named := environ.get(CONFIG_VARIABLE, ""):
        return _read(named, CONFIG_VARIABLE, environ)
    if Path(CONFIG_FILE).is_file():
        return ClusterConfig.from_file(CONFIG_FILE, environ)
    raise NoClusterConfigured(
        "no cluster is named. Either pass a shards.toml or a DSN, or set "
        f"{CONFIG_VARIABLE} to one, or put a {CONFIG_FILE} into the working directory ({Path.cwd()}). "
        'To try things out on private servers: sharded-wf dev, or connect("embedded:")'
    )


def _read(named: str, source: str, environ: Mapping[str, str]) -> ClusterConfig:
    if not named:
        raise ConfigError(f"{source} is empty: name a shards.toml or a DSN ({_DSN_EXAMPLE})")
    if named.startswith(EMBEDDED):
        raise ConfigError(
            f'{source} says {EMBEDDED!r}, but only dev, demo, bench and connect("embedded:") use embedded servers; '
            "while one of them runs, name the .sharded_wf/shards.toml that it made, else a shards.toml or a DSN "
            f"({_DSN_EXAMPLE})"
        )
    if "://" in named or ("=" in named and not named.endswith(".toml") and not Path(named).exists()):
        return ClusterConfig.from_dsn(named, source)
    return ClusterConfig.from_file(named, environ)


def _database(table: dict[str, object], kind: str, source: str, environ: Mapping[str, str]) -> ShardConfig:
    if "name" not in table:
        raise ConfigError(f'{source}: a [[{kind}]] has no name; write name = "pg1"')
    name = _string(table, "name", f"{source}: [[{kind}]]")
    where = f"{source}: [[{kind}]] {name!r}"
    weights = ("weight",) if kind == "shard" else ()
    _check_keys(table, ("name", "dsn", "dsn_env", *weights), where)
    weight = table.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{where}: weight must be a number; write weight = 2")
    return ShardConfig(name, _dsn(table, "dsn", "PG1_DSN", where, environ), float(weight))


def _coordinator(table: object, source: str, environ: Mapping[str, str]) -> str:
    where = f"{source}: [citus]"
    if not isinstance(table, dict):
        raise ConfigError(f'{where} must be a table; write [citus] and below it coordinator = "{_DSN_EXAMPLE}"')
    _check_keys(table, ("coordinator", "coordinator_env"), where)
    return _dsn(table, "coordinator", "CITUS_DSN", where, environ)


def _dsn(table: dict[str, object], key: str, example: str, where: str, environ: Mapping[str, str]) -> str:
    """The DSN under this key, or in the environment variable that ``<key>_env`` names."""
    if (key in table) == (f"{key}_env" in table):
        raise ConfigError(f'{where} needs either {key} = "{_DSN_EXAMPLE}" or {key}_env = "{example}", one of the two')
    if key in table:
        return _string(table, key, where)
    variable = _string(table, f"{key}_env", where)
    dsn = environ.get(variable)
    if not dsn:
        raise ConfigError(f"{where}: {key}_env names {variable}, which is not set; set it to a DSN ({_DSN_EXAMPLE})")
    return dsn


def _retention(table: object, source: str) -> Retention | None:
    if table is None:
        return None
    where = f"{source}: [retention]"
    if not isinstance(table, dict):
        raise ConfigError(f'{where} must be a table; write [retention] and below it default = "30 days"')
    _check_keys(table, ("default", "queues", "workflows", "export"), where)
    for key in ("queues", "workflows"):
        if not isinstance(table.get(key, {}), dict):
            raise ConfigError(
                f'{where}: {key} must be a table; write [retention.{key}] and below it "name" = "30 days"'
            )
    export = None if "export" not in table else _string(table, "export", where)
    try:
        return Retention(table.get("default"), table.get("queues", {}), table.get("workflows", {}), export)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_keys(table: dict[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known here: {', '.join(known)}")


def _string(table: dict[str, object], key: str, where: str) -> str:
    value = table[key]
    if not isinstance(value, str):
        raise ConfigError(f'{where}: {key} must be text; write {key} = "{value}"')
    return value


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} is {name!r}; write {_NAME_RULE}, beginning with a letter or digit")


def _check_dsn(dsn: str, where: str) -> None:
    reason = ""
    try:
        if conninfo_to_dict(dsn):
            return
    except psycopg.ProgrammingError as error:
        harmless = _HARMLESS_COMPLAINT.search(str(error))
        reason = f" ({harmless[0]})" if harmless else ""
    raise ConfigError(f"{where}: this is no valid DSN{reason}; write {_DSN_EXAMPLE} or host=… dbname=…") from None
