"""A trip that is booked as a whole or not at all: several things at once, the first of several, and a saga.

python examples/trip.py                        on private Postgres servers, kept in ./.sharded_wf
python examples/trip.py shards.toml            on your own cluster
"""

from __future__ import annotations

import asyncio
import sys

from sharded_wf import App, Retry, current, saga

app = App("trips")


@app.step
async def quote(airline: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return airline


@app.step
async def book(what: str) -> str:
    if what == "car":
        raise LookupError("no car left")
    return f"{what}-{current().idempotency_key[:4]}"  # the other side knows this key: booking twice is booking once


@app.step(retry=Retry(attempts=None))  # until it is done
async def cancel(booking: str) -> None:
    print(f"cancelled {booking.partition('-')[0]}")


async def fastest_quote() -> str:
    """Replay takes the same winner; the losers are cancelled."""
    asked = [asyncio.create_task(quote(airline, seconds)) for airline, seconds in (("slow air", 30), ("fast air", 0.1))]
    done, pending = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return done.pop().result()


@app.workflow
async def trip(wanted: list[str]) -> list[str]:
    airline = await fastest_quote()
    booked = [f"with {airline}"]
    try:
        async with saga() as s:
            for what in wanted:
                booked.append(await s.step(book(what), undo=cancel))
    except LookupError as error:
        return [str(error)]
    return [name.partition("-")[0] for name in booked]


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    async with app.connect(cluster) as client, app.executor(cluster):
        for id_, wanted in (("trip-1", ["flight", "hotel"]), ("trip-2", ["flight", "hotel", "car"])):
            handle = await client.start(trip.bind(wanted), id=id_)
            print(", ".join(await handle.result(timeout=60)))


if __name__ == "__main__":
    asyncio.run(main())
