"""A hotel whose workflows and steps are ordinary functions: ``def`` says all that ``async def`` does.

Waiting and events, children and a map, a saga, attributes, a step that commits with your data, a life in several runs,
cleaning up and going on after a failure. (Several steps at once want an async workflow; here, children do that.)

python examples/plain.py                       on private Postgres servers, kept in ./.sharded_wf
python examples/plain.py shards.toml           on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta

import psycopg

from sharded_wf import (
    App,
    Retry,
    WorkflowCancelled,
    attr,
    continue_as_new,
    current,
    heartbeat,
    map_workflow,
    receive,
    saga,
    set_attributes,
    set_event,
    sleep_until,
    start_child,
    wait_event,
    wait_until,
)

app = App("hotel")
linen_is_here = asyncio.Event()
looks = 0
bell: list[str] = []


@app.step(heartbeat=10, total_timeout=60, retry=Retry(attempts=3, first=0.1))
def clean(rooms: int) -> int:
    """A long step: the second attempt begins where the first one failed."""
    done = current().last_heartbeat or 0
    while done < rooms:
        if done == 2 and current().attempt == 1:
            raise OSError("the vacuum cleaner broke")
        done += 1
        heartbeat(done)
    return current().attempt


@app.step
def linen() -> str | None:
    global looks
    looks += 1
    return "linen" if looks >= 3 else None


@app.step
def ring(what: str) -> str:
    bell.append(what)
    return what


@app.step
def deliver() -> str:
    if not linen_is_here.is_set():
        raise ConnectionError("no linen today")
    return "linen delivered"


@app.transaction
def book(conn: psycopg.Connection, guest: str) -> int:
    """What it writes, and the record that it ran, are one commit."""
    conn.execute("create table if not exists hotel_guest (name text primary key, night int not null)")
    row = conn.execute(
        "insert into hotel_guest values (%s, 1) on conflict (name) do update set night = hotel_guest.night + 1 "
        "returning night",
        (guest,),
    ).fetchone()
    return 0 if row is None else int(row[0])


@app.workflow
def make_bed(room: int) -> str:
    return ring(f"bed {room}")


@app.workflow(timeout=timedelta(days=1))
def morning(rooms: int) -> str:
    found = wait_until.blocking(linen, every=0.1, timeout=60)  # parked between two looks
    sleep_until.blocking(current().now() + timedelta(seconds=0.2))
    attempts = clean(rooms)
    set_event.blocking("clean", True)
    first = make_bed.start_blocking(1)  # goes on beside
    others = map_workflow.blocking(make_bed, list(range(2, rooms + 1)), concurrency=5)
    return f"{found}, {attempts} attempts, {first.result()} and {others.succeeded} more"


@app.workflow
def curious(about: str) -> bool:
    return wait_event.blocking(about, "clean", bool, timeout=60)


@app.workflow
def party(rooms: list[str]) -> str:
    try:
        with saga.blocking() as s:
            for room in rooms:
                s.step(lambda room=room: ring(f"book {room}"), undo=lambda said: ring(f"undo {said}"))  # type: ignore[misc]
            raise LookupError("no band")
    except LookupError as error:
        return str(error)


@app.workflow
def stay(guest: str, nights: int) -> str:
    """Each night is a run of its own."""
    night = book(guest)
    set_attributes.blocking(night=night)
    if current().run < nights:
        continue_as_new(stay.bind(guest, nights))
    return f"{guest} stayed {night} nights"


@app.workflow
def watch() -> None:
    receive.blocking("thieves", str)


@app.workflow
def lobby() -> None:
    """Rings a bell for whoever comes; its watch ends with it."""
    watch_id = start_child.blocking(watch.bind(), parent_close="cancel", timeout=86_400).id
    try:
        while True:
            ring(receive.blocking("guests", str))
            set_event.blocking("watched by", watch_id)
    finally:
        ring("lights out")


@app.workflow
def laundry() -> str:
    ring("van leaves")
    return deliver()


async def main() -> None:
    cluster = sys.argv[1] if len(sys.argv) > 1 else "embedded:"
    run = f"{time.time_ns():x}"
    async with app.connect(cluster) as client, app.executor(cluster):
        cleaning = await client.start(morning.bind(10), id=f"{run}/morning")
        neighbour = await client.start(curious.bind(cleaning.id))
        print(await cleaning.result(60))
        print(f"clean: {await neighbour.result(60)}")

        bell.clear()
        print(await (await client.start(party.bind(["hall", "bar"]))).result(60), bell)

        handle = await client.start(stay.bind(f"Ada {run}", 3), attributes={"hotel": run})
        print((await handle.result(60)).replace(f" {run}", ""))
        print(f"found by night: {len(await client.list(where=(attr('hotel') == run) & (attr('night') == 3)))}")

        bell.clear()
        evening = await client.start(lobby.bind(), message=("guests", "Ada arrives"))
        watched_by = client.get_handle(await evening.event("watched by", str, timeout=60))
        await evening.cancel()
        for one in (evening, watched_by):
            try:
                await one.result(60)
            except WorkflowCancelled:
                print(f"{', '.join(bell)}; cancelled")

        bell.clear()
        van = await client.start(laundry.bind())
        try:
            await van.result(60)
        except ConnectionError as error:
            print(error)
        linen_is_here.set()
        await client.resume(van.id)
        print(f"{await van.result(60)}; the van left {len(bell)} time")


if __name__ == "__main__":
    asyncio.run(main())
