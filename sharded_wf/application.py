"""The public face: an app that can also be connected to a cluster.

``workflow.App`` knows nothing of clusters, so that code can be replayed and tested without one; this class adds the two
ways out, a client and an executor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from sharded_wf.client import Client
from sharded_wf.client.blocking import BlockingClient
from sharded_wf.config import ClusterConfig, find_config
from sharded_wf.dev.cluster import embedded_cluster
from sharded_wf.executor import Executor
from sharded_wf.workflow.app import App as WorkflowApp

Cluster = str | Path | ClusterConfig | None
"""Where the cluster is: a ``shards.toml``, a DSN, ``"embedded:"``, or None for ``SHARDED_WF_CONFIG`` or
``./shards.toml``."""


def connect(cluster: Cluster = None) -> AbstractAsyncContextManager[Client]:
    """A client for as long as the ``async with`` block runs: ``async with connect("shards.toml") as client``.

    Raises ``ConfigError`` and its kinds if the cluster can't be found or is not what this process believes,
    ``ShardUnavailable`` if no shard answers.
    """
    return _connect(cluster)


@asynccontextmanager
async def _connect(cluster: Cluster) -> AsyncGenerator[Client]:
    # In a thread: embedded servers take seconds to start, and the program's event loop has other things to do.
    config = await asyncio.to_thread(find_config, cluster, embedded=embedded_cluster)
    async with Client.connect(config) as client:
        yield client


def connect_blocking(cluster: Cluster = None) -> AbstractContextManager[BlockingClient]:
    """As ``connect``, for programs without asyncio: ``with connect_blocking("shards.toml") as client``."""
    return BlockingClient.connect(find_config(cluster, embedded=embedded_cluster))


class App(WorkflowApp):
    __doc__ = WorkflowApp.__doc__

    def connect(self, cluster: Cluster = None) -> AbstractAsyncContextManager[Client]:
        """As ``sharded_wf.connect``."""
        return connect(cluster)

    def connect_blocking(self, cluster: Cluster = None) -> AbstractContextManager[BlockingClient]:
        """As ``sharded_wf.connect_blocking``."""
        return connect_blocking(cluster)

    def executor(self, cluster: Cluster = None, **options: Any) -> Executor:
        """An executor of this app within this process: ``async with app.executor("shards.toml"):``. Options as
        ``Executor``. Production runs ``sharded-wf worker`` instead. ``"embedded:"`` starts servers here and now, which
        blocks for seconds, unless a ``connect("embedded:")`` before it did."""
        return Executor(self, find_config(cluster, embedded=embedded_cluster), **options)
