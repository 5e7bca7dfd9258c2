"""One client. Closed loop: it keeps a bounded backlog, as the bare loop's starter does. Open loop: starts come when
they come (a Poisson process), whether or not the last ones have ended, and their latency counts from the moment when
they were *meant* to start; so a system that stalls can't hide it by slowing its own clients down.

What was acknowledged goes to the ledger in batches, after the acknowledgement, on a connection of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from sharded_wf import Client, Handle, connect
from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.executor.worker import run_fast
from sharded_wf.routing import new_id

from .counters import FINISHED, STARTED, Counters
from .executor_process import end_with_the_bench
from .features import find
from .processes import ClientOrder, Timed, config_of, read_order
from .workloads import Item

WORKFLOWS_PER_START = 1_000  # for each shard, at most; a unit of many workflows makes smaller batches
STARTERS = 2  # batches that a closed loop has under way at once
FULL_PAUSE_SECONDS = 0.005
TICK_SECONDS = 0.001
NOTE_SECONDS = 0.2
TIMED_PER_SECOND_MAX = 500  # starts whose results a client waits for; all others it only starts
RESULT_SECONDS_MAX = 40.0


def arrivals(rate: float, begin: float, source: random.Random) -> Iterator[float]:
    """The moments of a Poisson process with ``rate`` events a second, from ``begin`` on."""
    at = begin
    while True:
        at += source.expovariate(rate)
        yield at


class Load:
    """Starts workflows until it is told to stop."""

    def __init__(self, order: ClientOrder, client: Client, ledger: psycopg.AsyncConnection[Any]) -> None:
        self._order = order
        self._client = client
        self._ledger = ledger
        self._workload = find(order.workload, order.steps)
        self._counters = Counters(Path(order.counters))
        self._cell = order.cell
        self._started = 0
        self._number = 0
        self._acknowledged: list[str] = []
        self._timed: list[Timed] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.stop = asyncio.Event()
        self.ended = asyncio.Event()
        """Nothing is started any more."""

    def _pair(self) -> tuple[str, str]:
        one = new_id(SYSTEM_CLOCK)
        home = self._client.locate(one)[1]
        while True:
            other = new_id(SYSTEM_CLOCK)
            if len(self._order.shards) == 1 or self._client.locate(other)[1] != home:
                return one, other

    async def _start(self, units: int) -> list[Handle[Any]]:
        """Start so many units; when this returns they are acknowledged. The handles are those of workflows that could
        be started at once."""
        first, self._number = self._number, self._number + units
        self._started += units * self._workload.workflows
        self._counters[self._cell] = self._started
        items: Iterable[Item] = self._workload.units(first, units, self._pair)
        if self._workload.earlier:
            earlier, items = self._part(items)
            before = await self._client.start_many(earlier)
            self._acknowledged += [handle.id for handle in before]
        handles = await self._client.start_many(items)
        self._acknowledged += [handle.id for handle in handles]
        return handles

    def _part(self, items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
        """Those who will be sent messages, and the others, who may send them: who is sent one must be there already."""
        parts: tuple[list[Item], list[Item]] = ([], [])
        for item in items:
            bound = item[1] if isinstance(item, tuple) else item
            parts[bound.name not in self._workload.earlier].append(item)
        return parts

    async def note_until_ended(self) -> None:
        """Every now and then, and what is left at the end. (Not to be cancelled: half a note would be lost.)"""
        while not self.ended.is_set():
            await asyncio.sleep(NOTE_SECONDS)
            await self.note()
        await self.note()

    async def note(self) -> None:
        """Write into the ledger what was acknowledged."""
        ids, self._acknowledged = self._acknowledged, []
        if ids:
            await self._ledger.execute(
                "insert into acknowledged (client, ids) values (%s, %s::text::uuid[])",
                (self._cell - STARTED, "{" + ",".join(ids) + "}"),
            )

    # --- closed -------------------------------------------------------------------------------------------------

    async def run_closed(self) -> None:
        room = self._order.backlog
        most = WORKFLOWS_PER_START * len(self._order.shards)
        units = max(1, min(most, room // (2 * STARTERS)) // self._workload.workflows)

        async def start() -> None:
            while not self.stop.is_set():
                ahead = self._counters.total(STARTED, self._order.clients) - self._counters.total(FINISHED, STARTED)
                if ahead > room:
                    await asyncio.sleep(FULL_PAUSE_SECONDS)
                else:
                    await self._start(units)

        await asyncio.gather(*(start() for _ in range(STARTERS)))

    # --- open ---------------------------------------------------------------------------------------------------

    async def run_open(self, rate: float) -> None:
        every = max(1, round(rate / TIMED_PER_SECOND_MAX))
        coming = arrivals(rate, time.monotonic(), random.Random(self._order.seed))
        due_at = next(coming)
        while not self.stop.is_set():
            due: list[float] = []
            now = time.monotonic()
            while due_at <= now:
                due.append(due_at)
                due_at = next(coming)
            if due:
                task = asyncio.create_task(self._start_due(due, every))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(max(TICK_SECONDS, due_at - time.monotonic()))
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _start_due(self, due: list[float], every: int) -> None:
        first = self._number
        handles = await self._start(len(due))
        each = len(handles) // len(due)
        for place, intended_at in enumerate(due):
            if (first + place) % every == 0:
                task = asyncio.create_task(self._time(handles[place * each], intended_at))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _time(self, handle: Handle[Any], intended_at: float) -> None:
        await handle.result(RESULT_SECONDS_MAX)
        shard = self._client.locate(handle.id)[1]
        self._timed.append(Timed(shard, intended_at, time.monotonic() - intended_at))

    def write_timed(self) -> None:
        Path(self._order.results).write_bytes(msgspec.json.encode(self._timed))


async def work(order: ClientOrder) -> None:
    async with (
        connect(config_of(order.shards)) as client,
        await psycopg.AsyncConnection.connect(order.ledger, autocommit=True) as ledger,
    ):
        load = Load(order, client, ledger)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, load.stop.set)
        noting = asyncio.create_task(load.note_until_ended())
        await (load.run_closed() if order.rate is None else load.run_open(order.rate))
        load.ended.set()
        await noting
        load.write_timed()


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    order = msgspec.json.decode(read_order(), type=ClientOrder)
    threading.Thread(target=end_with_the_bench, daemon=True).start()
    run_fast(work(order))


if __name__ == "__main__":
    main()
