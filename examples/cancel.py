"""A bakery that is paused, cancelled and terminated: what runs of its clean-up, and what does not.

python examples/cancel.py                      on private Postgres servers, kept in ./.sharded_wf
python examples/cancel.py shards.toml          on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
import time

from sharded_wf import App, WorkflowCancelled, WorkflowTerminated, receive

app = App("bakery")
baked: list[str] = []
a_cake_is_done = asyncio.Event()
oven_is_on: dict[str, asyncio.Event] = {}


@app.step
async def switch_oven(shop: str, on: bool) -> None:
    if on:
        oven_is_on[shop].set()
    else:
        oven_is_on[shop].clear()


@app.step
async def bake(cake: str) -> None:
    baked.append(cake)
    a_cake_is_done.set()


@app.workflow
async def bakery(shop: str) -> None:
    await switch_oven(shop, True)
    try:
        while True:
            await bake(await receive("order", str))
    finally:
        await switch_oven(shop, False)  # also when it is cancelled; not when it is terminated


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    oven_is_on.update(north=asyncio.Event(), south=asyncio.Event())
    run = f"{time.time_ns():x}"
    async with app.connect(cluster) as client, app.executor(cluster):
        shop = await client.start(bakery.bind("north"), id=f"{run}/north")
        await oven_is_on["north"].wait()
        await shop.pause()
        await client.send(shop.id, "order", "cheesecake")
        await asyncio.sleep(0.5)
        print("paused: nothing is baked" if not baked else f"paused: {baked}")

        await shop.unpause()
        await a_cake_is_done.wait()
        print(f"unpaused: {len(baked)} cake is baked")

        await shop.cancel()
        try:
            await shop.result(60)
        except WorkflowCancelled:
            print(f"cancelled: the oven is {'on' if oven_is_on['north'].is_set() else 'off'}")

        other = await client.start(bakery.bind("south"), id=f"{run}/south")
        await oven_is_on["south"].wait()
        await other.terminate()
        try:
            await other.result(60)
        except WorkflowTerminated:
            print(f"terminated: the oven {'stays on' if oven_is_on['south'].is_set() else 'is off'}")


if __name__ == "__main__":
    asyncio.run(main())
