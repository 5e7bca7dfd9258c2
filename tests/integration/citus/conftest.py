"""Tests of what is a Citus cluster's own. They run only where one is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.engine.conftest import make_cluster
from tests.support import citus
from tests.support.cluster import TestCluster

__all__ = ["make_cluster"]


@pytest.fixture(autouse=True)
def _on_citus() -> None:
    if not citus.COORDINATOR:
        pytest.skip(citus.HOW)


@pytest.fixture
def two_shards(make_cluster: Callable[..., TestCluster]) -> TestCluster:
    """Two nodes with three slots each, and nobody else on their servers: Citus names replication slots after nodes and
    moves, so two of its clusters on the same servers can't move at once."""
    return make_cluster(2, alone=True)
