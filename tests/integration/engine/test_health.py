"""Who watches over worker processes learns which slots are affected."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.cluster.fleet import fleet_status
from sharded_wf.dev import EmbeddedServer
from sharded_wf.errors import ConfigError
from sharded_wf.executor.health import Health, ShardHealth, serve_health
from tests.support.cluster import TestCluster
from tests.support.processes import free_port, wait_until

HERE = ShardHealth("pg1", (0, 2), (), 5, None)
GONE = ShardHealth("pg2", (1, 3), (1, 3), 2, "no answer for 7 s")


def get(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or "null")


def health(*shards: ShardHealth, alive: bool = True, draining: bool = False) -> Health:
    return Health(alive, draining, 7, 100, 0, shards)


@pytest.mark.parametrize(
    ("found", "healthz", "readyz"),
    [
        (health(HERE), 200, 200),
        (health(HERE, GONE), 200, 200),  # the others are served
        (health(GONE), 200, 503),
        (health(HERE, draining=True), 200, 503),
        (health(HERE, alive=False), 503, 503),
    ],
)
def test_what_the_two_pages_say(found: Health, healthz: int, readyz: int) -> None:
    async def go() -> None:
        async with serve_health(lambda: found, "127.0.0.1", 0) as port:
            status, body = await asyncio.to_thread(get, port, "/healthz")
            assert status == healthz
            assert body["affected"] == list(found.affected)
            assert [shard["problem"] for shard in body["shards"]] == [shard.problem for shard in found.shards]
            assert await asyncio.to_thread(get, port, "/readyz?verbose") == (readyz, body)
            assert await asyncio.to_thread(get, port, "/readyz", "HEAD") == (readyz, None)
            assert (await asyncio.to_thread(get, port, "/"))[0] == 404
            assert (await asyncio.to_thread(get, port, "/healthz", "POST"))[0] == 405

    asyncio.run(go())


def test_a_port_that_is_taken_is_an_error_in_words() -> None:
    async def go() -> None:
        async with serve_health(health, "127.0.0.1", 0) as port:
            with pytest.raises(ConfigError, match="choose another port"):
                async with serve_health(health, "127.0.0.1", port):
                    pass

    asyncio.run(go())


@pytest.mark.sampled
def test_a_worker_says_which_slots_are_affected(
    cluster_and_far: tuple[TestCluster, EmbeddedServer],
) -> None:
    cluster, server = cluster_and_far
    port = free_port()
    far = list(load_map(cluster.config).shard_map.slots_of(cluster.name(2)))

    def says(affected: list[int]) -> bool:
        try:
            status, body = get(port, "/readyz")
        except OSError:
            return False
        return (status, body["affected"]) == (200, affected)

    def problems() -> tuple[int, list[bool | None]]:
        status, body = get(port, "/healthz")
        found = {shard["name"]: shard["problem"] for shard in body["shards"]}
        return status, [found[cluster.name(number)] and True for number in (1, 2)]

    with cluster.worker("--health-port", str(port)):
        wait_until(lambda: says([]), "that all is well")
        server.pause()
        try:
            wait_until(lambda: says(far), "that pg2 is missed")
            # (On a machine that stands still for a while pg1 is missed, too, for as long.)
            wait_until(lambda: problems() == (200, [None, True]), "that it is well, but for pg2")
        finally:
            server.resume()
        wait_until(lambda: says([]), "that all is well again")
        server.stop()
        wait_until(lambda: says(far), "that pg2 is missed")
        (_, away) = fleet_status(cluster.config).shards
        assert (away.reachable, list(away.affected)) == (False, far)
