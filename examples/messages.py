"""A haggle by messages: two workflows, an async one and a ``def`` one, that write to each other until they agree.

python examples/messages.py                     on private Postgres servers, kept in ./.sharded_wf
python examples/messages.py shards.toml         on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

from sharded_wf import App, WorkflowNotFound, receive, send

app = App("market")


@dataclass
class Offer:
    by: str
    cents: int


@app.workflow
async def buyer(seller_id: str, cents: int) -> str:
    while True:
        await send(seller_id, "offers", Offer("buyer", cents))  # when this returns, it is sure to arrive
        answer = await receive("offers", Offer, timeout=3600)
        if answer.cents <= cents + 100:
            await send(seller_id, "offers", Offer("buyer", answer.cents))
            return f"bought for {answer.cents} cents"
        cents += 100


@app.workflow
def seller(buyer_id: str, cents: int) -> str:
    while True:
        offer = receive.blocking("offers", Offer)
        if offer.cents >= cents:
            return f"sold for {offer.cents} cents"
        cents -= 100
        send.blocking(buyer_id, "offers", Offer("seller", cents))


@app.workflow
async def guest_book(lines: int) -> list[str]:
    return [await receive("lines", str) for _ in range(lines)]


@app.workflow
async def lonely() -> str:
    try:
        await send("nobody", "offers", Offer("lonely", 1))
    except WorkflowNotFound as error:
        return f"an error, and recorded: {error}"
    return "never"


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    run = f"{time.time_ns():x}"
    async with app.connect(cluster) as client, app.executor(cluster):
        selling = await client.start(seller.bind(f"buyer-{run}", 900), id=f"seller-{run}")
        buying = await client.start(buyer.bind(f"seller-{run}", 400), id=f"buyer-{run}")
        print(await buying.result(timeout=60))
        print(await selling.result(timeout=60))

        book = await client.start(guest_book.bind(3), id=f"book-{run}", message=("lines", "with the start"))
        for _ in range(2):  # as a caller that did not hear the answer would
            await client.send(book.id, "lines", "sent twice, received once", idempotency_key="visit-1")
        await client.send(book.id, "lines", "the last")
        print(await book.result(timeout=60))

        print(await (await client.start(lonely.bind())).result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
