"""``sharded-wf shards``: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from sharded_wf.cli.app import GROUPS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command_line: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, where no variable names a cluster."""
    monkeypatch.delenv("SHARDED_WF_CONFIG", raising=False)
    return command_line


@pytest.fixture
def toml(databases: Callable[[int], list[str]], tmp_path: Path) -> str:
    path = tmp_path / "shards.toml"
    shards = "".join(f'[[shard]]\nname = "pg{n}"\ndsn = "{dsn}"\n' for n, dsn in enumerate(databases(2), 1))
    path.write_text(f'[cluster]\nname = "shop"\n{shards}')
    return str(path)


def test_init_status_migrate(run: Run, toml: str) -> None:
    code, out, _ = run("shards", "status", "-c", toml)
    assert (code, "no cluster here yet" in out) == (1, True)
    code, out, err = run("shards", "init", "-c", toml, "--slots", "4")
    assert (code, err) == (0, "")
    assert "cluster shop is ready: 4 slots on 2 shards" in out
    assert "pg2: 2 slots" in out
    code, out, _ = run("shards", "init", "-c", toml)
    assert (code, "cluster shop exists: 4 slots" in out) == (0, True)
    code, out, _ = run("shards", "migrate", "-c", toml)
    assert (code, out) == (0, "pg1: up to date\npg2: up to date\n")
    code, out, err = run("shards", "status", "-c", toml)
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if "pg1" in line).split()
    assert line[0] == "✓"
    assert line[-5:] == ["2", "0", "0", "0", "0"]


def test_status_for_programs(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    code, out, _ = run("shards", "status", "-c", toml, "--json")
    status = json.loads(out)
    assert (code, status["healthy"], status["slots"]) == (0, True, 4)
    assert [shard["slots"] for shard in status["shards"]] == [[0, 2], [1, 3]]
    assert status["shards"][0]["backlog"] == {"value": 0, "exact": True}


def test_what_needs_attention_is_said(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    dsn = Path(toml).read_text().split('dsn = "')[1].split('"')[0]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into wf_0000.ready values ('ghost', '[vip]', 0, now(), 'a')")
    code, out, _ = run("shards", "status", "-c", toml)
    assert code == 0
    assert "! pg1: 1 ready in queue '[vip]', and no live executor runs 'ghost'" in out


def test_a_shard_that_is_away_changes_the_exit_code(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    with Path(toml).open("a") as file:
        file.write('[[shard]]\nname = "pg3"\ndsn = "host=127.0.0.1 port=1"\n')
    code, out, _ = run("shards", "status", "-c", toml)
    assert (code, "✗ pg3: unreachable:" in out) == (1, True)
    assert json.loads(run("shards", "status", "-c", toml, "--json")[1])["healthy"] is False
    code, out, err = run("shards", "migrate", "-c", toml)
    assert (code, out) == (1, "pg1: up to date\npg2: up to date\n")
    assert err.startswith("error: shard 'pg3' can't be reached")


def dsns(toml: str) -> list[str]:
    return [line.split('"')[1] for line in Path(toml).read_text().splitlines() if line.startswith("dsn")]


def test_a_shard_that_refuses_writes_is_not_well(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    dsn = dsns(toml)[1]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set default_transaction_read_only = on".encode())
    code, out, _ = run("shards", "status", "-c", toml)
    assert (code, "✗ pg2: it refuses writes: default_transaction_read_only is on" in out) == (1, True)
    assert "✗ pg2: affected: slots 1, 3" in out


def test_what_is_accepted_is_shown_before(run: Run, toml: str) -> None:
    """pg2 has moved to another system, as after a restore; pg1 remembers the one before."""
    run("shards", "init", "-c", toml, "--slots", "4")
    for dsn in dsns(toml):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("delete from wf_control.timeline where shard = 'pg2'")
            conn.execute("insert into wf_control.timeline (shard, system, number, term) values ('pg2', 7, 9, 2)")
    refused = run("shards", "status", "-c", toml)
    assert (refused[0], "see docs/runbooks/failover.md, and `sharded-wf shards accept`" in refused[1]) == (1, True)
    code, out, _ = run("shards", "accept", "pg2", "-c", toml, "--dry-run")
    assert (code, "(before: timeline 9 of system 7)" in out) == (0, True)
    code, _, err = run("shards", "accept", "pg2", "-c", toml)
    assert (code, "say --yes" in err) == (2, True)
    assert run("shards", "status", "-c", toml)[0] == 1
    code, out, _ = run("shards", "accept", "pg2", "-c", toml, "--yes")
    assert (code, "accepted" in out) == (0, True)
    assert run("shards", "status", "-c", toml)[0] == 0
    assert "nothing to accept" in run("shards", "accept", "pg2", "-c", toml, "--yes")[1]


def test_an_error_is_one_message_without_a_traceback(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("shards", "status")
    assert (code, out) == (2, "")
    assert err.startswith("error: no cluster is named.")
    assert "Traceback" not in err
    (tmp_path / "shards.toml").write_text('[cluster]\nname = "shop"\n')
    code, _, err = run("shards", "init")
    assert code == 2
    assert "write a [[shard]]" in err


def test_the_command_explains_itself(run: Run) -> None:
    code, out, _ = run("--help")
    assert (code, "shards" in out) == (0, True)
    code, out, _ = run("shards", "--help")
    assert code == 0
    assert all(command in out for command in ("init", "status", "migrate"))
    listed = [command.short_help for command in GROUPS["shards"].registered_commands]
    assert all(text and "\n" not in text for text in listed), "lists break lines where the window does"
    assert run("--version")[1].startswith("sharded-wf 0.")
    assert run("nonsense")[0] == 2


def test_where_there_is_no_cluster_nothing_is_up_to_date(run: Run, toml: str) -> None:
    code, out, err = run("shards", "migrate", "-c", toml)
    assert (code, out) == (1, "")
    assert "shard 'pg1' is not part of the cluster yet: run sharded-wf shards init" in err


def test_a_dsn_is_not_enough_for_a_shard_of_a_larger_cluster(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    dsn = Path(toml).read_text().split('dsn = "')[1].split('"')[0]
    code, _, err = run("workflow", "list", "-c", dsn)
    assert code == 2
    assert "belongs to the cluster 'shop'; the argument is a DSN" in err
    assert "name the cluster's shards.toml" in err
