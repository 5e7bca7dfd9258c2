"""Clusters for the tests of moves."""

from __future__ import annotations

from tests.integration.engine.conftest import cluster, cluster_templates, make_cluster, two_shards

__all__ = ["cluster", "cluster_templates", "make_cluster", "two_shards"]
