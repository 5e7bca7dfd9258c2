"""``sharded-wf shards add | remove | drain | move | rebalance | verify``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cli.test_shards import Run, run, toml
from tests.integration.reshard.test_interrupted import COORDINATOR
from tests.support.processes import WorkerProcess

__all__ = ["run", "toml"]


@pytest.fixture
def third(databases: Callable[[int], list[str]]) -> str:
    return databases(1)[0]


def slots(run: Run, toml: str) -> dict[str, list[int]]:
    status = json.loads(run("shards", "status", "-c", toml, "--json")[1])
    return {shard["name"]: shard["slots"] for shard in status["shards"]}


def test_a_shard_joins_takes_its_share_and_leaves(run: Run, toml: str, third: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "6")
    code, out, err = run("shards", "add", "pg3", "--dsn", third, "-c", toml, "--yes")
    assert (code, err) == (0, "")
    assert "pg3 has joined, without slots" in out
    assert Path(toml).read_text().count("[[shard]]") == 3
    assert "part of the cluster already" in run("shards", "add", "-c", toml)[1]

    code, out, _ = run("shards", "rebalance", "-c", toml, "--dry-run")
    assert (code, "2 slots move" in out) == (0, True)
    assert slots(run, toml)["pg3"] == []
    code, out, err = run("shards", "rebalance", "-c", toml)
    assert (code, "say --yes" in err) == (2, True)
    code, out, err = run("shards", "rebalance", "-c", toml, "--yes")
    assert (code, err) == (0, "")
    assert out.count("no writes for") == 2
    assert sorted(len(found) for found in slots(run, toml).values()) == [2, 2, 2]
    assert "nothing to do" in run("shards", "rebalance", "-c", toml, "--yes")[1]

    assert run("shards", "remove", "pg3", "-c", toml, "--yes")[0] == 2
    code, out, err = run("shards", "drain", "pg3", "-c", toml, "--yes")
    assert (code, err, slots(run, toml)["pg3"]) == (0, "", [])
    code, out, err = run("shards", "remove", "pg3", "-c", toml, "--yes")
    assert (code, err) == (0, "")
    assert "Delete its [[shard]]" in out
    assert "if it was removed, delete its [[shard]]" in run("shards", "status", "-c", toml)[1]


def test_what_can_not_join_is_in_no_file(run: Run, toml: str, third: str) -> None:
    """Processes read the file again: a shard that nobody reaches would be in their way."""
    run("shards", "init", "-c", toml, "--slots", "4")
    before = Path(toml).read_text()
    for arguments, complaint in {
        ("pg3", "--dsn", "postgresql://wf@127.0.0.1:1/wf"): "Connection refused",
        ("pg3", "--dsn", f"{third}&dbname=nowhere"): "does not exist",
        ("pg2", "--dsn", third): "is there already, with another DSN; correct it there",
        ("--dsn", third): "say what the new shard is called",
        ("pg3", "--dsn", third, "--dsn-env", "PG3"): "one of the two",
        ("pg3", "--dsn-env", "PG3_IS_NOT_SET"): "not set",
        ("pg 3", "--dsn", third): "write 1 to 63 letters",
        ("pg3",): "there is no shard 'pg3'",
    }.items():
        code, _, err = run("shards", "add", *arguments, "-c", toml, "--yes")
        assert (code, complaint in err) == (2, True), (arguments, err)
    code, _, err = run("shards", "add", "pg3", "--dsn", third, "-c", toml)
    assert (code, "say --yes" in err) == (2, True)
    code, out, _ = run("shards", "add", "pg3", "--dsn", third, "-c", toml, "--dry-run")
    assert (code, "pg3 joins, without slots: PostgreSQL " in out) == (0, True)
    assert Path(toml).read_text() == before


def test_weights(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "6")
    code, _, err = run("shards", "rebalance", "-c", toml, "--yes", "--weights", "pg1=2")
    assert (code, err) == (0, "")
    assert [len(found) for found in slots(run, toml).values()] == [4, 2]
    code, _, err = run("shards", "rebalance", "-c", toml, "--yes", "--weights", "pg1=-1")
    assert (code, "'pg1=-1' is no weight" in err) == (2, True)


def test_weights_of_the_file(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "6")
    text = Path(toml).read_text()
    Path(toml).write_text(text + "weight = 5\n")  # of the last shard
    code, _, err = run("shards", "rebalance", "-c", toml, "--yes")
    assert (code, err) == (0, "")
    assert [len(found) for found in slots(run, toml).values()] == [1, 5]
    assert "nothing to do" in run("shards", "rebalance", "-c", toml, "--yes")[1]
    assert "there is no shard 'pg9'" in run("shards", "rebalance", "-c", toml, "--weights", "pg9=2")[2]
    assert "is no weight" in run("shards", "rebalance", "-c", toml, "--weights", "pg1=x")[2]


def test_a_plan_of_many_slots_names_the_shards(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml)
    code, out, _ = run("shards", "drain", "pg1", "--to", "pg2", "--dry-run", "-c", toml)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("pg")] == [
        ["pg1", "24", "0"],
        ["pg2", "24", "48"],
    ]
    assert out.split().count("46") == 2


def test_what_can_not_be_moved_is_refused(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    for arguments, complaint in {
        ("9", "--to", "pg2"): "there is no slot 9",
        ("0", "--to", "pg7"): "there is no shard 'pg7'",
        ("0",): "say which slots, and where to",
        ("--resume", "--undo"): "one of the two",
    }.items():
        code, _, err = run("shards", "move", *arguments, "-c", toml, "--yes")
        assert (code, complaint in err) == (2, True), err
    assert "nothing to do" in run("shards", "move", "0", "--to", "pg1", "-c", toml, "--yes")[1]
    assert "no move is unfinished" in run("shards", "move", "--resume", "-c", toml, "--yes")[1]


def test_a_move_that_hangs_is_seen_compared_and_settled(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    for state, action, home in (("draining", "--undo", "pg1"), ("retired", "--resume", "pg2")):
        with WorkerProcess(COORDINATOR, toml, state, "run", "pg2") as coordinator:
            coordinator.wait_line(f"at {state}")
            code, _, err = run("shards", "move", "--resume", "-c", toml, "--yes")
            assert (code, "seems to be alive" in err) == (2, True)
            coordinator.kill()
        code, out, _ = run("shards", "status", "-c", toml)
        assert f"slot 0 pg1 → pg2: {state}, nobody drives it" in out
        assert code == (1 if state == "retired" else 0)
        code, out, _ = run("shards", "verify", "0", "-c", toml)
        assert (code, "both sides of slot 0 are the same" in out) == (0, True)
        assert "has an unfinished move" in run("shards", "move", "0", "--to", "pg2", "-c", toml, "--yes")[2]
        code, out, err = run("shards", "move", action, "-c", toml, "--yes")
        assert (code, err) == (0, "")
        code, out, _ = run("shards", "verify", "0", "-c", toml)
        assert (code, f"slot 0 lives on {home}, and nowhere else" in out) == (0, True)
