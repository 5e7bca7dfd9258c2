"""``sharded-wf shards migrate``: the plan, the question, what stands in the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Literal

import psycopg
import pytest

from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import SchemaOutOfDate
from sharded_wf.postgres import migrate as subject
from sharded_wf.postgres.queries import Migration, load_migrations
from tests.integration.engine.conftest import make_cluster, two_shards
from tests.support.cluster import TestCluster
from tests.support.flows import app
from tests.support.processes import until

__all__ = ["make_cluster", "two_shards"]
Run = Callable[..., tuple[int, str, str]]
Kind = Literal["control", "slot", "outbox"]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this process is a later version, with a ``pre`` and a ``post`` for slots."""
    released = {kind: load_migrations(kind) for kind in ("control", "slot")}
    released["slot"] += (
        Migration(4, "pre", "colour", "-- locks: workflow\nalter table {slot}.workflow add column colour text"),
        Migration(5, "post", "colour", "-- locks: workflow\nalter table {slot}.workflow drop column colour"),
    )
    monkeypatch.setattr(subject, "load_migrations", lambda kind: released[kind])


def test_the_plan(command_line: Run, two_shards: TestCluster, newer: None) -> None:
    path = str(two_shards.config_file())
    code, out, err = command_line("shards", "migrate", "--plan", "-c", path)
    assert (code, err) == (0, "")
    assert "12 to apply" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("pg1")]
    assert lines == [
        ["pg1", "slots", "0,", "2,", "4", "0004", "pre", "colour", "go", "on", "workflow"],
        ["pg1", "slots", "0,", "2,", "4", "0005", "post", "colour", "must", "know", "it", "workflow"],
    ]
    code, out, err = command_line("shards", "migrate", "-c", path)
    assert (code, "this asks before it acts; without a terminal, say --yes" in err) == (2, True)
    plain = json.loads(command_line("shards", "migrate", "--plan", "--json", "-c", path)[1])["shards"][1]
    assert [step["schema"] for step in plain["steps"]] == ["wf_0001", "wf_0003", "wf_0005"] * 2
    assert [step["old_processes_go_on"] for step in plain["steps"]] == [True] * 3 + [False] * 3
    code, out, _ = command_line("shards", "migrate", "--pre", "-c", path)
    assert (code, "pg2: 3 applied to 3 schemas, up to wf_0005 0004_pre_colour" in out) == (0, True)
    assert "later, when every process runs the new version: 6 more" in out
    code, out, _ = command_line("shards", "migrate", "--pre", "--plan", "-c", path)
    assert (code, out) == (0, "nothing to do: every table is up to date\n")
    code, out, _ = command_line("shards", "migrate", "--yes", "-c", path)
    assert (code, "pg1: 3 applied to 3 schemas, up to wf_0004 0005_post_colour" in out) == (0, True)


def test_what_stands_in_the_way(command_line: Run, two_shards: TestCluster, request: pytest.FixtureRequest) -> None:
    """An executor of the version before, on any shard; a move that hangs."""
    path = str(two_shards.config_file())

    async def beside(*options: str) -> tuple[int, str, str]:
        async with app.executor(two_shards.config, shards=["pg2"]):
            await until(lambda: bool(two_shards.leases(2)), "the executor has its lease")
            request.getfixturevalue("newer")
            return await asyncio.to_thread(command_line, "shards", "migrate", "-c", path, *options)

    code, out, err = asyncio.run(beside("--yes"))
    assert (code, "pg1: 3 applied" in out) == (1, True)
    assert "does not know all of it: stop it before" in out
    assert err.startswith("error: pg1, pg2: wf_0000 0005_post_colour is not for ")
    with psycopg.connect(two_shards.direct[0], autocommit=True) as conn:
        conn.execute(
            "insert into wf_control.move (slot, id, source, target, epoch, state, coordinator, runner) "
            "values (0, gen_random_uuid(), 'pg1', 'pg2', 9, 'copying', gen_random_uuid(), 'host:1')"
        )
    code, out, err = command_line("shards", "migrate", "-c", path, "--yes")
    assert code == 1
    assert "! pg1: slot 0 is being moved from pg1 to pg2 (copying): let it end first" in out
    assert "both sides must have the same tables" in err


def test_nobody_joins_in_the_middle(
    two_shards: TestCluster, databases: Callable[[int], list[str]], newer: None
) -> None:
    config = ClusterConfig("engine", (*two_shards.config.shards, ShardConfig("pg3", databases(1)[0])))
    with pytest.raises(SchemaOutOfDate, match=r"'pg1' has migrations to apply .* then let others join"):
        init_cluster(config)
