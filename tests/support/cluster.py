"""A small cluster for one test: its configuration, its ledger, worker processes on it, and a look at its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from sharded_wf.cluster.citus import resolve
from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig, ShardConfig
from tests.support import certificate, citus, flows
from tests.support.processes import WorkerProcess

RUN_WORKER = "from sharded_wf.cli import main; main()"


@dataclass(frozen=True)
class TestCluster:
    """``config`` names the shards as the engine shall reach them; ``direct`` holds their true connection strings, for
    judging (the same, unless a proxy stands between)."""

    __test__ = False

    config: ClusterConfig
    direct: tuple[str, ...]
    ledger: str
    directory: Path

    @classmethod
    def of(cls, dsns: list[str], ledger: str, directory: Path) -> TestCluster:
        """The cluster of shards pg1, pg2, … in databases that were initialised."""
        shards = tuple(ShardConfig(f"pg{number}", dsn) for number, dsn in enumerate(dsns, 1))
        return cls(ClusterConfig("engine", shards), tuple(dsns), ledger, directory)

    @classmethod
    def on_citus(
        cls, templates: dict[tuple[int, int], str], shards: int, slots: int, ledger: str, directory: Path
    ) -> TestCluster:
        """A cluster of so many nodes of the Citus cluster; one that a test before left empty, if there is one."""
        coordinator = templates.pop((shards, slots), None)
        if coordinator is None:
            coordinator = citus.make(shards)
            init_cluster(ClusterConfig("engine", (), coordinator=coordinator), slots=slots)
        with psycopg.connect(ledger, autocommit=True) as conn:
            conn.execute(flows.LEDGER_TABLE)
        config = resolve(ClusterConfig("engine", (), coordinator=coordinator))
        return cls(config, tuple(shard.dsn for shard in config.shards), ledger, directory)

    def wipe(self, templates: dict[tuple[int, int], str]) -> None:
        """Make a cluster on Citus as it was, for the next test; or drop it, if it can't be."""
        assert self.config.coordinator is not None
        slots = [citus.wipe(dsn) for dsn in self.direct]
        key = len(self.direct), sum(filter(None, slots))
        if None in slots or templates.setdefault(key, self.config.coordinator) != self.config.coordinator:
            citus.drop(self.config.coordinator)

    @classmethod
    def initialise(cls, dsns: list[str], ledger: str, slots: int) -> None:
        """Make these empty databases the shards and the ledger of a cluster."""
        init_cluster(cls.of(dsns, ledger, Path()).config, slots=slots)
        with psycopg.connect(ledger, autocommit=True) as conn:
            conn.execute(flows.LEDGER_TABLE)

    def name(self, shard: int) -> str:
        """What the configuration calls shard 1, 2, …"""
        return self.config.shards[shard - 1].name

    def through(self, *dsns: str) -> TestCluster:
        """The same cluster, reached by other connection strings, one for each of the first shards."""
        shards = list(self.config.shards)
        for at, dsn in enumerate(dsns):
            shards[at] = ShardConfig(shards[at].name, dsn)
        return replace(self, config=replace(self.config, shards=tuple(shards)))

    def worker(self, *options: str, app: str = "tests.support.flows:app", code: str = RUN_WORKER) -> WorkerProcess:
        """Start ``sharded-wf worker`` as a process of its own."""
        path = str(self.config_file())
        return WorkerProcess(
            code, "worker", app, "--cluster", path, *options, environment={flows.LEDGER_VARIABLE: self.ledger}
        )

    def config_file(self) -> Path:
        """A ``shards.toml`` for this cluster."""
        path = self.directory / f"shards-{abs(hash((self.config.shards, self.config.outboxes)))}.toml"
        tables = [
            f'[[{kind}]]\nname = "{one.name}"\ndsn = "{one.dsn}"\n'
            for kind, listed in (("shard", self.config.shards), ("outbox", self.config.outboxes))
            for one in listed
        ]
        if self.config.coordinator is not None and self.direct == tuple(shard.dsn for shard in self.config.shards):
            tables = [one for one in tables if one.startswith("[[outbox]]")]
            tables.append(f'[citus]\ncoordinator = "{self.config.coordinator}"\n')
        path.write_text(f'[cluster]\nname = "{self.config.name}"\n{"".join(tables)}')
        return path

    def ids_on(self, shard: int, count: int, prefix: str = "w") -> list[str]:
        """IDs of workflows that live on shard pg<shard>."""
        shard_map = load_map(self.config).shard_map
        found: list[str] = []
        number = 0
        while len(found) < count:
            id_ = f"{prefix}-{number}"
            if shard_map.shard_of(id_) == self.name(shard):
                found.append(id_)
            number += 1
        return found

    def shard_of(self, id_: str) -> int:
        """The number of the shard on which a workflow with this ID lives."""
        name = load_map(self.config).shard_map.shard_of(id_)
        return 1 + [shard.name for shard in self.config.shards].index(name)

    def rows(self) -> certificate.Rows:
        """Every row, the ledger's too."""
        return certificate.read_rows(self.direct, self.ledger)

    def statuses(self) -> dict[str, int]:
        """The status of every workflow, by ID."""
        return {row["id"]: row["status"] for row in self.rows().workflow}

    def ask(self, query: LiteralString, shard: int = 1, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement on shard pg<shard>, past any proxy."""
        with psycopg.connect(self.direct[shard - 1], autocommit=True) as conn:
            return conn.execute(query, parameters).fetchall()

    def ask_all(self, table: LiteralString, where: LiteralString) -> list[tuple[Any, ...]]:
        """Rows of a slots' table, of all slots and shards, past any proxy."""
        found: list[tuple[Any, ...]] = []
        for dsn in self.direct:
            with psycopg.connect(dsn, autocommit=True) as conn:
                for schema in certificate.slot_schemas(conn):
                    query = sql.SQL("select * from {}.{} where " + where)
                    found += conn.execute(query.format(sql.Identifier(schema), sql.Identifier(table))).fetchall()
        return found

    def bodies(self) -> list[tuple[str, str, int, str, int]]:
        """The ledger in order: workflow, step, number, key, process."""
        with psycopg.connect(self.ledger, autocommit=True) as conn:
            return conn.execute("select workflow, step, number, key, pid from ledger order by line").fetchall()

    def leases(self, shard: int = 1) -> dict[str, Any]:
        """The leases on a shard: ID -> executor."""
        return {str(id_): executor for id_, executor in self.ask("select id, executor from wf_control.lease", shard)}

    @contextlib.contextmanager
    def closed_gate(self) -> Generator[psycopg.Connection[tuple[Any, ...]]]:
        """While the block runs (or until the connection is closed), ``gated_note`` steps wait."""
        with psycopg.connect(self.ledger, autocommit=True) as conn:
            conn.execute("select pg_advisory_lock(%s)", (flows.GATE,))
            yield conn

    def certify(self, acknowledged: Collection[str] = (), **options: Any) -> certificate.Rows:
        """As ``certificate.certify``."""
        return certificate.certify(self.direct, acknowledged, ledger=self.ledger, **options)
