"""``sharded-wf shards top``: load by slot, queue and tag, and what to do about a hot tag."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from pathlib import Path

from sharded_wf import App
from sharded_wf.cluster.directory import load_map
from sharded_wf.config import ClusterConfig
from tests.integration.cli.test_moves import third
from tests.integration.cli.test_shards import Run, run, toml

__all__ = ["run", "third", "toml"]

app = App("top")


@app.workflow
async def nothing() -> None:
    return


def start(toml: str, *tags: str, each: int, queue: str) -> None:
    async def go() -> None:
        async with app.connect(toml) as client:
            ids = [f"{{{tag}}}/{number}" for tag in tags for number in range(each)]
            for id_ in ids:
                await client.start(nothing.bind(), id=id_, queue=queue)

    asyncio.run(go())


def test_a_hot_tag_gets_a_shard_of_its_own(run: Run, toml: str, third: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "8")
    start(toml, "big", each=100, queue="vip")
    start(toml, *(f"c-{number}" for number in range(20)), each=2, queue="default")
    slot = load_map(ClusterConfig.from_file(toml)).shard_map.slot_of("{big}/1")

    code, out, err = run("shards", "top", "-c", toml, "--json", "--interval", "0.1")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["tags"][0] | {"part": 0} == {
        "tag": "big", "slot": slot, "shard": found["tags"][0]["shard"], "part": 0,
        "busy": {"started": 100, "running": 0, "ready": 100},
    }  # fmt: skip
    assert [(one["queue"], one["busy"]["ready"]) for one in found["queues"]] == [("vip", 100), ("default", 40)]
    assert found["slots"][0]["slot"] == slot
    assert sum(one["busy"]["started"] for one in found["slots"]) == 140
    assert found["advice"][0]["commands"][0].startswith("sharded-wf shards add NAME --dsn DSN")

    run("shards", "add", "pg3", "--dsn", third, "-c", toml, "--yes")
    code, out, _ = run("shards", "top", "-c", toml, "--once", "--interval", "0.1")
    command = f"sharded-wf shards move {slot} --to pg3 -c {toml}"
    assert (code, command in out) == (0, True)
    assert "is of {big}; to give it a shard of its own:" in out
    assert run(*shlex.split(command)[1:], "--yes")[0] == 0
    assert json.loads(run("shards", "top", "-c", toml, "--json", "--interval", "0.1")[1])["advice"] == []
    # What the advice says about the weight.
    Path(toml).write_text(Path(toml).read_text() + f"weight = {out.split('weight = ')[1].split(' ')[0]}\n")
    code, out, _ = run("shards", "rebalance", "-c", toml, "--yes")
    assert code == 0
    shard_map = load_map(ClusterConfig.from_file(toml)).shard_map
    assert shard_map.slots_of("pg3") == (slot,)


def test_rates(run: Run, toml: str) -> None:
    """What is written between two looks, by Postgres' own count."""
    run("shards", "init", "-c", toml, "--slots", "4")

    async def work() -> str:
        async with app.connect(toml) as client, app.executor(toml):
            looking = asyncio.create_task(
                asyncio.to_thread(run, "shards", "top", "-c", toml, "--json", "--interval", "3")
            )
            while not looking.done():
                handles = await client.start_many([(f"r-{time.monotonic_ns()}-{n}", nothing.bind()) for n in range(20)])
                await asyncio.gather(*(handle.result(20) for handle in handles))
                await asyncio.sleep(0.05)
            return (await looking)[1]

    found = json.loads(asyncio.run(work()))
    assert sum(one["starts"] for one in found["slots"]) > 0
    assert sum(one["writes"] for one in found["slots"]) > sum(one["starts"] for one in found["slots"])
    assert abs(sum(one["part"] for one in found["slots"]) - 1) < 0.001


def test_a_shard_that_is_away(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    with Path(toml).open("a") as file:
        file.write('[[shard]]\nname = "pg3"\ndsn = "host=127.0.0.1 port=1"\n')
    code, out, _ = run("shards", "top", "-c", toml, "--interval", "0.1")
    assert (code, "✗ pg3: " in out, "no workflow has a hash tag" in out) == (1, True, True)
