"""What a shard that hangs costs the others: ``python -m bench.away [--shards 4] [--quota 0.06] [--seconds 20]``.

Each shard's Postgres has the same small, fixed share of CPU (as in ``bench scale``); executors and clients have no
quota, and serve all shards. First the throughput: each shard has a bounded backlog of its own, so that the load of the
others does not shift. Then the latency, in an open loop at a rate that each shard bears. Each is measured in pairs of
windows: with all shards there, and with the last one frozen (SIGSTOP of all its processes). Printed: of the others the
workflows per second, and p50 and p99 of start to result; how many starts with made IDs ended, and how many starts (all
with IDs on the frozen shard, if all is well) were refused; and the certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import psycopg

from sharded_wf import Client, ShardUnavailable, connect
from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.routing import new_id

from .certificate import Expected, certify
from .cgroup import held_to
from .client_process import arrivals
from .cluster import Cluster, Shape, open_cluster
from .percentiles import latency_of
from .processes import open_processes
from .sampling import postmaster_of
from .scale import SLOTS_PER_SHARD
from .workloads import TEXT, steps

CATCH_UP_SECONDS = 10.0
BACKLOG = 600
BATCH = 100
SETTLE_SECONDS = 5.0
"""After a change, before a window: it is the lasting state that is compared."""
PATIENCE_SECONDS = 90.0


@dataclass
class Seen:
    """What the clients saw in one window."""

    ended: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    made: int = 0
    refused: int = 0


class Load:
    """The load of one client process on all shards."""

    def __init__(self, client: Client, frozen: str) -> None:
        self._client = client
        self._frozen = frozen
        self.seen = Seen()
        self.acknowledged: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.stop = asyncio.Event()

    def _ids_on(self, shard: str, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            one = new_id(SYSTEM_CLOCK)
            if self._client.locate(one)[1] == shard:
                found.append(one)
        return found

    async def keep_busy(self, shard: str) -> None:
        """A bounded backlog on one shard."""
        room = asyncio.Semaphore(BACKLOG // BATCH)

        async def batch() -> None:
            try:
                ids = self._ids_on(shard, BATCH)
                handles = await self._client.start_many(
                    ((id_, steps.bind(0, TEXT)) for id_ in ids), wait_seconds=PATIENCE_SECONDS
                )
                self.acknowledged += ids
                await asyncio.gather(*(handle.result(PATIENCE_SECONDS) for handle in handles))
                self.seen.ended[shard] += BATCH
            finally:
                room.release()

        while not self.stop.is_set():
            await room.acquire()
            self._spawn(batch())

    async def arrive(self, shard: str | None, rate: float, seed: int) -> None:
        """Starts as they come, on one shard, or (None) with IDs that are made."""
        coming = arrivals(rate, time.monotonic(), random.Random(seed))
        while not self.stop.is_set():
            at = next(coming)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            self._spawn(self._one(shard, at))

    async def _one(self, shard: str | None, at: float) -> None:
        seen = self.seen
        id_ = self._ids_on(shard, 1)[0] if shard is not None else None
        try:
            handle = await self._client.start(steps.bind(0, TEXT), id=id_)
        except ShardUnavailable:
            seen.refused += 1
            return
        self.acknowledged.append(handle.id)
        await handle.result(PATIENCE_SECONDS)
        if shard is None:
            seen.made += 1
        elif shard != self._frozen:
            seen.seconds.append(time.monotonic() - at)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def window(self, seconds: float) -> Seen:
        """Let it settle, then count."""
        await asyncio.sleep(SETTLE_SECONDS)
        self.seen = seen = Seen()
        await asyncio.sleep(seconds)
        self.seen = Seen()
        return seen

    async def settle(self) -> None:
        """Wait for the end of all that was started."""
        while self._tasks:
            await asyncio.gather(*self._tasks)


async def pairs(load: Load, server: EmbeddedServer, seconds: float, rounds: int) -> list[tuple[Seen, Seen]]:
    """Windows with all there and with the last shard frozen, in turn: what else this machine does drifts."""
    found: list[tuple[Seen, Seen]] = []
    for _ in range(rounds):
        calm = await load.window(seconds)
        await asyncio.to_thread(server.pause)
        try:
            frozen = await load.window(seconds)
        finally:
            await asyncio.to_thread(server.resume)
        await asyncio.sleep(CATCH_UP_SECONDS)
        found.append((calm, frozen))
    return found


@contextlib.asynccontextmanager
async def loading(load: Load, work: list[Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    load.stop.clear()
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        load.stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await load.settle()


async def measure(cluster: Cluster, seconds: float, rate: float, rounds: int) -> None:
    names = [shard.name for shard in cluster.config.shards]
    frozen, others = names[-1], names[:-1]
    server = cluster.servers[frozen]
    async with connect(cluster.config) as client:
        load = Load(client, frozen)
        async with loading(load, [load.keep_busy(name) for name in names]):
            busy = await pairs(load, server, seconds, rounds)
        work = [load.arrive(name, rate, number) for number, name in enumerate(names)]
        async with loading(load, [*work, load.arrive(None, rate, len(names))]):
            calm = await pairs(load, server, seconds, rounds)
    ratios: list[float] = []
    for pair in busy:
        before, during = (sum(seen.ended[name] for name in others) / seconds for seen in pair)
        ratios.append(during / before)
        itself = [f"{seen.ended[frozen] / seconds:.0f}/s" for seen in pair]
        print(f"closed loop: the other {len(others)}: {before:6.0f}/s, frozen {during:6.0f}/s: {ratios[-1]:.3f}; "
              f"{frozen} itself: {', '.join(itself)}")  # fmt: skip
    print(f"closed loop: the others keep {statistics.median(ratios):.3f} (median)")
    for name, seen in (("all there", [pair[0] for pair in calm]), ("frozen", [pair[1] for pair in calm])):
        each = ", ".join(f"{latency_of(one.seconds, '').p99:.0f}" for one in seen)
        all_of = latency_of([took for one in seen for took in one.seconds], "")
        made, refused = sum(one.made for one in seen), sum(one.refused for one in seen)
        print(f"open loop, {rate:g}/s a shard, {name:<9}: others p50 {all_of.p50:.1f}, p99 {all_of.p99:.1f} ms "
              f"({all_of.samples} starts; p99 by round: {each}); made IDs: {made}; refused: {refused}")  # fmt: skip
    with psycopg.connect(cluster.ledger, autocommit=True) as conn:
        conn.execute(
            "insert into acknowledged (client, ids) values (0, %s::text::uuid[])",
            ("{" + ",".join(load.acknowledged) + "}",),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--quota", type=float, default=0.06, help="each server's share of one core")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each window")
    parser.add_argument("--rate", type=float, default=20.0, help="starts a second and shard of the open loop")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of windows")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began; {options.shards} shards, each with "
          f"{options.quota:.0%} of a core")  # fmt: skip
    with open_cluster(Shape(options.shards, None, SLOTS_PER_SHARD * options.shards)) as cluster:
        roots = {name: postmaster_of(server) for name, server in cluster.servers.items()}
        with held_to(options.quota, roots), open_processes(cluster.config, cluster.ledger) as processes:
            processes.start_executors(1)
            asyncio.run(measure(cluster, options.seconds, options.rate, options.rounds))
            processes.end(processes.executors)
        found = certify(cluster.config, cluster.ledger, Expected({steps.name: 0}))
        print("certificate: it holds" if found.holds else f"certificate: IT DOES NOT HOLD: {found}")


if __name__ == "__main__":
    main()
