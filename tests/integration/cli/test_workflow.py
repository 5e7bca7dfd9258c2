"""``sharded-wf workflow``: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sharded_wf import App, Retry
from sharded_wf.client import Client
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig
from sharded_wf.executor import Executor

Run = Callable[..., tuple[int, str, str]]

app = App("cli")
attempts: dict[str, int] = {}


@app.step(retry=Retry(attempts=3, first=0.01))
async def shaky(order: str) -> str:
    attempts[order] = attempts.get(order, 0) + 1
    if attempts[order] < 3:
        raise ConnectionError(f"attempt {attempts[order]} of [red]{order}[/red]")
    return f"done {order}"


@app.workflow
async def child(order: str) -> str:
    return await shaky(order)


@app.workflow
async def parent(order: str, count: int) -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return {"order": order, "count": count, "said": await child(order)}


@app.workflow
async def broken() -> None:
    raise KeyError("[gone]")


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory, postgres_server: Any) -> Iterator[str]:
    """Two shards on which some workflows ran: ``p-1`` succeeded, ``b-1`` failed, ``later`` waits."""
    names = [f"cli_workflow_{number}" for number in (1, 2)]
    path = tmp_path_factory.mktemp("cluster") / "shards.toml"
    shards = "".join(
        f'[[shard]]\nname = "pg{number}"\ndsn = "{postgres_server.create_database(name)}"\n'
        for number, name in enumerate(names, 1)
    )
    path.write_text(f'[cluster]\nname = "cli"\n{shards}')
    config = ClusterConfig.from_file(path)
    init_cluster(config, slots=4)
    asyncio.run(run_some(config))
    yield str(path)
    for name in names:
        postgres_server.drop_database(name)


async def run_some(config: ClusterConfig) -> None:
    attempts.clear()
    async with Client.connect(config) as client, Executor(app, config):
        first = await client.start(parent.bind("o-1", 2), id="p-1")
        bad = await client.start(broken.bind(), id="b-1")
        assert await first.result(30) == {"order": "o-1", "count": 2, "said": "done o-1"}
        with pytest.raises(KeyError):
            await bad.result(30)
        await client.start(parent.bind("o-2", 1), id="later", delay=3600)


@pytest.fixture
def run(toml: str, command_line: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("list")`` is ``sharded-wf workflow list`` on that cluster: the exit code, stdout, stderr."""
    monkeypatch.setenv("SHARDED_WF_CONFIG", toml)
    return partial(command_line, "workflow")


def test_list(run: Run) -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["status", "id", "workflow", "queue", "created", "took"]
    assert {(line[0], line[1], line[2]) for line in lines[1:]} == {
        ("succeeded", "p-1", "cli/parent"),
        ("succeeded", "p-1/child-1", "cli/child"),
        ("failed", "b-1", "cli/broken"),
        ("parked", "later", "cli/parent"),
    }
    assert [one["id"] for one in json.loads(run("list", "--status", "failed", "--json")[1])] == ["b-1"]
    assert [one["id"] for one in json.loads(run("list", "--name", "cli/child", "--json")[1])] == ["p-1/child-1"]
    assert run("list", "--queue", "nothing")[1] == "no workflows like this\n"
    code, _, err = run("list", "--status", "dead")
    assert (code, "there are pending, running" in err) == (2, True)


def test_show_draws_every_step_with_its_attempts(run: Run) -> None:
    code, out, err = run("show", "p-1/child-1")
    assert (code, err) == (0, "")
    assert out.startswith("p-1/child-1  succeeded\n")
    facts = {line.split()[0]: line.split()[1] for line in out.splitlines() if line and not line.startswith(" ")}
    assert (facts["workflow"], facts["parent"], facts["queue"]) == ("cli/child", "p-1", "default")
    rows = [line for line in out.splitlines() if "shaky" in line or "attempt " in line]
    assert "done o-1" in rows[0]
    # What a workflow says is never markup.
    assert "ConnectionError: attempt 1 of [red]o-1[/red]" in rows[1]
    assert "attempt 2" in rows[2]


def test_show_for_programs(run: Run) -> None:
    shown = json.loads(run("show", "p-1", "--json")[1])
    assert (shown["status"], shown["input"], shown["output"]["said"]) == ("succeeded", ["o-1", 2], "done o-1")
    assert [entry["kind"] for entry in shown["history"]] == ["timer", "child"]
    assert shown["shard"] in ("pg1", "pg2")
    inner = json.loads(run("show", "p-1/child-1", "--json")[1])
    assert [attempt["error"]["type"] for attempt in inner["failed_attempts"]] == ["ConnectionError"] * 2


def test_show_of_a_failure_ends_with_its_traceback(run: Run) -> None:
    code, out, _ = run("show", "b-1")
    assert code == 0
    assert "KeyError: '[gone]'" in out
    assert 'raise KeyError("[gone]")' in out


def test_result(run: Run) -> None:
    code, out, _ = run("result", "p-1")
    assert (code, json.loads(out)["order"]) == (0, "o-1")
    code, out, err = run("result", "b-1")
    assert code == 1
    assert err == "error: workflow 'b-1' failed: KeyError: '[gone]'\n"
    code, out, _ = run("result", "b-1", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "KeyError")
    code, _, err = run("result", "later", "--timeout", "0.05")
    assert (code, "had no result within 0.05 s" in err) == (1, True)
    code, _, err = run("result", "nobody")
    assert (code, err) == (2, "error: no workflow has the ID 'nobody'\n")


def test_start_and_cancel(run: Run) -> None:
    given = ("start", "cli/parent", "--args", '["o-3", 1]', "--id", "s-1")
    code, out, err = run(*given)
    assert (code, out, err) == (0, "s-1 started\n", "")
    assert run(*given)[1] == "s-1 exists already\n"
    code, _, err = run("start", "cli/parent", "--args", "[]", "--id", "s-1")
    assert (code, err) == (2, "error: workflow 's-1' exists with other arguments; use another --id\n")
    assert run("cancel", "s-1")[:2] == (0, "s-1 cancelled\n")
    assert run("cancel", "s-1")[:2] == (0, "s-1 has ended already: cancelled\n")
    assert run("show", "s-1")[0] == 0
    assert run("result", "s-1") == (1, "", "error: workflow 's-1' was cancelled\n")
    assert run("cancel", "nobody")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "parent"), "write app/function"),
        (("start", "cli/parent", "--args", "[4"), "no valid JSON"),
        (("start", "cli/parent", "--args", "4"), "a JSON array"),
        (("show", "nobody"), "no workflow has the ID 'nobody'"),
    ],
)
def test_what_can_not_be_done_is_said(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = run(*arguments)
    assert (code, said in err) == (2, True)


def test_start_and_wait(run: Run, toml: str) -> None:
    """By name and by JSON alone, while an executor runs elsewhere."""

    async def work() -> tuple[int, str, str]:
        async with Executor(app, ClusterConfig.from_file(Path(toml))):
            given = ("start", "cli/parent", "--args", '["o-4", 7]', "--id", "w-1", "--wait", "--timeout", "30")
            return await asyncio.to_thread(run, *given)

    code, out, err = asyncio.run(work())
    assert (code, json.loads(out), err) == (0, {"order": "o-4", "count": 7, "said": "done o-4"}, "")
