"""``sharded-wf workflow resume | fork | terminate | pause | list --where``, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sharded_wf import App
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig

Run = Callable[..., tuple[int, str, str]]
IDS = ("f-1", "f-2")

app = App("cli_repair")


@app.step
async def refuse() -> None:
    raise KeyError("refused")


@app.workflow
async def fragile() -> None:
    await refuse()


@app.workflow
async def fine() -> int:
    return 1


async def run_some(config: ClusterConfig) -> None:
    async with app.connect(config) as client, app.executor(config):
        for id_ in IDS:
            with pytest.raises(KeyError):
                await (await client.start(fragile.bind(), id=id_)).result(30)
        await (await client.start(fine.bind(), id="s-1", attributes={"customer": "Ada", "price": 12.5})).result(30)


@pytest.fixture
def run(tmp_path: Path, postgres_server: Any, command_line: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """``run("resume", "f-1")`` on a shard where two workflows failed and one succeeded; nobody works there."""
    path = tmp_path / "shards.toml"
    dsn = postgres_server.create_database("cli_repair")
    path.write_text(f'[cluster]\nname = "cli_repair"\n[[shard]]\nname = "pg1"\ndsn = "{dsn}"\n')
    config = ClusterConfig.from_file(path)
    init_cluster(config, slots=2)
    asyncio.run(run_some(config))
    monkeypatch.setenv("SHARDED_WF_CONFIG", str(path))
    yield partial(command_line, "workflow")
    postgres_server.drop_database("cli_repair")


def status_of(run: Run, id_: str) -> str:
    status: str = json.loads(run("show", id_, "--json")[1])["status"]
    return status


def test_resume(run: Run) -> None:
    code, out, err = run("resume", "f-1", "--dry-run")
    assert (code, out, err) == (0, "f-1 would be resumed; it is failed\n", "")
    assert status_of(run, "f-1") == "failed"
    assert run("resume", "f-1")[1] == "f-1 goes on; it was failed\n"
    assert status_of(run, "f-1") == "pending"
    assert run("resume", "s-1")[:2] == (0, "s-1 has nothing to resume: it is succeeded\n")
    code, _, err = run("resume", "nobody")
    assert (code != 0, "'nobody'" in err) == (True, True)
    where = ("--where", "name=cli_repair/fragile", "--where", "error=KeyError", "--json")
    rest = {"skipped": 0, "reasons": {}}
    assert json.loads(run("resume", *where, "--dry-run")[1]) == {"matched": 1, "resumed": 0, "dry_run": True, **rest}
    assert json.loads(run("resume", *where)[1]) == {"matched": 1, "resumed": 1, "dry_run": False, **rest}
    assert status_of(run, "f-2") == "pending"
    for bad in ((), ("f-1", "--where", "status=failed"), ("--where", "status=running"), ("--where", "x=y")):
        code, _, err = run("resume", *bad)
        assert (code != 0, err.startswith("error: ")) == (True, True)


def test_fork(run: Run) -> None:
    made = json.loads(run("fork", "f-1", "--from-step", "1", "--new-id", "g-1", "--json")[1])
    assert made == {"id": "g-1", "created": True, "forked_from": "f-1"}
    again = run("fork", "f-1", "--from-step", "refuse", "--new-id", "g-1")
    assert again[:2] == (0, "g-1 exists already, forked from f-1\n")
    assert (status_of(run, "g-1"), status_of(run, "f-1")) == ("pending", "failed")
    code, _, err = run("fork", "f-1", "--from-step", "7")
    assert (code != 0, "none of number 7" in err) == (True, True)
    many = ("--from-step", "1", "--where", "status=failed", "--suffix", "-x")
    assert run("fork", *many, "--dry-run")[1] == "2 workflows fit; nothing was changed\n"
    assert run("fork", *many)[1] == "2 workflows fit, 2 forked\n"
    assert status_of(run, "f-2-x") == "pending"
    reasons = [f"  workflow {id_!r} has recorded no step 'ship'" for id_ in IDS]
    lacking = ("--from-step", "ship", "--where", "name=cli_repair/fragile")
    for option, said in (
        ("--dry-run", "2 would be skipped; nothing was changed"),
        ("--suffix=-y", "0 forked, 2 skipped"),
    ):
        first, *others = run("fork", *lacking, option)[1].splitlines()
        assert (first, sorted(others)) == (f"2 workflows fit, {said}", reasons)


def test_pause_and_terminate(run: Run) -> None:
    for id_ in ("p-1", "t-1"):
        assert run("start", "cli_repair/fine", "--id", id_)[0] == 0
    assert run("pause", "p-1")[:2] == (0, "p-1 is paused\n")
    assert status_of(run, "p-1") == "parked"
    assert run("unpause", "p-1")[:2] == (0, "p-1 goes on\n")
    assert run("terminate", "t-1")[:2] == (0, "t-1 is to end at once\n")
    for request in ("terminate", "pause", "unpause"):
        assert run(request, "t-1")[:2] == (0, "t-1 has ended already: cancelled\n")
        assert run(request, "nobody")[0] == 2


def test_list_by_attributes(run: Run) -> None:
    def found(*conditions: str) -> list[str]:
        options = [word for one in conditions for word in ("--where", one)]
        return [one["id"] for one in json.loads(run("list", *options, "--json")[1])]

    assert found("customer=Ada") == found("price>=12.5", "price<13") == ["s-1"]
    assert found("customer=Ada", "price>12.5") == found("customer=Bob") == []
    code, _, err = run("list", "--where", "customer")
    assert (code, "customer=c-42" in err) == (2, True)
    assert json.loads(run("show", "s-1", "--json")[1])["attributes"] == {"customer": "Ada", "price": 12.5}
