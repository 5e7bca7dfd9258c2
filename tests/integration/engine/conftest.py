"""Clusters for the engine's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharded_wf.dev import EmbeddedServer
from tests.support import citus
from tests.support.cluster import TestCluster
from tests.support.flows import LEDGER_VARIABLE


@pytest.fixture
def make_cluster(
    databases: Callable[..., list[str]],
    cluster_templates: Callable[[int, int], list[str]],
    citus_templates: dict[tuple[int, int], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[..., TestCluster]:
    """``make_cluster(shards, slots=6)`` gives a cluster in databases of the test's own; ``dsns=[...]`` initialises one
    in those instead. Executors in this process write to its ledger. With ``SHARDED_WF_TEST_CITUS`` it is a Citus
    cluster; ``alone``: no other test uses its servers."""

    def make(shards: int = 1, *, dsns: list[str] | None = None, slots: int = 6, alone: bool = False) -> TestCluster:
        if citus.COORDINATOR:
            if dsns is not None:
                pytest.skip("on Citus only clusters of its own nodes are tested")
            lock = contextlib.ExitStack()
            request.addfinalizer(lock.close)
            lock.enter_context(citus.in_use(alone=alone))
            (ledger,) = databases(1)
            monkeypatch.setenv(LEDGER_VARIABLE, ledger)
            made = TestCluster.on_citus(citus_templates, shards, slots, ledger, tmp_path)
            request.addfinalizer(lambda: made.wipe(citus_templates))
            return made
        if dsns is None:
            *dsns, ledger = databases(shards + 1, like=cluster_templates(shards, slots))
        else:
            (ledger,) = databases(1)
            TestCluster.initialise(dsns, ledger, slots)
        monkeypatch.setenv(LEDGER_VARIABLE, ledger)
        return TestCluster.of(dsns, ledger, tmp_path)

    return make


@pytest.fixture
def cluster(make_cluster: Callable[..., TestCluster]) -> TestCluster:
    """One shard with six slots."""
    return make_cluster(1)


@pytest.fixture
def two_shards(make_cluster: Callable[..., TestCluster]) -> TestCluster:
    """Two shards with three slots each."""
    return make_cluster(2)


@pytest.fixture
def cluster_and_far(
    make_cluster: Callable[..., TestCluster],
    databases: Callable[[int], list[str]],
    server_factory: Callable[..., EmbeddedServer],
) -> Iterator[tuple[TestCluster, EmbeddedServer | citus.Server]]:
    """Two shards with three slots each, and the server of the second, which is its alone: to stop, kill or pause."""
    if citus.COORDINATOR:
        two = make_cluster(2, alone=True)
        node = citus.Server(two.direct[1])
        yield two, node
        node.resume()
        node.start()
    else:
        server = server_factory()
        yield make_cluster(dsns=[*databases(1), server.create_database("away")]), server
