"""Clusters for the tests of moves."""

from __future__ import annotations

from tests.integration.engine.conftest import cluster, make_cluster, two_shards

__all__ = ["cluster", "make_cluster", "two_shards"]
