"""A cluster of embedded servers: what ``"embedded:"`` stands for, and what ``dev``, the demo and the tests run on.

One server per shard, as in production, and not one server with several databases: what is tried out here (a shard that
is away, the pace of commits) shall behave as it will there. Kept servers belong to all processes that use them; the
last one to end stops them.
"""

from __future__ import annotations

import os
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import CONFIG_FILE, ClusterConfig, ShardConfig
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.dev.places import reachable_directory
from sharded_wf.errors import ConfigError, EmbeddedServerError
from sharded_wf.limits import SLOTS_DEFAULT

DIRECTORY_DEFAULT = ".sharded_wf"
SHARDS_DEFAULT = 4
SHARDS_MAX = 16
"""Each shard is a Postgres server of its own; more than this is no longer a thing of one machine."""
CLUSTER_NAME = "embedded"

T = TypeVar("T")


class EmbeddedCluster:
    """Embedded servers, one per shard, with a cluster on them. A context manager: started and initialised inside.

    ``directory``: where data are kept; servers that another process runs there are joined. None: temporary, gone at the
    end. ``shards``: how many (None: as many as the directory holds, else 4). ``slots``: of a new cluster. ``settings``:
    lines for ``postgresql.conf``.

    Entering raises ``EmbeddedPostgresMissing`` without the extra ``embedded``, ``EmbeddedServerError`` if a server does
    not start, ``ConfigError`` if the directory holds a cluster with another number of shards.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        shards: int | None = None,
        slots: int = SLOTS_DEFAULT,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if shards is not None and not 1 <= shards <= SHARDS_MAX:
            raise ConfigError(f"{shards} embedded shards: choose 1 to {SHARDS_MAX}")
        self.directory = None if directory is None else Path(directory).absolute()
        self.servers: tuple[EmbeddedServer, ...] = ()
        """One for each shard, in the order of ``config.shards``."""
        self._shards = shards
        self._slots = slots
        self._settings = dict(settings or {})
        self._config: ClusterConfig | None = None

    @property
    def config(self) -> ClusterConfig:
        """The cluster, to connect to. ``EmbeddedServerError`` outside the ``with`` block."""
        if self._config is None:
            raise EmbeddedServerError("this embedded cluster is not open: use it as a context manager")
        return self._config

    @property
    def config_path(self) -> Path | None:
        """The ``shards.toml`` by which other processes find a kept cluster; None for a temporary one."""
        return None if self.directory is None else self.directory / CONFIG_FILE

    def open(self) -> None:
        """Start the servers, or join those that run, and make the cluster on them. Opening twice is fine."""
        if self._config is not None:
            return
        names = self._names()
        made: dict[str, EmbeddedServer] = {}
        try:
            try:
                _at_once(names, lambda name: made.update({name: self._make_server(name)}))
            finally:
                self.servers = tuple(made[name] for name in names if name in made)
            _at_once(self.servers, EmbeddedServer.start)
            config = ClusterConfig(
                CLUSTER_NAME,
                tuple(ShardConfig(name, server.dsn()) for name, server in zip(names, self.servers, strict=True)),
                source=f"the embedded servers in {self.directory}" if self.directory else "the embedded servers",
            )
            init_cluster(config, None if _count_shards(self.config_path) else self._slots)
        except BaseException:
            self.close()
            raise
        self._config = config
        self._tell()

    def _names(self) -> list[str]:
        """The names of the shards. The file is written last, so without it there is no cluster yet."""
        found = _count_shards(self.config_path)
        if found is not None and self._shards not in (None, found):
            raise ConfigError(
                f"{self.directory} holds a cluster of {found} shards, not {self._shards}: choose another directory, or "
                "remove this one with all that is in it"
            )
        return [f"pg{number}" for number in range(1, (found or self._shards or SHARDS_DEFAULT) + 1)]

    def _make_server(self, name: str) -> EmbeddedServer:
        if self.directory is None:
            return EmbeddedServer.create(settings=self._settings)
        place = reachable_directory(self.directory) / name
        return EmbeddedServer.create(place, settings=self._settings, shared=True)

    def _tell(self) -> None:
        """Write the ``shards.toml`` of a kept cluster, at one stroke: others may be reading it."""
        path = self.config_path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        ignore = path.with_name(".gitignore")
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
        lines = ["# Written by sharded-wf. The servers run as long as a process uses them.", "[cluster]"]
        lines.append(f'name = "{self.config.name}"')
        for shard in self.config.shards:
            lines += ["[[shard]]", f'name = "{shard.name}"', f"dsn = '{shard.dsn}'"]
        scratch = path.with_name(f"{CONFIG_FILE}.{os.getpid()}")
        scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
        scratch.replace(path)

    def close(self) -> None:
        """Give the servers up: temporary ones vanish, kept ones stop if nobody else uses them. Twice is fine."""
        servers, self.servers, self._config = self.servers, (), None
        _at_once(servers, _discard if self.directory is None else EmbeddedServer.close)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def embedded_cluster(where: str = "", *, shards: int | None = None) -> ClusterConfig:
    """The cluster that ``"embedded:"`` (``where`` is what follows the colon: a directory, or nothing for
    ``./.sharded_wf``) stands for, running as long as this process does. ``shards``: as ``EmbeddedCluster``, which see
    for the errors."""
    place = Path(where or DIRECTORY_DEFAULT).absolute()
    key = (os.getpid(), place)  # a fork does not own its parent's servers, and joins them
    with _opening:
        cluster = _open.get(key)
        if cluster is not None and not all(server.is_running() for server in cluster.servers):
            cluster.close()
            cluster = None
        if cluster is None:
            cluster = EmbeddedCluster(place, shards=shards)
            cluster.open()
            _open[key] = cluster
        return cluster.config


_open: dict[tuple[int, Path], EmbeddedCluster] = {}
"""Never closed: when the process ends, in whatever way, the servers see it."""
_opening = threading.Lock()


def _count_shards(path: Path | None) -> int | None:
    if path is None or not path.exists():
        return None
    try:
        return len(tomllib.loads(path.read_text(encoding="utf-8"))["shard"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is not what sharded-wf wrote there: {error}") from None


def _discard(server: EmbeddedServer) -> None:
    server.stop("immediate")  # no checkpoint of what nobody reads again
    server.close()


def _at_once(items: Sequence[T], act: Callable[[T], None]) -> None:
    """Do it to all of them at the same time, as most of it is waiting; the first error is raised when all are done."""
    if not items:
        return
    with ThreadPoolExecutor(len(items), thread_name_prefix="embedded") as threads:
        for done in [threads.submit(act, item) for item in items]:
            done.result()
