"""What the machine and the servers say: CPU time of processes, WAL, commits, memory. Read twice, subtracted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from sharded_wf.config import ClusterConfig
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.dev.supervisor import process_family

from .ceiling import cpu_seconds

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def postmaster_of(server: EmbeddedServer) -> int:
    """The process from which all of this server's descend."""
    return int((server.data_directory / "postmaster.pid").read_text().splitlines()[0])


def family_cpu_seconds(root: int) -> float:
    """CPU time of a process and all its descendants, ended ones included."""
    return cpu_seconds(root, ended_children=True) + sum(cpu_seconds(pid) for pid in process_family(root) if pid != root)


def rss_bytes(pid: int) -> int:
    """Memory of a process that lies in RAM; 0 once it is gone."""
    with contextlib.suppress(OSError):
        return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


@dataclass(frozen=True)
class Usage:
    """What was used since the beginning of time. ``postgres_cpu_seconds`` by shard, of servers that are ours."""

    postgres_cpu_seconds: Mapping[str, float]
    executor_cpu_seconds: float
    client_cpu_seconds: float
    wal_bytes: Mapping[str, int]
    commits: Mapping[str, int]

    def since(self, before: Usage) -> Usage:
        return Usage(
            {name: used - before.postgres_cpu_seconds[name] for name, used in self.postgres_cpu_seconds.items()},
            self.executor_cpu_seconds - before.executor_cpu_seconds,
            self.client_cpu_seconds - before.client_cpu_seconds,
            {name: now - before.wal_bytes[name] for name, now in self.wal_bytes.items()},
            {name: now - before.commits[name] for name, now in self.commits.items()},
        )


class Sampler:
    """Reads usage; its connections stay open, so that reading costs next to nothing."""

    def __init__(self, config: ClusterConfig, servers: Mapping[str, EmbeddedServer]) -> None:
        self._postmasters = {name: postmaster_of(server) for name, server in servers.items()}
        self._connections = {shard.name: psycopg.connect(shard.dsn, autocommit=True) for shard in config.shards}

    def read(self, executors: Iterable[int], clients: Iterable[int]) -> Usage:
        wal: dict[str, int] = {}
        commits: dict[str, int] = {}
        for name, conn in self._connections.items():
            row = conn.execute(
                "select (pg_current_wal_insert_lsn() - '0/0')::bigint, xact_commit from pg_stat_database "
                "where datname = current_database()"
            ).fetchone()
            assert row is not None
            wal[name], commits[name] = row
        return Usage(
            {name: family_cpu_seconds(pid) for name, pid in self._postmasters.items()},
            sum(map(cpu_seconds, executors)),
            sum(map(cpu_seconds, clients)),
            wal,
            commits,
        )

    def close(self) -> None:
        for conn in self._connections.values():
            conn.close()
