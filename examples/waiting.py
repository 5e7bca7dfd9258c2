"""A parcel that is tracked: a sensor that looks for it, a long step with heartbeats, events for whoever is curious, and
an end of the time.

    python examples/waiting.py                     on private Postgres servers, kept in ./.sharded_wf
    python examples/waiting.py shards.toml         on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta

from sharded_wf import (
    App,
    Retry,
    WorkflowTimedOut,
    current,
    heartbeat,
    set_event,
    sleep_until,
    wait_event,
    wait_until,
)

app = App("parcels")
looks = 0


@app.step
async def where_is(parcel: str) -> str | None:
    """Asks the carrier, who does not know at first."""
    global looks
    looks += 1
    return f"{parcel} is in Lyon" if looks >= 3 else None


@app.step(heartbeat=10, total_timeout=60, retry=Retry(attempts=3, first=0.1))
async def unpack(parcel: str, items: int) -> int:
    done = current().last_heartbeat or 0  # where an earlier attempt, or an executor that died, got to
    while done < items:
        if done == 3 and current().attempt == 1:
            raise OSError("the knife broke")
        done += 1
        heartbeat(done)
    return current().attempt


@app.workflow(timeout=timedelta(days=30))
async def track(parcel: str) -> str:
    number = current().uuid4()  # the same on every replay
    found = await wait_until(where_is, parcel, every=0.2, timeout=timedelta(days=7))
    await set_event("place", found)
    await sleep_until(current().now() + timedelta(seconds=0.3))  # a moment in UTC; costs a row, not memory
    attempts = await unpack(parcel, 5)
    return f"{found}, unpacked in {attempts} attempts under a number of version {number.version}"


@app.workflow
async def neighbour(tracker: str) -> str:
    return "the neighbour knows: " + await wait_event(tracker, "place", str, timeout=timedelta(days=1))


@app.workflow
async def never_ends() -> None:
    await asyncio.sleep(86_400)


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    run = f"{time.time_ns():x}"
    async with app.connect(cluster) as client, app.executor(cluster):
        curious = await client.start(neighbour.bind(f"track-{run}"), id=f"neighbour-{run}", delay=0.2)
        order = await client.start(track.bind("the lamp"), id=f"track-{run}")
        print(await order.event("place", str, timeout=60))
        print(await curious.result(timeout=60))
        print(await order.result(timeout=60))
        try:
            await (await client.start(never_ends.bind(), timeout=0.5)).result(timeout=60)
        except WorkflowTimedOut:
            print("its time was over")


if __name__ == "__main__":
    asyncio.run(main())
