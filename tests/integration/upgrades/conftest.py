"""Clusters, and the next release of the code, for the tests of upgrades."""

from __future__ import annotations

import pytest

from tests.integration.cli.conftest import command_line
from tests.integration.engine.conftest import cluster, make_cluster, two_shards
from tests.support.releases import Release, make_next

__all__ = ["cluster", "command_line", "make_cluster", "two_shards"]


@pytest.fixture(scope="session")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release after ours."""
    return make_next(tmp_path_factory.mktemp("next"))
