"""The pytest plugin: fixtures for tests of your workflows, registered as an entry point of this package.

``workflow_cluster``: an empty cluster, one for each test, on an embedded Postgres server that the session shares.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

# What needs Postgres is imported by the fixtures: every pytest of a project that has this package loads this module.
if TYPE_CHECKING:
    from sharded_wf.config import ClusterConfig
    from sharded_wf.dev import EmbeddedServer

SLOTS = 2
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def workflow_server() -> Generator[EmbeddedServer]:
    """One embedded Postgres server for the session (with pytest-xdist: for each worker). Needs the extra
    ``embedded``."""
    from sharded_wf.dev import EmbeddedServer

    with EmbeddedServer.create() as server:
        yield server


@pytest.fixture
def workflow_cluster(workflow_server: EmbeddedServer) -> Generator[ClusterConfig]:
    """An empty cluster of two shards, for one test: give it to ``WorkflowEnvironment``, or to ``app.connect``."""
    from sharded_wf.cluster.initialize import init_cluster
    from sharded_wf.config import ClusterConfig, ShardConfig

    names = [f"workflows_{next(_numbers)}" for _ in range(2)]
    config = ClusterConfig(
        "test",
        tuple(
            ShardConfig(f"pg{number}", workflow_server.create_database(name)) for number, name in enumerate(names, 1)
        ),
        source="the fixture workflow_cluster",
    )
    init_cluster(config, SLOTS)
    yield config
    for name in names:
        workflow_server.drop_database(name)
