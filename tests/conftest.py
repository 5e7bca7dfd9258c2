"""Fixtures for all tests: Postgres servers, databases, and the seed of this run.

A worker of pytest-xdist has one server for all its tests, started with the first test that needs one; each test has
databases of its own on it. A test that stops, kills or pauses a server asks for one of its own (``server_factory``).

The environment chooses: ``SHARDED_WF_TEST_POSTGRES`` the server's version (18 unless set; ``make test-full`` runs all),
``SHARDED_WF_TEST_SEED`` the seed of everything random, ``SHARDED_WF_TEST_FULL=1`` every case of each test instead of a
sample, ``SHARDED_WF_TEST_SAMPLED=1`` (``make test`` sets it) a sample of the slow tests too: those marked ``sampled``,
``SHARDED_WF_TEST_KILL_ONE_IN=1`` with ``FULL`` every moment at which the test of all stories kills somebody.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg import sql

from sharded_wf.dev import EmbeddedServer, reachable_directory
from tests.support import citus
from tests.support.cluster import TestCluster

POSTGRES_VERSION = os.environ.get("SHARDED_WF_TEST_POSTGRES", "18")
FULL = os.environ.get("SHARDED_WF_TEST_FULL", "") == "1"
SAMPLED = os.environ.get("SHARDED_WF_TEST_SAMPLED", "") == "1" and not FULL
SAMPLED_ONE_IN = 4  # of the tests marked `sampled`, so many times fewer run

# Sampled tests take the run's seed; setting it repeats a failure. The workers inherit what the first process set.
SEED = int(os.environ.setdefault("SHARDED_WF_TEST_SEED", str(random.SystemRandom().randrange(2**31))))

_database_numbers = itertools.count(1)


# No deadline: a slow machine is no bug.
hypothesis.settings.register_profile("sampled", deadline=None)
hypothesis.settings.register_profile("full", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("full" if FULL else "sampled")


@pytest.hookimpl(tryfirst=True)  # before hypothesis' own plugin looks for its seed
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(SEED)


def pytest_report_header() -> str:
    tried = "every case" if FULL else f"one in {SAMPLED_ONE_IN} of the slow tests" if SAMPLED else "every test, sampled"
    server = "Citus" if citus.COORDINATOR else f"PostgreSQL {POSTGRES_VERSION}"
    return f"sharded_wf: SHARDED_WF_TEST_SEED={SEED} {server}, {tried}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not SAMPLED:
        return
    left_out = [item for item in items if item.get_closest_marker("sampled") and _seed_of(item) % SAMPLED_ONE_IN]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    if exitstatus:
        terminalreporter.write_line(f"To repeat this run: SHARDED_WF_TEST_SEED={SEED}", yellow=True)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own, which follows from the run's seed and the test's name, whatever ran before."""
    return _seed_of(request.node)


def _seed_of(test: pytest.Item) -> int:
    return zlib.crc32(f"{SEED}:{test.nodeid}".encode())


@pytest.fixture
def full() -> bool:
    """Whether to try every case rather than a sample."""
    return FULL


@pytest.fixture(autouse=True)
def _kept_data_go(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the test's directory go the data of the embedded clusters that it kept there: root's lie elsewhere."""
    kept_in: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for found in [] if kept_in is None else kept_in.rglob("shards.toml"):
        apart = reachable_directory(found.parent)
        if apart != found.parent and apart.is_dir():
            for lock in apart.glob("*/lock"):
                with open(lock, "w") as held:
                    fcntl.flock(held, fcntl.LOCK_EX)  # its server may be stopping still
            shutil.rmtree(apart)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedServer]:
    """This worker's server. Tests share it: never stop or pause it; it listens on a Unix socket and on TCP."""
    with EmbeddedServer.create(version=POSTGRES_VERSION, tcp=True, settings={"max_connections": "400"}) as server:
        yield server


@pytest.fixture(scope="session")
def undertaker(postgres_server: EmbeddedServer) -> Iterator[ThreadPoolExecutor]:
    """Drops databases while the next tests run already: each drop waits for a checkpoint."""
    thread = ThreadPoolExecutor(1, "undertaker")
    yield thread
    thread.shutdown(cancel_futures=True)  # the whole server goes


@pytest.fixture
def databases(postgres_server: EmbeddedServer, undertaker: ThreadPoolExecutor) -> Iterator[Callable[..., list[str]]]:
    """``databases(n)`` makes n empty databases on the worker's server and gives their connection strings;
    ``databases(n, like=names)`` copies others."""
    made: list[str] = []

    def make(count: int, like: Sequence[str] = ()) -> list[str]:
        names = [f"test_{next(_database_numbers)}" for _ in range(count)]
        made.extend(names)
        with psycopg.connect(postgres_server.dsn(), autocommit=True) as conn:
            for name, template in itertools.zip_longest(names, like, fillvalue="template1"):
                conn.execute(
                    sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
                )
        return [postgres_server.dsn(name) for name in names]

    yield make
    for name in made:
        undertaker.submit(postgres_server.drop_database, name)


@pytest.fixture(scope="session")
def cluster_templates(postgres_server: EmbeddedServer) -> Callable[[int, int], list[str]]:
    """``cluster_templates(shards, slots)`` names databases that hold an initialised cluster, and its ledger last. To
    copy them takes a fraction of the time of making them."""
    made: dict[tuple[int, int], list[str]] = {}

    def template(shards: int, slots: int) -> list[str]:
        names = made.get((shards, slots))
        if names is None:
            names = [f"cluster_{shards}_{slots}_{number}" for number in range(shards + 1)]
            *dsns, ledger = [postgres_server.create_database(name) for name in names]
            TestCluster.initialise(dsns, ledger, slots)
            made[shards, slots] = names
        return names

    return template


@pytest.fixture(scope="session")
def citus_templates() -> Iterator[dict[tuple[int, int], str]]:
    """Citus clusters that are initialised and empty: by the numbers of their nodes and slots, the coordinator's DSN."""
    made: dict[tuple[int, int], str] = {}
    yield made
    for coordinator in made.values():
        citus.drop(coordinator)


@pytest.fixture
def database(databases: Callable[[int], list[str]]) -> str:
    """The connection string of one empty database."""
    return databases(1)[0]


@pytest.fixture
def server_factory() -> Iterator[Callable[..., EmbeddedServer]]:
    """``server_factory(**options)`` gives a running server for this test alone, to stop, kill, pause and restart.

    The options are those of ``EmbeddedServer.create``; the version is the run's unless given.
    """
    servers: list[EmbeddedServer] = []

    def make(**options: Any) -> EmbeddedServer:
        options.setdefault("version", POSTGRES_VERSION)
        server = EmbeddedServer.create(**options)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.close()
