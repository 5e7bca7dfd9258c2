"""Clusters for the tests of moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sharded_wf.dev import EmbeddedServer
from tests.integration.engine.conftest import cluster, make_cluster, two_shards
from tests.support.cluster import TestCluster

__all__ = ["Apart", "apart", "cluster", "make_cluster", "two_shards"]

Apart = Callable[[str], tuple[EmbeddedServer, TestCluster]]


@pytest.fixture
def apart(
    make_cluster: Callable[..., TestCluster],
    databases: Callable[[int], list[str]],
    server_factory: Callable[..., EmbeddedServer],
) -> Apart:
    """Makes two shards, of which the one that is named has a server of its own, to be killed or frozen."""

    def make(name: str) -> tuple[EmbeddedServer, TestCluster]:
        server = server_factory()
        own, other = server.create_database("apart"), databases(1)[0]
        return server, make_cluster(dsns=[own, other] if name == "pg1" else [other, own])

    return make
