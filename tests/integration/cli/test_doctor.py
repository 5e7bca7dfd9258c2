"""``sharded-wf doctor``: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg

from tests.integration.cli.test_shards import Run, run, toml

__all__ = ["run", "toml"]


def dsns(toml: str) -> list[str]:
    return [line.split('"')[1] for line in Path(toml).read_text().splitlines() if line.startswith("dsn")]


def test_a_healthy_cluster(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    code, out, err = run("doctor", "-c", toml)
    assert (code, err) == (0, "")
    assert out.startswith("cluster shop · 2 shards, 4 slots · examined in ")
    assert "✓ placement    every slot lives once" in out
    assert "· pg1, pg2: no standby is connected" in out  # what is the same on both is said once
    assert "see  docs/runbooks/doctor.md#no-standby" in out
    assert out.splitlines()[-1].startswith("2 notes")


def test_exit_codes_and_json(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    with psycopg.connect(dsns(toml)[1], autocommit=True) as conn:
        conn.execute("insert into wf_0001.ready values ('ghost', 'vip', 0, now(), '[bold]a')")
    code, out, err = run("doctor", "-c", toml)
    assert (code, err) == (1, "")
    assert "! pg2: 1 ready in queue 'vip', and no live executor here runs 'ghost'" in out
    assert f"do   sharded-wf worker MODULE:APP --queue vip -c {toml}  # the app named 'ghost'" in out
    assert run("doctor", "-c", toml, "--shard", "pg1")[0] == 0
    with Path(toml).open("a") as file:
        file.write('[[shard]]\nname = "pg3"\ndsn = "host=127.0.0.1 port=1 password=secret"\n')
    code, out, err = run("doctor", "-c", toml, "--json")
    assert (code, err) == (3, "")
    found = json.loads(out)
    assert (found["severity"], found["shards"], found["examined"]) == (
        "critical",
        ["pg1", "pg2", "pg3"],
        ["pg1", "pg2"],
    )
    assert {(one["check"], one["shard"]) for one in found["findings"] if one["severity"] != "note"} == {
        ("unreachable", "pg3"),
        ("queue-without-executor", "pg2"),
    }
    assert found["findings"][0]["check"] == "unreachable"
    assert found["unseen"] == []
    assert "secret" not in out
    assert (
        "? leases       every executor's heart beats, nothing is orphaned; not seen: pg3"
        in run("doctor", "-c", toml)[1]
    )
    assert set(found["findings"][0]) == {"check", "severity", "shard", "what", "why", "mend", "runbook"}


def test_what_can_not_be_examined(run: Run, toml: str) -> None:
    code, _, err = run("doctor", "-c", toml, "--shard", "pg9")
    assert (code, "there is no shard 'pg9'" in err) == (2, True)
    code, out, _ = run("doctor", "-c", toml)
    assert (code, "is not part of the cluster" in out) == (3, True)
    assert "? placement    not seen" in out  # and no word that all is well
