"""Tests of what is a Citus cluster's own. They run only where one is named."""

from __future__ import annotations

import pytest

from tests.integration.engine.conftest import cluster, cluster_and_far, make_cluster, two_shards
from tests.support import citus

__all__ = ["cluster", "cluster_and_far", "make_cluster", "two_shards"]


@pytest.fixture(autouse=True)
def _on_citus() -> None:
    if not citus.COORDINATOR:
        pytest.skip(citus.HOW)
