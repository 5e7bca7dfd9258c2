"""Orders that fail because the warehouse is closed, and go on when it is open: nobody is charged twice.

python examples/repair.py                      on private Postgres servers, kept in ./.sharded_wf
python examples/repair.py shards.toml          on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
import time

from sharded_wf import App, Failed

app = App("repair")
charged: list[str] = []
warehouse_is_open = False


class WarehouseClosed(Exception):
    pass


@app.step
async def charge(order: str) -> str:
    charged.append(order)
    return f"receipt for {order}"


@app.step
async def ship(order: str) -> str:
    if not warehouse_is_open:
        raise WarehouseClosed("the warehouse is closed")
    return f"{order} is on its way"


@app.workflow
async def sell(order: str) -> str:
    await charge(order)
    return await ship(order)


async def main() -> None:
    global warehouse_is_open
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    run = f"{time.time_ns():x}"
    async with app.connect(cluster) as client, app.executor(cluster):
        handles = [await client.start(sell.bind(f"o-{n}"), id=f"{run}/o-{n}", queue=run) for n in (1, 2, 3)]
        outcomes = await asyncio.gather(*(handle.result(60) for handle in handles), return_exceptions=True)
        print(f"{len(outcomes)} orders failed: {outcomes[0]}")

        warehouse_is_open = True
        wanted = Failed(queue=run, error="WarehouseClosed")
        print(f"{(await client.resume_many(wanted, dry_run=True)).matched} would be resumed")
        print(f"{(await client.resume_many(wanted)).done} resumed")
        await asyncio.gather(*(handle.result(60) for handle in handles))
        print("all are shipped, each charged once" if len(charged) == 3 else f"charged: {charged}")

        again = await client.fork(handles[0].id, from_step="ship")
        await again.result(60)
        print("a fork of o-1 ships once more, and charges nothing" if len(charged) == 3 else f"charged: {charged}")


if __name__ == "__main__":
    asyncio.run(main())
