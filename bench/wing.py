"""What the Python wing costs, with a host that stores nothing: the price of a workflow before Postgres is paid.

Prints CPU microseconds (not wall time, which a busy machine bends) for a workflow without steps and for each step more,
and the CPU seconds to replay 10,000 steps. The budget on the reference machine is 20 µs, 15 µs and 0.5 s.

    python -m bench.wing [WORKFLOWS]
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharded_wf import App, Bound
from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.model.history import EMPTY_HISTORY, Entry, History
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome
from sharded_wf.workflow.attempts import Attempts
from sharded_wf.workflow.host import Run
from sharded_wf.workflow.stage import Stage

app = App("bench")
REPLAY_STEPS = 10_000
ROUNDS = 5


@app.step
async def work(order_id: str, number: int) -> str:
    return order_id


@app.workflow
async def steps(order_id: str, count: int) -> str:
    for number in range(count):
        order_id = await work(order_id, number)
    return order_id


class NullHost:
    """Takes everything for durable at once: delivers in the next turn of the loop, all in one callback, as a flush
    does."""

    def __init__(self, pending: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = SYSTEM_CLOCK
        self.stage = Stage(asyncio.get_running_loop())
        self.attempts = Attempts(asyncio.get_running_loop())
        self.threads = ThreadPoolExecutor(1)
        self.state = None
        self.pending = pending
        self.done = asyncio.Event()
        self.flush: list[tuple[Run, Entry]] = []
        self.entries: list[Entry] = []
        self.keep = False
        self.last: Outcome | None = None

    def record(self, run: Run, entry: Entry, consumed: object = None, outbox: object = None) -> None:
        if not self.flush:
            self.loop.call_soon(self.deliver)
        self.flush.append((run, entry))

    def deliver(self) -> None:
        flush, self.flush = self.flush, []
        with self.stage:
            for run, entry in flush:
                if self.keep:
                    self.entries.append(entry)
                run.deliver(entry)

    def finish(self, run: Run, outcome: Outcome) -> None:
        self.pending -= 1
        self.last = outcome
        if not self.pending:
            self.done.set()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the benchmark does not {name}")


async def run_many(bound: Bound[str], workflows: int, history: History = EMPTY_HISTORY, *, keep: bool = False) -> Any:
    host: Any = NullHost(workflows)
    host.keep = keep
    definition = app.workflows[bound.name]
    ids = [f"bench-{number}" for number in range(workflows)]
    now = SYSTEM_CLOCK.now_us()

    def start() -> None:
        with host.stage:
            for workflow_id in ids:
                definition.new_run(host, workflow_id, bound.input, history, now, 1).start()

    gc.collect()
    begun = time.process_time()
    host.loop.call_soon(start)
    await host.done.wait()
    seconds = time.process_time() - begun
    assert host.last is not None and host.last.status is Status.SUCCEEDED, host.last
    return seconds, tuple(host.entries)


def best(bound: Bound[str], workflows: int, history: History = EMPTY_HISTORY) -> float:
    return float(min(asyncio.run(run_many(bound, workflows, history))[0] for _ in range(ROUNDS)))


def main() -> None:
    workflows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    empty = best(steps.bind("o-1", 0), workflows) / workflows * 1e6
    one = best(steps.bind("o-1", 1), workflows) / workflows * 1e6
    five = best(steps.bind("o-1", 5), workflows) / workflows * 1e6
    print(f"workflow without steps   {empty:8.1f} µs")
    print(f"with one step            {one:8.1f} µs")
    print(f"each step more           {(five - one) / 4:8.1f} µs")
    bound = steps.bind("o-1", REPLAY_STEPS)
    _, entries = asyncio.run(run_many(bound, 1, keep=True))
    replay = best(bound, 1, History(entries))
    print(f"replay of {REPLAY_STEPS} steps    {replay:8.3f} s")


if __name__ == "__main__":
    main()
