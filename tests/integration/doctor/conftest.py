"""Clusters for the doctor's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.dev import EmbeddedServer
from tests.integration.engine.conftest import cluster, cluster_and_far, make_cluster, two_shards

__all__ = ["cluster", "cluster_and_far", "make_cluster", "two_shards"]

Own = tuple[ClusterConfig, EmbeddedServer]


@pytest.fixture
def own(server_factory: Callable[..., EmbeddedServer]) -> Callable[..., Own]:
    """``own(setting="value")`` makes a cluster of one shard on a server of its own, with settings of its own."""

    def make(**settings: str) -> Own:
        server = server_factory(settings=settings)
        config = ClusterConfig("own", (ShardConfig("pg1", server.create_database("wf")),))
        init_cluster(config, slots=3)
        return config, server

    return make
