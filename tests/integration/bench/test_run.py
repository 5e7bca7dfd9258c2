"""A short run on embedded shards: the figures are there, they agree with each other, and the certificate holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import workloads
from sharded_wf.cli import main


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sharded_wf", "bench", *map(str, arguments)], capture_output=True, text=True
    )


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "result.json"
    done = bench("run", *arguments, "--json", path, "--report", tmp_path / "report.md")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all agree" in done.stdout
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@pytest.mark.sampled
def test_a_closed_loop_beside_the_bare_loop(tmp_path: Path) -> None:
    found = run(tmp_path, "--workload", "steps", "--steps", "2", "--seconds", "2", "--embedded", "2", "--slots", "8")
    assert found["workflows_per_second"] > 10
    assert found["steps_per_second"] == pytest.approx(2 * found["workflows_per_second"], rel=0.6)
    assert found["ceiling_workflows_per_second"] > 10
    ratio = found["workflows_per_second"] / found["ceiling_workflows_per_second"]
    assert found["ratio_to_ceiling"] == pytest.approx(ratio, abs=0.001)
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["p999"]
    assert all(found["cpu_us_per_workflow"][side] > 0 for side in ("postgres", "executor", "client"))
    assert found["wal_bytes_per_workflow"] > 100
    assert found["commits_per_workflow"] > 0
    assert (found["lost"], found["duplicated"], found["misordered"]) == (0, 0, 0)
    assert found["certificate"]["drained"]
    assert found["certificate"]["acknowledged"] == found["certificate"]["finished"]
    assert found["certificate"]["bodies_noted"] > 0
    shards = found["per_shard"]
    assert set(shards) == {"pg1", "pg2"}
    total = sum(shard["workflows_per_second"] for shard in shards.values())
    assert total == pytest.approx(found["workflows_per_second"], rel=0.01)
    assert found["conditions"]["settings"]["fsync"] == "on"
    report = (tmp_path / "report.md").read_text()
    assert "ratio to the bare loop" in report
    assert "synchronous_commit" in report


@pytest.mark.sampled
def test_an_open_loop_on_the_servers_of_a_configuration(tmp_path: Path, databases: Any) -> None:
    dsns = databases(2)
    config = tmp_path / "shards.toml"
    shards = "".join(f"[[shard]]\nname = 'pg{number}'\ndsn = '{dsn}'\n" for number, dsn in enumerate(dsns))
    config.write_text(f"[cluster]\nname = 'mine'\n{shards}")
    found = run(
        tmp_path, "--rate", "100", "--workload", "mixed", "--seconds", "2", "--slots", "4", "--config", str(config)
    )
    assert (found["loop"], found["rate"]) == ("open", 100)
    assert found["ratio_to_ceiling"] is None
    assert found["cpu_us_per_workflow"]["postgres"] is None
    assert "intended start" in found["latency_ms"]["of"]
    assert found["latency_ms"]["samples"] > 20
    assert found["lost"] == found["duplicated"] == found["misordered"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--workload", "nope"], "there are noop, fan-out"),
        (["run", "--embedded", "2", "--config", "x.toml"], "exclude each other"),
        (["run", "--embedded", "4", "--slots", "3"], "each shard needs one"),
        (["run", "--embedded", "99", "--slots", "99"], "choose 1 to 16"),
        (["run", "--config", "missing.toml"], "there is no such file"),
    ],
)
def test_errors_are_one_clear_message(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sharded-wf", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_every_workload_is_found_and_named() -> None:
    for name in workloads.NAMES:
        assert workloads.find(name, 2).name == name


@pytest.mark.sampled
def test_what_a_feature_costs(tmp_path: Path) -> None:
    options = ("--seconds", "1", "--rounds", "1", "--only", "a child", "--slots", "8", "--executors", "1")
    done = bench("attribution", *options, "--json", tmp_path / "found.json", "--report", tmp_path / "report.md")
    assert done.returncode == 0, done.stdout + done.stderr
    whole, child = json.loads((tmp_path / "found.json").read_bytes())["prices"]
    assert whole["bare_cpu_us"]["postgres"] > 0 and whole["cpu_us"]["executor"] > 0
    assert child["over"] == "a workflow" and child["cpu_us"]["postgres"] > 0
    assert "| a child |" in (tmp_path / "report.md").read_text()
