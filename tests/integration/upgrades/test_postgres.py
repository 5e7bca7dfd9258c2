"""Another major version of Postgres under a shard, as the runbook says: its commands are taken from the page."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from sharded_wf.config import ClusterConfig
from sharded_wf.dev import EmbeddedServer
from tests.integration.reshard.test_moves import homes
from tests.support.cluster import RUN_WORKER, TestCluster
from tests.support.flows import LEDGER_VARIABLE
from tests.support.load import RUN, STARTED, finish
from tests.support.processes import PROJECT, WorkerProcess

PAGE = PROJECT / "docs" / "runbooks" / "upgrading.md"
SECTION = "## A new major version of Postgres under a shard"
NEW_DSN = "postgresql://wf@pg1b/wf"


def commands() -> list[str]:
    """The commands of the page's section, in their order: the lines of code that stand alone."""
    section = PAGE.read_text().split(SECTION)[1].split("\n## ")[0]
    return re.findall(r"^ {4,}(sharded-wf .+)$", section, re.MULTILINE)


class Terminal(io.StringIO):
    """A person sits there, and says yes."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shop(server_factory: Callable[..., EmbeddedServer], make_cluster: Callable[..., TestCluster],
         databases: Callable[[int], list[str]]) -> tuple[TestCluster, EmbeddedServer]:  # fmt: skip
    """A cluster whose first shard is on PostgreSQL 16, and that server."""
    old = server_factory(version="16")
    return make_cluster(dsns=[old.create_database("wf"), *databases(1)], slots=4), old


@pytest.mark.sampled
def test_the_runbook_is_followed(
    shop: tuple[TestCluster, EmbeddedServer],
    server_factory: Callable[..., EmbeddedServer],
    command_line: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, old = shop
    new = server_factory(version="18").create_database("wf")
    toml = before.config_file().rename(before.directory / "shards.toml")
    monkeypatch.chdir(toml.parent)
    said: list[str] = []
    with ExitStack() as processes:

        def begin(code: str, *arguments: str) -> WorkerProcess:
            environment = {LEDGER_VARIABLE: before.ledger}
            return processes.enter_context(WorkerProcess(code, *arguments, environment=environment))

        begin(RUN_WORKER, "worker", "tests.support.flows:app", "-c", str(toml))
        load = begin(RUN, str(toml), "w")
        load.wait_line(STARTED)
        for command in commands():
            program, *arguments = shlex.split(command.replace(NEW_DSN, new))
            monkeypatch.setattr("sys.stdin", Terminal("y\n"))
            code, out, err = command_line(*arguments)
            # (The doctor finds things to note: a test's server is not a user's.)
            assert (program, code, err) == ("sharded-wf", 0, "") or arguments == ["doctor"], (out, err)
            said.append(out)
            load.wait_line(STARTED)
        old.stop()
        load.wait_line(STARTED)
        # While the worker runs: what it sent is taken out of the outbox a little later.
        now = TestCluster.of([new, before.direct[1]], before.ledger, before.directory)
        now.certify(finish(load))
    assert homes(now) == {0: [1], 2: [1], 1: [2], 3: [2]}
    assert [shard.name for shard in ClusterConfig.from_file(toml).shards] == ["pg1", "pg2", "pg1b"]
    assert len(said) == 7
    status = next(line.split() for line in said[4].splitlines() if " pg1b " in line)
    assert status[0] == "✓"
    assert any(word.startswith("18") for word in status), said[4]
