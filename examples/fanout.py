"""A thousand workflows at once, from a program without asyncio.

``start_many`` groups them by shard, one round trip each; every result is durable before it is told.

    python examples/fanout.py                      on private Postgres servers, kept in ./.sharded_wf
    python examples/fanout.py shards.toml          on your own cluster, where `sharded-wf worker fanout:app` runs
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from sharded_wf import App

app = App("numbers")
COUNT = 1_000


@app.step
async def steps_to_one(number: int) -> int:
    """The length of the Collatz sequence."""
    count = 0
    while number != 1:
        number = number * 3 + 1 if number % 2 else number // 2
        count += 1
    return count


@app.workflow
async def collatz(number: int) -> int:
    return await steps_to_one(number)


def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    with app.connect_blocking(cluster) as client, executor_here(cluster, wanted=len(sys.argv) < 2):
        begun = time.monotonic()
        run = f"{time.time_ns():x}"
        handles = client.start_many((f"{run}/{number}", collatz.bind(number)) for number in range(1, COUNT + 1))
        lengths = [handle.result(timeout=60) for handle in handles]
        seconds = time.monotonic() - begun
    longest = max(lengths)
    print(f"{COUNT} workflows started and finished in {seconds:.1f} s")
    print(f"the longest sequence below {COUNT} has {longest} steps and begins with {lengths.index(longest) + 1}")


@contextmanager
def executor_here(cluster: str, *, wanted: bool) -> Generator[None]:
    """An executor in a thread of this program, in place of a `sharded-wf worker`."""
    if not wanted:
        yield
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    executor = app.executor(cluster)
    asyncio.run_coroutine_threadsafe(executor.start(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(executor.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


if __name__ == "__main__":
    main()
