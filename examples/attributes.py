"""Orders that can be searched by customer, price and stage, over all shards.

python examples/attributes.py                      on private Postgres servers, kept in ./.sharded_wf
python examples/attributes.py shards.toml          on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
import time

from sharded_wf import App, attr, set_attributes

app = App("orders")


@app.step
async def ship(order: str) -> str:
    return f"{order} is on its way"


@app.workflow
async def sell(order: str) -> str:
    said = await ship(order)
    await set_attributes(stage="shipped")
    return said


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    run = f"{time.time_ns():x}"
    async with app.connect(cluster) as client:
        for number in range(7):
            await client.start(
                sell.bind(f"o-{number}"),
                id=f"{run}/o-{number}",
                attributes={"run": run, "customer": "Ada", "price": 5.0 * number, "stage": "new"},
            )

        ada = (attr("run") == run) & (attr("customer") == "Ada")
        count, page = 0, await client.list(where=ada, limit=3)
        while page:
            count += len(page)
            page = await client.list(where=ada, limit=3, before=page[-1])
        print(f"{count} orders of Ada, in pages of 3")
        print(f"{len(await client.list(where=ada & (attr('price') >= 25)))} of them cost 25 and more")

        async with app.executor(cluster):
            await asyncio.gather(*(client.get_handle(f"{run}/o-{n}", str).result(60) for n in range(7)))
        shipped = await client.list(where=ada & (attr("stage") == "shipped"))
        print("all are shipped" if len(shipped) == 7 else f"{len(shipped)} are shipped")


if __name__ == "__main__":
    asyncio.run(main())
