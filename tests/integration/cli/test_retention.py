"""``sharded-wf retention``: nothing goes before it was counted and somebody said so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.engine.conftest import cluster, make_cluster
from tests.support.aging import age
from tests.support.cluster import TestCluster
from tests.support.flows import app, chain

__all__ = ["cluster", "make_cluster"]


def test_what_is_old_is_counted_then_removed(
    command_line: Callable[..., tuple[int, str, str]], cluster: TestCluster, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("SHARDED_WF_CONFIG", raising=False)

    async def go() -> None:
        async with app.connect(cluster.config) as client, app.executor(cluster.config):
            for number in range(3):
                await (await client.start(chain.bind(1), id=f"w-{number}")).result(20)

    asyncio.run(go())
    age(cluster)

    def retention(*arguments: str) -> tuple[int, str, str]:
        return command_line("retention", *arguments, "-c", str(cluster.config_file()), "--older-than", "1h")

    assert "3 old enough to go" in retention("run", "--plan")[1]
    for more in ((), ("--json",)):
        code, out, err = retention("run", *more)
        assert (code, "say --yes" in err, "3 old enough" in out) == (2, True, not more)
    assert len(cluster.statuses()) == 3
    code, out, err = retention("run", "--yes", "--export", str(tmp_path / "gone"))
    assert (code, "3 removed" in out, err, cluster.statuses()) == (0, True, "", {})
    lines = [json.loads(line) for file in (tmp_path / "gone").iterdir() for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"w-0", "w-1", "w-2"}
    assert "0 old enough to go" in retention("run")[1]
