"""An order that is paid, waits for somebody's approval, and is shipped parcel by parcel.

Steps with retries, a message from outside, a durable sleep, child workflows. Kill it at any moment and run it again: it
goes on where it was.

    python examples/checkout.py                    on private Postgres servers, kept in ./.sharded_wf
    python examples/checkout.py shards.toml        on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import timedelta

from sharded_wf import App, Retry, current, receive, send

app = App("shop")


@dataclass
class Approval:
    by: str
    granted: bool


@app.step(retry=Retry(attempts=5, first=0.2), timeout=30)
async def charge(order: str, cents: int) -> str:
    # The key is the same in every attempt, so the bank charges once, however often we ask.
    return f"receipt for {order}, {cents / 100:.2f} €, key {current().idempotency_key[:8]}…"


@app.step
def print_label(parcel: str) -> str:  # an ordinary function; it runs in a thread
    return f"label of {parcel}"


@app.workflow
async def ship(parcel: str) -> str:
    label = await print_label.in_thread(parcel)
    await asyncio.sleep(0.5)  # durable: an hour or a year would cost a row, not memory
    return f"{parcel} is on its way with {label}"


@app.workflow
async def checkout(order: str, cents: int, parcels: list[str]) -> list[str]:
    receipt = await charge(order, cents)  # saved before the next line runs
    approval = await receive("approval", Approval, timeout=timedelta(days=1))
    if not approval.granted:
        return [receipt, f"{approval.by} said no"]
    shipped = await asyncio.gather(*(ship(parcel) for parcel in parcels))  # children, each on a shard of its own
    return [receipt, f"{approval.by} approved", *shipped]


@app.workflow
async def approve(order: str) -> None:
    """What a person's click would start; messages may come from workflows and from clients alike."""
    await send(f"checkout-{order}", "approval", Approval(by="Ada", granted=True))


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    async with app.connect(cluster) as client, app.executor(cluster):
        bound = checkout.bind("o-1", 4200, ["lamp", "shade"])
        order = await client.start(bound, id="checkout-o-1")  # the same ID again starts nothing
        await client.start(approve.bind("o-1"), id="approve-o-1")
        for line in await order.result(timeout=60):
            print(line)


if __name__ == "__main__":
    asyncio.run(main())
