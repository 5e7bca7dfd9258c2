"""What people run while a shard hangs: it answers within seconds, names that shard, and shows the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharded_wf.cluster import fanout
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig
from sharded_wf.dev import EmbeddedServer
from sharded_wf.limits import LOOK_SECONDS
from tests.support.flows import app, echo

Run = Callable[..., tuple[int, str, str]]
IN_ALL_SECONDS = LOOK_SECONDS + 2.4
"""What these commands do besides waiting, on a busy machine: less than to wait twice."""
TRIES = 3
"""A machine that stood still for a while does not do so each time."""


@pytest.fixture
def toml(
    databases: Callable[[int], list[str]], server_factory: Callable[..., EmbeddedServer], tmp_path: Path
) -> Iterator[str]:
    """A cluster whose second shard hangs."""
    path, server = tmp_path / "shards.toml", server_factory()
    dsns = (databases(1)[0], server.create_database("wf"))
    shards = "".join(f'[[shard]]\nname = "pg{number}"\ndsn = "{dsn}"\n' for number, dsn in enumerate(dsns, 1))
    path.write_text(f'[cluster]\nname = "shop"\n{shards}')
    config = ClusterConfig.from_file(path)
    init_cluster(config, 4)
    with app.connect_blocking(config) as client:
        for number in range(20):
            client.start(echo.bind("x"), id=f"here-{number}")
    server.pause()
    yield str(path)
    server.resume()


def test_every_command_over_all_shards_waits_for_a_hung_one_once_and_shortly(
    toml: str, command_line: Run, full: bool
) -> None:
    def run(*words: str, forget: bool = full) -> tuple[int, str, str]:
        took: list[float] = []
        known = {} if forget else dict(fanout._silent)  # as in a process of its own, or what this one has noticed
        while len(took) < TRIES:
            fanout._silent.clear()
            fanout._silent.update(known)
            begun = time.monotonic()
            found = command_line(*words, "-c", toml)
            took.append(time.monotonic() - begun)
            if took[-1] < IN_ALL_SECONDS:
                return found
        raise AssertionError(f"{words} took {took} s")

    code, out, _ = run("shards", "status", "--json", forget=True)
    status = json.loads(out)
    assert (code, status["healthy"]) == (1, False)
    assert [(shard["reachable"], shard["affected"]) for shard in status["shards"]] == [(True, []), (False, [1, 3])]
    assert "it does not answer" in status["shards"][1]["problem"]
    code, out, err = run("workflow", "list", "--json", forget=True)
    assert (code, "without those on pg2" in err) == (1, True)
    assert 0 < len(json.loads(out)) < 20
    code, out, _ = run("doctor", "--json", forget=True)
    found = json.loads(out)
    assert (code, found["examined"]) == (3, ["pg1"])
    assert [one["shard"] for one in found["findings"] if one["check"] == "unreachable"] == ["pg2"]
    code, out, _ = run("shards", "top", "--json", "--interval", "0.1")
    assert (code, list(json.loads(out)["silent"])) == (1, ["pg2"])
    assert "not seen: pg2" in run("shards", "verify", "0")[1]
    for words, says in {
        ("shards", "migrate"): "'pg2' can't be reached",
        ("versions",): "'pg2' can't be reached",
        ("shards", "move", "0", "--to", "pg2", "--dry-run"): "'pg2' did not answer",
        ("shards", "split", "1", "--dry-run"): "'pg2' did not answer",
    }.items():
        code, _, err = run(*words)
        assert (code in (1, 2), says in err) == (True, True), (words, err)
