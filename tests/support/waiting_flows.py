"""Workflows that wait for moments, conditions, heartbeats, deadlines and events, for the engine's tests."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

from sharded_wf import App, Retry, current, heartbeat, receive, set_event, sleep_until, wait_event, wait_until

app = App("waits")
DIRECTORY = "SHARDED_WF_TEST_DIRECTORY"
"""Where the workflows look for files, and leave some."""


def place(name: str) -> Path:
    return Path(os.environ[DIRECTORY]) / name


@app.step
async def file_is_there(name: str) -> str | None:
    with place("looks").open("a") as looks:
        looks.write(f"{os.getpid()}\n")
    return place(name).read_text() if place(name).exists() else None


@app.workflow
async def sensor(name: str, every: float) -> str | None:
    return await wait_until(file_is_there, name, every=every)


@app.step(heartbeat=30, retry=Retry(attempts=2))
async def long_copy(total: int) -> list[int]:
    """Beats until it has beaten so often; waits for good at half of it, in its first life."""
    first = done = current().last_heartbeat or 0
    while done < total:
        done += 1
        heartbeat(done)
        place(f"done-{done}").touch()
        await asyncio.sleep(1.2)
        if first == 0 and done * 2 >= total:
            await asyncio.sleep(3600)
    return [first, done]


@app.workflow
async def copying(total: int) -> list[int]:
    return await long_copy(total)


@app.workflow
async def sleeper(seconds: float) -> float:
    moment = current().now() + timedelta(seconds=seconds)
    await sleep_until(moment)
    return (current().now() - moment).total_seconds()


@app.workflow
async def setter(values: list[int], gated: bool) -> int:
    """Sets its event to one value after the other, each after a message if it is gated."""
    for value in values:
        if gated:
            await receive("go")
        await set_event("progress", {"value": value})
    return len(values)


@app.workflow
async def watcher(target: str) -> int:
    found = await wait_event(target, "progress", dict[str, int])
    return found["value"]


@app.workflow
def sync_watcher(target: str) -> int:
    set_event.blocking("watching", target)
    return wait_event.blocking(target, "progress", dict[str, int])["value"]


@app.workflow
async def relay_race(target: str | None, hops: int) -> int:
    """Waits for the one before, and shows one more: a chain over all shards."""
    found = 0 if target is None else await wait_event(target, "hop", int)
    await set_event("hop", found + 1)
    return hops


@app.workflow(timeout=3)
async def limited(child_too: bool) -> str:
    if child_too:
        return await unlimited()
    await asyncio.sleep(3600)
    return "never"


@app.workflow
async def unlimited() -> str:
    try:
        await asyncio.sleep(3600)
    finally:
        await file_is_there("cleaned up")
    return "never"


@app.workflow(run_timeout=0.5)
async def limited_run() -> str:
    await asyncio.sleep(3600)
    return "never"
